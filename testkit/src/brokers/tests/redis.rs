use std::net::TcpStream;

use crate::brokers::find::in_environment;
use crate::brokers::{Redis, RedisVersion, resp};

const VERSIONS: [(RedisVersion, &str, &str); 3] = [
    (RedisVersion::V7_0, "7.0.", "redis-cli"),
    (RedisVersion::V8, "8.", "redis-cli"),
    (RedisVersion::Valkey9, "Valkey 9.", "valkey-cli"),
];

#[test]
fn killed_server_comes_back_on_its_port_with_its_data_or_without() {
    for (version, stated, client) in VERSIONS {
        let mut server = Redis::new(version).launch().unwrap();
        assert!(server.version().starts_with(stated), "{}", server.version());
        let url = server.url().to_owned();
        server.exec(&[client, "-u", &url, "XADD", "kept", "*", "k", "v"]).unwrap();
        server.kill().unwrap();
        resp::probe(&url).unwrap_err();
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        let length = server.exec(&[client, "-u", &url, "XLEN", "kept"]).unwrap();
        assert_eq!(length.trim(), "1");
        server.restart_empty().unwrap();
        let length = server.exec(&[client, "-u", &url, "XLEN", "kept"]).unwrap();
        assert_eq!(length.trim(), "0");
        server.stop();
        TcpStream::connect(url.strip_prefix("redis://").unwrap()).unwrap_err();
    }
}

#[test]
fn server_with_its_own_user_tls_and_configuration() {
    let server = Redis::new(RedisVersion::V8)
        .user("some@one", "p@ss \"word")
        .tls()
        .config("stream-node-max-entries 7")
        .launch()
        .unwrap();
    assert!(server.url().starts_with("redis://some%40one:p%40ss%20%22word@127.0.0.1:"));
    let tls = server.tls().unwrap();
    let authority = tls.authority.display().to_string();
    let shown = server.exec(&[
        "redis-cli",
        "-u",
        &tls.url,
        "--cacert",
        &authority,
        "CONFIG",
        "GET",
        "stream-node-max-entries",
    ]);
    assert!(shown.as_ref().unwrap().contains("\n7"), "{shown:?}");

    let wrong = server.url().replace("%20%22word", "");
    let refused = resp::probe(&wrong).unwrap_err().to_string();
    assert!(refused.contains("WRONGPASS") && !refused.contains("p@ss"), "{refused}");
    let anonymous = server.url().replace("some%40one:p%40ss%20%22word@", "");
    assert!(resp::probe(&anonymous).unwrap_err().to_string().contains("NOAUTH"));
}

#[test]
fn server_that_does_not_start_is_explained_by_its_log() {
    let broken = Redis::new(RedisVersion::V7_0).config("no-such-setting 1").launch();
    let error = broken.unwrap_err().to_string();
    assert!(error.contains("Redis 7.0 was started and ended"), "{error}");
    assert!(error.contains("no-such-setting"), "{error}");
}

#[test]
fn server_of_another_version_is_refused() {
    let server = Redis::new(RedisVersion::Valkey9).launch().unwrap();
    let redis = Redis::new(RedisVersion::V8);
    let url = server.url();
    let only = |wanted: &'static str| move |name: &str| (name == wanted).then(|| url.to_owned());
    assert!(in_environment(&redis, only("ANYBROKER_REDIS_URL")).unwrap().is_none());
    let error = in_environment(&redis, only("ANYBROKER_REDIS_8_URL")).unwrap_err().to_string();
    assert!(error.contains("version Valkey 9.") && error.contains("of Redis 8"), "{error}");
}
