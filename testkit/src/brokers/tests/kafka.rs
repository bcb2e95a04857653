use crate::brokers::find::in_environment;
use crate::brokers::{Kafka, KafkaVersion, kafka_protocol};

#[test]
fn killed_broker_comes_back_on_its_port_with_its_data() {
    for (version, stated) in [(KafkaVersion::V3_9, "3.9"), (KafkaVersion::V4_3, "4.3")] {
        let kafka = Kafka::new().version(version);
        let mut server = kafka.launch().unwrap();
        assert_eq!(server.version(), stated);
        let url = server.url().to_owned();
        let place = url.strip_prefix("kafka://").unwrap();
        let topics = r#"java -cp "$PROGRAMS/*" org.apache.kafka.tools.TopicCommand "$@""#;
        let command = ["sh", "-c", topics, "sh", "--bootstrap-server", place];
        server.exec(&[&command[..], &["--create", "--topic", "kept"]].concat()).unwrap();
        server.kill().unwrap();
        kafka_protocol::probe(&url).unwrap_err();
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        let listed = server.exec(&[&command[..], &["--list"]].concat()).unwrap();
        assert!(listed.contains("kept"), "{listed}");

        let other = match version {
            KafkaVersion::V3_9 => (KafkaVersion::V4_3, "ANYBROKER_KAFKA_43_URL"),
            KafkaVersion::V4_3 => (KafkaVersion::V3_9, "ANYBROKER_KAFKA_39_URL"),
        };
        let wanted = Kafka::new().version(other.0);
        let only = |name: &str| (name == other.1).then(|| url.clone());
        let error = in_environment(&wanted, only).unwrap_err().to_string();
        assert!(error.contains("instead of Kafka"), "{error}");
    }
}

#[test]
fn broker_with_its_own_user_tls_and_configuration() {
    let server = Kafka::new()
        .user("someone", "passw0rd")
        .tls()
        .config("message.max.bytes=54321")
        .launch()
        .unwrap();
    assert!(server.url().starts_with("kafka://someone:passw0rd@127.0.0.1:"));
    let wrong = server.url().replace("passw0rd", "wr0ng");
    let refused = kafka_protocol::probe(&wrong).unwrap_err().to_string();
    assert!(refused.contains("refuses the login with error 58"), "{refused}");

    let tls = server.tls().unwrap();
    let settings = format!(
        "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-256\n\
         sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \
         username=\"someone\" password=\"passw0rd\";\n\
         ssl.truststore.type=PEM\nssl.truststore.location={}\n",
        tls.authority.display()
    );
    let place = tls.url.rsplit_once('@').unwrap().1;
    // The file is written where the program runs, which may be a container.
    let configs = r#"printf "%s" "$1" >"$DATA/client.properties"
        java -cp "$PROGRAMS/*" kafka.admin.ConfigCommand --bootstrap-server "$2" \
            --command-config "$DATA/client.properties" \
            --describe --all --entity-type brokers --entity-name 1"#;
    let shown = server.exec(&["sh", "-c", configs, "sh", &settings, place]);
    assert!(shown.as_ref().is_ok_and(|shown| shown.contains("54321")), "{shown:?}");
}

#[test]
fn broker_that_does_not_start_is_explained_by_its_log() {
    for version in [KafkaVersion::V3_9, KafkaVersion::V4_3] {
        let broken = Kafka::new().version(version).config("log.roll.ms=soon").launch();
        let error = broken.unwrap_err().to_string();
        assert!(error.contains("was started and ended"), "{error}");
        assert!(error.contains("soon"), "{error}");
    }
}
