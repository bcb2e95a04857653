use crate::brokers::address::Address;
use crate::brokers::find::in_environment;
use crate::brokers::{ElasticMq, Sns, query};

#[test]
fn persistent_server_comes_back_on_its_port_with_its_messages() {
    let mut server = ElasticMq::new().persistent().launch().unwrap();
    let url = server.url().to_owned();
    let address = Address::parse(&url).unwrap();
    query::call(&address, "CreateQueue", "&QueueName=kept").unwrap();
    let queue = format!("&QueueUrl={}/000000000000/kept", url.replace("sqs+", ""));
    query::call(&address, "SendMessage", &format!("{queue}&MessageBody=still-here")).unwrap();
    server.kill().unwrap();
    query::probe(&url, "ListQueues").unwrap_err();
    server.restart().unwrap();
    assert_eq!(server.url(), url);
    let (_, received) = query::call(&address, "ReceiveMessage", &queue).unwrap();
    assert!(received.contains("still-here"), "{received}");
}

#[test]
fn fan_out_server_answers_for_queues_and_topics() {
    let mut server = Sns::new().launch().unwrap();
    server.restart().unwrap();
    query::probe(server.url(), "ListTopics").unwrap();
}

#[test]
fn account_at_aws_is_not_tested_on_unless_named_for_it() {
    let only = |name| move |asked: &str| (asked == name).then(|| "sqs://eu-central-1".to_owned());
    assert!(in_environment(&Sns::new(), only("ANYBROKER_SQS_URL")).unwrap().is_none());
    let error = in_environment(&Sns::new(), only("ANYBROKER_SNS_URL")).unwrap_err().to_string();
    assert!(error.ends_with("AWS answers there instead of MiniStack 1.5"), "{error}");
}
