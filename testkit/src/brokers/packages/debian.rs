use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::cache::once;
use super::{Programs, cache_folder, has, need, run};
use crate::brokers::Error;

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

/// A Debian release, and all that the launchers want of it: one root holds them together.
#[derive(Debug)]
pub(crate) struct Suite {
    name: &'static str,
    packages: &'static str,
}

/// Debian 12.
pub(crate) const BOOKWORM: Suite =
    Suite { name: "bookworm", packages: "rabbitmq-server,redis-server" };

/// Debian testing.
pub(crate) const FORKY: Suite =
    Suite { name: "forky", packages: "rabbitmq-server,redis-server,valkey-server" };

/// A program that Debian packages.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// Its path from the root on.
    pub(crate) program: &'static str,
    /// The Debian release that has the wanted version.
    pub(crate) suite: Suite,
    /// Whether the version that is installed on this machine will do.
    pub(crate) accepts: fn(&str) -> bool,
}

impl Package {
    /// Finds the package on this machine or in its cached root, and installs it there when we are
    /// root.
    pub(crate) fn install(&self) -> Result<Programs, Error> {
        if Path::new("/").join(self.program).exists()
            && (self.accepts)(&installed_version(self.name))
        {
            return Ok(Programs::Machine);
        }
        let suite = &self.suite;
        let folder = format!("{}-{}", suite.name, suite.packages.replace(',', "-"));
        once(&folder, |partial| {
            if !cfg!(target_os = "linux") || !has("apt-get") {
                return Err(Error::new(format!(
                    "{} is not installed, and installs itself only where there is apt-get",
                    self.name
                )));
            }
            if !geteuid().is_root() {
                let root = cache_folder()?.join(&folder);
                return Err(Error::new(format!(
                    "{} of Debian {} is not installed, and only root can install it, once:\n    \
                     sudo apt-get install -y debootstrap debian-archive-keyring\n    \
                     sudo {} && sudo cp /etc/hosts {}/etc/",
                    self.name,
                    suite.name,
                    suite.debootstrap(&root).join(" "),
                    root.display(),
                )));
            }
            suite.install(partial)
        })
        .map(Programs::Root)
    }
}

impl Suite {
    fn install(&self, root: &Path) -> Result<(), Error> {
        need("debootstrap", &["debootstrap", "debian-archive-keyring"])?;
        let command = self.debootstrap(root);
        let mut arguments = vec!["--mount"];
        arguments.extend(command.iter().map(String::as_str));
        run("unshare", &arguments)?;
        // Without it RabbitMQ waits in vain for the address of `localhost`.
        fs::copy("/etc/hosts", root.join("etc/hosts"))
            .map(drop)
            .map_err(Error::io("cannot copy /etc/hosts"))
    }

    fn debootstrap(&self, root: &Path) -> Vec<String> {
        let mut command = vec![
            "debootstrap".to_owned(),
            "--variant=minbase".to_owned(),
            format!("--include={}", self.packages),
            self.name.to_owned(),
            root.display().to_string(),
            debian_mirror(),
        ];
        // A debootstrap from before the release was named installs it by the script of all releases.
        let scripts = Path::new("/usr/share/debootstrap/scripts");
        if !scripts.join(self.name).exists() {
            command.push(scripts.join("sid").display().to_string());
        }
        command
    }
}

/// A shell that runs `script` inside a root.
pub(super) fn shell(root: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-c", ENTER, "sh"])
        .args([root, &std::env::temp_dir()])
        .arg(script);
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
