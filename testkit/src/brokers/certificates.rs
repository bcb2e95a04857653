use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::site::Site;
use super::{Error, Tls};

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
        run(SCRIPT, &site.folder, &[])?;
        Ok(Self::of(site))
    }
}

/// What a client shows to a server that asks it for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// One of the server's authority.
    Valid,
    /// One of the server's authority that has expired.
    Expired,
    /// One that it has signed itself.
    SelfSigned,
}

/// Makes a certificate for a client of this name: so many days long, of the authority or its own.
const CLIENT: &str = r#"
set -e
cd "$1"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out $2.key
openssl req -new -key $2.key -subj /CN=$2 -out $2.csr
echo 'basicConstraints = CA:FALSE' >client.conf
if [ $4 = authority ]; then
    signer='-CA authority.pem -CAkey authority.key -CAcreateserial'
else
    signer="-signkey $2.key"
fi
openssl x509 -req -in $2.csr $signer -sha256 -days $3 -extfile client.conf -out $2.pem
"#;

impl Tls {
    /// Makes a certificate for a client, and answers its file and its key's, both in PEM.
    ///
    /// # Errors
    /// Where `openssl` cannot be run.
    pub fn client(&self, certificate: ClientCertificate) -> Result<(PathBuf, PathBuf), Error> {
        let [name, days, signer] = match certificate {
            ClientCertificate::Valid => ["valid", "7", "authority"],
            ClientCertificate::Expired => ["expired", "-1", "authority"],
            ClientCertificate::SelfSigned => ["self-signed", "7", "itself"],
        };
        let folder = self.authority.parent().unwrap_or(Path::new("."));
        run(CLIENT, folder, &[name, days, signer])?;
        let file = |kind: &str| folder.join(format!("{name}.{kind}"));
        Ok((file("pem"), file("key")))
    }
}

fn run(script: &str, folder: &Path, arguments: &[&str]) -> Result<(), Error> {
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("cannot run sh"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!(
        "no certificate could be made (is there an `openssl` to run?): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
