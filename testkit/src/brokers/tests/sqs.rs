use crate::brokers::address::Address;
use crate::brokers::{ElasticMq, Sns, query};

#[test]
fn persistent_server_comes_back_on_its_port_with_its_queues() {
    let mut server = ElasticMq::new().persistent().launch().unwrap();
    let url = server.url().to_owned();
    let address = Address::parse(&url).unwrap();
    query::call(&address, "CreateQueue", "&QueueName=kept").unwrap();
    server.kill().unwrap();
    query::probe(&url, "ListQueues").unwrap_err();
    server.restart().unwrap();
    assert_eq!(server.url(), url);
    let (_, queues) = query::call(&address, "ListQueues", "").unwrap();
    assert!(queues.contains("/kept<"), "{queues}");
}

#[test]
fn fan_out_server_answers_for_queues_and_topics() {
    let mut server = Sns::new().launch().unwrap();
    server.restart().unwrap();
    query::probe(server.url(), "ListTopics").unwrap();
}
