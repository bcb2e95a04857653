//! What is wrong with TLS is said at once, and no waiting for the cluster hides it.

mod support;

use std::time::{Duration, Instant};

use anybroker_core::{Broker, BrokerUrl, ErrorKind, RetryClass};
use anybroker_kafka::KafkaBroker;
use anybroker_testkit::brokers::{ClientCertificate, Kafka};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

fn parse(url: &str) -> BrokerUrl {
    url.parse().expect("a URL")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_tls_does_not_allow_is_refused_at_once() {
    let kafka = Kafka::new().tls().config("listener.name.tls.ssl.client.auth=required");
    let server = spawn_blocking(move || kafka.launch()).await.expect("no panic").expect("a server");
    let tls = server.tls().expect("a listener with TLS");
    let folder = tls.authority.parent().expect("a folder").to_owned();
    let rubbish = folder.join("rubbish.pem");
    std::fs::write(&rubbish, "rubbish").expect("a file");
    let (rubbish, missing) = (rubbish.display(), folder.join("missing.pem"));
    let waiting = |url: &str| format!("{url}?connect=wait");
    let trusting = format!("{}&ca={}", waiting(&tls.url), tls.authority.display());
    let with = |certificate, key: Option<&str>| {
        let (certificate, its) = tls.client(certificate).expect("a certificate");
        let key = key.map_or_else(|| its.display().to_string(), str::to_owned);
        format!("{trusting}&cert={}&key={key}", certificate.display())
    };
    let broker = KafkaBroker::builder().url(parse(&with(ClientCertificate::Valid, None)));
    let broker = broker.expect("known options").connect().await.expect("a connection");
    broker.close().await.expect("a close");

    let (_, anothers) = tls.client(ClientCertificate::Expired).expect("a certificate");
    let cases = [
        ("no certificate", trusting.clone(), "set cert and key".to_owned()),
        (
            "a stranger's",
            with(ClientCertificate::SelfSigned, None),
            "check the certificates of cert and key".to_owned(),
        ),
        (
            "an expired one",
            with(ClientCertificate::Expired, None),
            "check the certificates of cert and key".to_owned(),
        ),
        ("an authority it has not", waiting(&tls.url), "the authority in ca".to_owned()),
        (
            "another host's",
            trusting.replace("127.0.0.1:", "127.1:"),
            "for the host in the URL".to_owned(),
        ),
        (
            "another's key",
            with(ClientCertificate::Valid, Some(&anothers.display().to_string())),
            "cert and key belong together".to_owned(),
        ),
        ("rubbish as ca", format!("{}&ca={rubbish}", waiting(&tls.url)), rubbish.to_string()),
        (
            "no file",
            format!("{}&ca={}", waiting(&tls.url), missing.display()),
            missing.display().to_string(),
        ),
        (
            "rubbish as cert",
            with(ClientCertificate::Valid, None).replace("valid.pem", "rubbish.pem"),
            rubbish.to_string(),
        ),
        (
            "rubbish as key",
            with(ClientCertificate::Valid, Some(&rubbish.to_string())),
            rubbish.to_string(),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, url, words) in cases {
        let began = Instant::now();
        let connecting = anybroker_kafka::connect(parse(&url));
        let Ok(connected) = timeout(Duration::from_secs(20), connecting).await else {
            wrong.push(format!("{what}: it waits"));
            continue;
        };
        let error = connected.expect_err(what);
        println!("{what}, after {} ms: {error}", began.elapsed().as_millis());
        let kind = (error.kind(), error.retry_class());
        if kind != (ErrorKind::Config, RetryClass::Permanent) || !error.to_string().contains(&words)
        {
            wrong.push(format!("{what}: {kind:?} {error}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
