use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::Error;
use super::process::output_of;

/// Mounts what a server needs of the machine, for itself and its children only: the mounts are in a
/// namespace that ends with the last of them, so that several runs share one root and none has to
/// unmount.
const ENTER: &str = r#"
root=$1 temporary=$2
shift 2
mkdir -p "$root$temporary" &&
mount --rbind /proc "$root/proc" &&
mount --rbind /dev "$root/dev" &&
mount --rbind "$temporary" "$root$temporary" &&
exec chroot "$root" sh -c "$@"
"#;

/// A program that Debian packages.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    /// Its path from the root on.
    pub(super) program: &'static str,
    /// The Debian release that has the wanted version.
    pub(super) suite: &'static str,
    /// Whether the version that is installed on this machine will do.
    pub(super) accepts: fn(&str) -> bool,
}

/// Where programs are: on this machine as it is, or in a Debian of their own.
#[derive(Debug, Clone)]
pub(super) struct Root(Option<PathBuf>);

impl Root {
    /// A command that runs a shell script there, with `arguments` as `$1` and on.
    pub(super) fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command;
        match &self.0 {
            None => {
                command = Command::new("sh");
                command.args(["-c", script]);
            }
            Some(root) => {
                command = Command::new("unshare");
                if !geteuid().is_root() {
                    command.arg("--map-root-user");
                }
                command
                    .args(["--mount", "sh", "-c", ENTER, "sh"])
                    .args([root, &std::env::temp_dir()])
                    .arg(script);
            }
        }
        command.arg("sh").args(arguments);
        command
    }
}

/// Where roots, and the list of the servers that were started, are kept between runs.
///
/// # Errors
/// With neither `XDG_CACHE_HOME` nor `HOME` in the environment, or where it cannot be created.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .ok_or_else(|| Error::new("HOME is not set: set it, or XDG_CACHE_HOME, to a folder"))?
        .join("anybroker");
    fs::create_dir_all(&folder)
        .map_err(Error::io(format!("cannot create {}", folder.display())))?;
    Ok(folder)
}

/// Finds the package on this machine or in its cached root, and installs it there when we are root.
pub(super) fn install(package: &Package) -> Result<Root, Error> {
    if Path::new("/").join(package.program).exists()
        && (package.accepts)(&installed_version(package.name))
    {
        return Ok(Root(None));
    }
    let folder = cache_folder()?;
    let root = folder.join(format!("{}-{}", package.suite, package.name));
    // Several test programs may want the same root at the same time.
    let lock = folder.join(format!("{}-{}.lock", package.suite, package.name));
    let lock =
        File::create(&lock).map_err(Error::io(format!("cannot write {}", lock.display())))?;
    lock.lock().map_err(Error::io("cannot lock the cached root"))?;
    if root.join(package.program).exists() {
        return Ok(Root(Some(root)));
    }
    if !cfg!(target_os = "linux") || !has("apt-get") {
        return Err(Error::new(format!(
            "{} is not installed, and installs itself only where there is apt-get",
            package.name
        )));
    }
    if !geteuid().is_root() {
        return Err(Error::new(format!(
            "{} of Debian {} is not installed, and only root can install it, once:\n    \
             sudo apt-get install -y debootstrap debian-archive-keyring\n    \
             sudo {} && sudo cp /etc/hosts {}/etc/",
            package.name,
            package.suite,
            debootstrap(package, &root).join(" "),
            root.display(),
        )));
    }
    bootstrap(package, &root)?;
    Ok(Root(Some(root)))
}

fn bootstrap(package: &Package, root: &Path) -> Result<(), Error> {
    eprintln!(
        "installing {} of Debian {} into {} (a minute or two, once)",
        package.name,
        package.suite,
        root.display()
    );
    if !has("debootstrap") {
        run("apt-get", &["update"])?;
        run(
            "apt-get",
            &["install", "-y", "--no-install-recommends", "debootstrap", "debian-archive-keyring"],
        )?;
    }
    // Only a finished root gets the name that is looked for.
    let partial = root.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .map_err(Error::io(format!("cannot remove {}", partial.display())))?;
    }
    let command = debootstrap(package, &partial);
    let mut arguments = vec!["--mount"];
    arguments.extend(command.iter().map(String::as_str));
    run("unshare", &arguments)?;
    // Without it RabbitMQ waits in vain for the address of `localhost`.
    fs::copy("/etc/hosts", partial.join("etc/hosts"))
        .map_err(Error::io("cannot copy /etc/hosts"))?;
    fs::rename(&partial, root).map_err(Error::io(format!("cannot create {}", root.display())))
}

fn debootstrap(package: &Package, root: &Path) -> Vec<String> {
    let mut command = vec![
        "debootstrap".to_owned(),
        "--variant=minbase".to_owned(),
        format!("--include={}", package.name),
        package.suite.to_owned(),
        root.display().to_string(),
        debian_mirror(),
    ];
    // A debootstrap from before the release was named installs it by the script of all releases.
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    if !scripts.join(package.suite).exists() {
        command.push(scripts.join("sid").display().to_string());
    }
    command
}

/// The mirror that apt uses here, if this is a Debian.
fn debian_mirror() -> String {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"])
        .output();
    let targets = targets.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&targets)
        .lines()
        .find_map(|line| line.strip_prefix("Debian "))
        .unwrap_or("http://deb.debian.org/debian")
        .to_owned()
}

/// The upstream version of an installed package, or nothing.
fn installed_version(package: &str) -> String {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Version}", package])
        .stderr(Stdio::null())
        .output();
    let version = output.map(|output| output.stdout).unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    version.split_once(':').map_or(&*version, |(_epoch, version)| version).to_owned()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    output_of(&mut command).map(drop).map_err(|error| {
        Error::new(format!("`{program} {}` failed:\n{error}", arguments.join(" ")))
    })
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}
