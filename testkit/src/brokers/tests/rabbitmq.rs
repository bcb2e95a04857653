//! What a launched RabbitMQ can be put through, against the real one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::brokers::find::in_environment;
use crate::brokers::{RabbitMq, RabbitMqVersion, Server, amqp};

const VERSIONS: [(RabbitMqVersion, &str); 2] =
    [(RabbitMqVersion::V3_10, "3.10."), (RabbitMqVersion::V4_3, "4.")];

#[test]
fn killed_server_comes_back_on_its_port_with_its_data() {
    for (version, stated) in VERSIONS {
        let mut server = RabbitMq::new(version).launch().unwrap();
        assert!(server.version().starts_with(stated), "{}", server.version());
        let url = server.url().to_owned();
        server.exec(&["rabbitmqctl", "add_vhost", "kept"]).unwrap();
        let rights = ["rabbitmqctl", "set_permissions", "-p", "kept", "guest", ".*", ".*", ".*"];
        server.exec(&rights).unwrap();

        server.kill().unwrap();
        amqp::probe(&url).unwrap_err();
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        amqp::probe(&format!("{url}/kept")).unwrap();
    }
}

#[test]
fn paused_server_answers_only_once_resumed() {
    let server = RabbitMq::new(RabbitMqVersion::V4_3).launch().unwrap();
    server.pause().unwrap();
    // The kernel accepts the connection; only the server's greeting is missing.
    let mut stream = TcpStream::connect(server.url().rsplit_once('@').unwrap().1).unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.read_exact(&mut [0]).unwrap_err();
    server.resume().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn server_with_its_own_user_tls_and_configuration() {
    let server = RabbitMq::new(RabbitMqVersion::V4_3)
        .user("some one", "p@ss/word")
        .tls()
        .config("consumer_timeout = 12345")
        .launch()
        .unwrap();
    assert!(server.url().starts_with("amqp://some%20one:p%40ss%2Fword@127.0.0.1:"));
    let shown =
        server.exec(&["rabbitmqctl", "eval", "application:get_env(rabbit, consumer_timeout)."]);
    assert!(shown.unwrap().contains("12345"));

    let refused = amqp::probe(&server.url().replace("p%40ss%2Fword", "wr0ng")).unwrap_err();
    assert!(!refused.to_string().contains("wr0ng"), "{refused}");

    let tls = server.tls().unwrap();
    let (_, place) = tls.url.rsplit_once('@').unwrap();
    let client = Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-verify_hostname", "localhost"])
        .args(["-connect", place, "-CAfile"])
        .arg(&tls.authority)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&client.stdout);
    assert!(client.status.success() && said.contains("Verify return code: 0"), "{said}");
}

#[test]
fn stopped_server_leaves_no_listener_and_no_folder() {
    let server = RabbitMq::new(RabbitMqVersion::V3_10).tls().launch().unwrap();
    let authority = server.tls().unwrap().authority.clone();
    assert!(authority.exists());
    let address = server.url().rsplit_once('@').unwrap().1.to_owned();
    server.stop();
    TcpStream::connect(address).unwrap_err();
    assert!(!authority.parent().unwrap().exists());
}

#[test]
fn server_that_does_not_start_is_explained_by_its_log() {
    let broken = RabbitMq::new(RabbitMqVersion::V4_3).config("no_such_setting = 1").launch();
    let error = broken.unwrap_err().to_string();
    assert!(error.contains("RabbitMQ 4.3 was started and ended"), "{error}");
    assert!(error.contains("no_such_setting"), "{error}");
}

#[test]
fn server_of_the_environment_is_checked_and_left_alone() {
    let server = RabbitMq::new(RabbitMqVersion::V4_3).launch().unwrap();
    let old = RabbitMq::new(RabbitMqVersion::V3_10);
    let current = RabbitMq::new(RabbitMqVersion::V4_3);
    let url = server.url();
    let only = |wanted: &'static str, url: &str| {
        let url = url.to_owned();
        move |name: &str| (name == wanted).then(|| url.clone())
    };

    let found = in_environment(&current, only("ANYBROKER_RABBITMQ_URL", url)).unwrap().unwrap();
    assert_eq!((found.0.as_str(), found.1.as_str()), (url, server.version()));
    // The general variable may name another version; the particular one may not.
    assert!(in_environment(&old, only("ANYBROKER_RABBITMQ_URL", url)).unwrap().is_none());
    let error = in_environment(&old, only("ANYBROKER_RABBITMQ_310_URL", url)).unwrap_err();
    assert!(error.to_string().contains("instead of RabbitMQ 3.10"), "{error}");

    let mut foreign = Server::foreign(Box::new(current.clone()), found.0, found.1);
    assert!(foreign.pause().is_err() && foreign.kill().is_err() && foreign.restart().is_err());
    drop(foreign);
    amqp::probe(url).unwrap();

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}", silent.local_addr().unwrap());
    drop(silent);
    let error = in_environment(&current, only("ANYBROKER_RABBITMQ_43_URL", &url)).unwrap_err();
    assert!(error.to_string().starts_with("ANYBROKER_RABBITMQ_43_URL is set, but no RabbitMQ"));
}
