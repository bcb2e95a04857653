use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::Error;
use super::site::Site;

/// Makes a certificate authority of its own, and a certificate of it for this machine.
const SCRIPT: &str = r#"
set -e
cd "$1"
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"; }
printf '%s\n' '[req]' 'distinguished_name = name' 'prompt = no' '[name]' 'CN = localhost' \
    '[authority]' 'basicConstraints = critical,CA:TRUE' 'keyUsage = critical,keyCertSign' \
    'subjectKeyIdentifier = hash' \
    '[server]' 'basicConstraints = CA:FALSE' 'subjectAltName = DNS:localhost,IP:127.0.0.1' \
    'extendedKeyUsage = serverAuth' >openssl.conf
new_key authority.key
openssl req -config openssl.conf -x509 -new -key authority.key -sha256 -days 7 \
    -subj '/CN=anybroker test authority' -extensions authority -out authority.pem
new_key server.key
openssl req -config openssl.conf -new -key server.key -out server.csr
openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial \
    -sha256 -days 7 -extfile openssl.conf -extensions server -out server.pem
chmod 644 server.key
"#;

/// Where a server finds its certificate, and clients the authority to trust.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificates {
    /// The files of a site, whether they are made yet or not.
    pub(super) fn of(site: &Site) -> Self {
        Self {
            authority: site.folder.join("authority.pem"),
            certificate: site.folder.join("server.pem"),
            key: site.folder.join("server.key"),
        }
    }

    pub(super) fn make(site: &Site) -> Result<Self, Error> {
        let output = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(&site.folder)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("cannot run sh"))?;
        if !output.status.success() {
            return Err(Error::new(format!(
                "no certificate could be made (is there an `openssl` to run?): {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(Self::of(site))
    }
}
