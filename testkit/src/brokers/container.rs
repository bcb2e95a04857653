use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Error;
use super::process::output_of;
use super::recipe::Image;
use super::site::Site;

/// Whether a Docker engine answers here, asked for at most three seconds.
pub fn docker_answers() -> bool {
    let asked = Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut client) = asked else { return false };
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        if let Ok(Some(status)) = client.try_wait() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = client.kill();
    let _ = client.wait();
    false
}

/// Creates and starts a container; answers its id.
#[cfg(feature = "containers")]
pub(super) fn start(image: &Image, site: &Site) -> Result<String, Error> {
    use testcontainers::core::IntoContainerPort;
    use testcontainers::runners::AsyncRunner;
    use testcontainers::{GenericImage, ImageExt};

    let described = format!("{}:{}", image.name, image.tag);
    eprintln!("starting a container of {described}");
    let mut generic = GenericImage::new(&image.name, &image.tag);
    if image.script.is_some() {
        generic = generic.with_entrypoint("sh");
    }
    let mut request = generic
        .with_copy_to(site.folder.display().to_string(), site.folder.clone())
        // A fixed port, since one that Docker chooses changes when the container is started again.
        .with_mapped_port(site.ports[0], site.ports[0].tcp())
        .with_mapped_port(site.ports[1], site.ports[1].tcp())
        .with_hostname("anybroker")
        .with_host_config_modifier(|config| {
            let ports = config.port_bindings.iter_mut().flat_map(|ports| ports.values_mut());
            for port in ports.flatten().flatten() {
                port.host_ip = Some("127.0.0.1".to_owned());
            }
        });
    for (name, value) in &image.environment {
        request = request.with_env_var(*name, value);
    }
    if let Some(script) = image.script {
        request = request.with_cmd(["-c", script]);
    }
    // In a thread of its own: the caller's may belong to a runtime, where blocking on one panics.
    let started = std::thread::spawn(move || {
        let runtime = testcontainers_runtime()?;
        let container = runtime.block_on(request.start()).map_err(|error| error.to_string())?;
        let id = container.id().to_owned();
        // Its own `Drop` would remove the container now; that is the reaper's part.
        std::mem::forget(container);
        Ok(id)
    });
    let failed = |error: String| Error::new(format!("no container of {described}: {error}"));
    started.join().unwrap_or_else(|_| Err("the Docker client panicked".to_owned())).map_err(failed)
}

#[cfg(not(feature = "containers"))]
pub(super) fn start(image: &Image, _: &Site) -> Result<String, Error> {
    Err(Error::new(format!(
        "a Docker engine answers, but it runs {}:{} only with the feature `containers` of \
         anybroker-testkit, as in `cargo xtask test`",
        image.name, image.tag
    )))
}

#[cfg(feature = "containers")]
fn testcontainers_runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
}

/// Runs one command of the Docker client and answers its output.
pub(super) fn docker(arguments: &[&str]) -> Result<String, Error> {
    output_of(Command::new("docker").args(arguments))
        .map_err(|error| Error::new(format!("`docker {}` failed: {error}", arguments.join(" "))))
}

/// The last lines of what the container printed, on both of its outputs.
pub(super) fn log_tail(id: &str) -> String {
    output_of(Command::new("sh").args(["-c", "docker logs --tail 100 \"$1\" 2>&1", "sh", id]))
        .unwrap_or_else(|error| error)
}

pub(super) fn is_running(id: &str) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", id])
        .is_ok_and(|running| running.trim() == "true")
}
