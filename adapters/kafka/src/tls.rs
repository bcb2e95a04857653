//! What is wrong with TLS, in words that say what to mend.

use std::fs::File;
use std::path::Path;

use anybroker_core::adapter::Server;
use anybroker_core::{ErrorKind, Result};
use rdkafka::error::KafkaError;

use crate::error::error_of;

/// Opens the files of certificates and keys, which the client does not name when it cannot.
///
/// # Errors
/// `Config`, with the file.
pub(crate) fn check_files(server: &Server) -> Result<()> {
    let identity = server.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
    for file in server.ca.iter().chain(identity) {
        File::open(file).map_err(|error| {
            let text = format!("cannot read {}", file.display());
            error_of(ErrorKind::Config, "connect", text).with_source(error)
        })?;
    }
    Ok(())
}

/// What was tried when the client could not be set up, with the file that it does not name.
pub(crate) fn setting_up(server: &Server, error: &KafkaError) -> String {
    let said = error.to_string();
    let names = |what: &str| said.contains(what);
    let without = |file: &Path, what: &str| format!("{} holds no {what} in PEM", file.display());
    match (&server.ca, &server.identity) {
        (Some(ca), _) if names("ssl.ca.location") => without(ca, "certificate"),
        (_, Some((certificate, key))) if names("key values mismatch") => {
            let (certificate, key) = (certificate.display(), key.display());
            format!("cert and key belong together: {certificate} is not of the key {key}")
        }
        (_, Some((file, _))) if names("ssl.certificate.location") => without(file, "certificate"),
        (_, Some((_, file))) if names("ssl.key.location") => without(file, "private key"),
        _ => "setting up the client".to_owned(),
    }
}

/// What to do when one side does not accept the other's certificate, as the client's log says: its
/// error code is often that of a lost connection, which would be tried for ever.
pub(crate) fn refusal(failure: &str, has_certificate: bool) -> Option<&'static str> {
    if failure.contains("certificate verify failed") {
        Some("check the authority in ca, and that the certificate is for the host in the URL")
    } else if !failure.contains("SSL alert number") {
        None
    } else if has_certificate {
        Some("the broker refuses this client: check the certificates of cert and key")
    } else {
        Some("the broker asks for the client's certificate: set cert and key")
    }
}
