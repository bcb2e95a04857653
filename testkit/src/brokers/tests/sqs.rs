use crate::brokers::address::Address;
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
