//! What is wrong with TLS is said at once, and no waiting for the server hides it.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, ErrorKind, Queue, RetryClass};
use anybroker_testkit::brokers::{ClientCertificate, Redis, RedisVersion};
use support::{connect, message, parse, send};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_tls_does_not_allow_is_refused_at_once() {
    let redis = Redis::new(RedisVersion::V8).tls().config("tls-auth-clients yes");
    let server = spawn_blocking(move || redis.launch()).await.expect("no panic").expect("a server");
    let tls = server.tls().expect("a listener with TLS");
    let folder = tls.authority.parent().expect("a folder").to_owned();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).expect("a file");
        file.display().to_string()
    };
    let rubbish = write("rubbish.pem", "rubbish");
    let odd = "-----BEGIN CERTIFICATE-----\ncnViYmlzaA==\n-----END CERTIFICATE-----\n";
    let odd = write("odd.pem", odd);
    let trusting = format!("{}?connect=wait&ca={}", tls.url, tls.authority.display());
    let with = |certificate, key: Option<&str>| {
        let (certificate, its) = tls.client(certificate).expect("a certificate");
        let key = key.map_or_else(|| its.display().to_string(), str::to_owned);
        format!("{trusting}&cert={}&key={key}", certificate.display())
    };
    let (_, anothers) = tls.client(ClientCertificate::Expired).expect("a certificate");
    let broker = connect(&with(ClientCertificate::Valid, None)).await;
    send(&broker, Queue::new("secret"), message("m")).await;
    broker.close().await.expect("a close");
    let waiting = |url: &str| format!("{url}?connect=wait");
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
            "another's key",
            with(ClientCertificate::Valid, Some(&anothers.display().to_string())),
            "cert and key belong together".to_owned(),
        ),
        ("rubbish as ca", format!("{}&ca={rubbish}", waiting(&tls.url)), rubbish.clone()),
        ("an odd ca", format!("{}&ca={odd}", waiting(&tls.url)), odd.clone()),
        (
            "rubbish as cert",
            with(ClientCertificate::Valid, None).replace("valid.pem", "rubbish.pem"),
            rubbish.clone(),
        ),
        ("rubbish as key", with(ClientCertificate::Valid, Some(&rubbish)), rubbish.clone()),
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
