//! What is wrong with TLS is said at once, and no waiting for the server hides it.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anybroker_core::{Broker, ErrorKind, Queue, RetryClass};
use anybroker_testkit::brokers::{Redis, RedisVersion};
use support::{connect, message, parse, send};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Certificates of clients: one that has expired, one of an authority that nobody knows, and one to
/// connect with.
const SCRIPT: &str = r#"
set -e
cd "$1"
for name in expired good stranger; do
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out $name.key
    openssl req -new -key $name.key -subj /CN=$name -out $name.csr
done
echo 'basicConstraints = CA:FALSE' >client.conf
sign() {
    openssl x509 -req -CA authority.pem -CAkey authority.key -CAcreateserial -sha256 \
        -extfile client.conf "$@"
}
sign -in expired.csr -days -1 -out expired.pem
sign -in good.csr -days 7 -out good.pem
openssl x509 -req -in stranger.csr -signkey stranger.key -days 7 -extfile client.conf \
    -out stranger.pem
echo rubbish >rubbish.pem
printf '%s\n' '-----BEGIN CERTIFICATE-----' 'cnViYmlzaA==' '-----END CERTIFICATE-----' >odd.pem
"#;

fn make_certificates(folder: &Path) {
    let made = Command::new("sh").args(["-c", SCRIPT, "sh"]).arg(folder).output().expect("a shell");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_tls_does_not_allow_is_refused_at_once() {
    let redis = Redis::new(RedisVersion::V8).tls().config("tls-auth-clients yes");
    let server = spawn_blocking(move || redis.launch()).await.expect("no panic").expect("a server");
    let tls = server.tls().expect("a listener with TLS");
    let folder = tls.authority.parent().expect("a folder").to_owned();
    make_certificates(&folder);
    let file = |name: &str| folder.join(name).display().to_string();
    let trusting = format!("{}?connect=wait&ca={}", tls.url, tls.authority.display());
    let with = |name: &str| {
        format!(
            "{trusting}&cert={}&key={}",
            file(&format!("{name}.pem")),
            file(&format!("{name}.key"))
        )
    };
    let broker = connect(&with("good")).await;
    send(&broker, Queue::new("secret"), message("m")).await;
    broker.close().await.expect("a close");
    let waiting = |url: &str| format!("{url}?connect=wait");
    let cases = [
        ("no certificate", trusting.clone(), "set cert and key".to_owned()),
        ("a stranger's", with("stranger"), "check the certificates of cert and key".to_owned()),
        ("an expired one", with("expired"), "check the certificates of cert and key".to_owned()),
        ("an authority it has not", waiting(&tls.url), "the authority in ca".to_owned()),
        (
            "another's key",
            with("good").replace("good.key", "expired.key"),
            "cert and key belong together".to_owned(),
        ),
        (
            "rubbish as ca",
            format!("{}&ca={}", waiting(&tls.url), file("rubbish.pem")),
            file("rubbish.pem"),
        ),
        ("an odd ca", format!("{}&ca={}", waiting(&tls.url), file("odd.pem")), file("odd.pem")),
        ("rubbish as cert", with("good").replace("good.pem", "rubbish.pem"), file("rubbish.pem")),
        ("rubbish as key", with("good").replace("good.key", "rubbish.pem"), file("rubbish.pem")),
        (
            "plain on TLS",
            waiting(&tls.url.replacen("rediss", "redis", 1)),
            "write rediss://".to_owned(),
        ),
        (
            "TLS on plain",
            format!(
                "{}&ca={}",
                waiting(&server.url().replacen("redis", "rediss", 1)),
                tls.authority.display()
            ),
            "write redis://".to_owned(),
        ),
    ];
    for (what, url, words) in cases {
        let connecting = anybroker_redis::connect(parse(&url));
        let error = timeout(Duration::from_secs(20), connecting)
            .await
            .unwrap_or_else(|_| panic!("{what}: it waits"))
            .expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Config, "{what}: {error}");
        assert_eq!(error.retry_class(), RetryClass::Permanent, "{what}: {error}");
        assert!(error.to_string().contains(&words), "{what}: {error}");
    }
}
