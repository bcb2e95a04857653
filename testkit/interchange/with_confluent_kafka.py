"""with_confluent_kafka.py write URL TOPIC MODE | read URL TOPIC COUNT"""

import sys
import time
import uuid

from cloudevents.core.bindings import kafka
from confluent_kafka import Consumer, Producer

import events

command, url, topic, argument = sys.argv[1:]
settings = {"bootstrap.servers": url.removeprefix("kafka://")}

if command == "write":
    to_message = {
        "binary": kafka.to_binary_event,
        "structured": kafka.to_structured_event,
    }[argument]
    producer = Producer({**settings, "acks": "all"})
    refused = []
    for event in events.from_lines():
        message = to_message(event)
        producer.produce(
            topic,
            key=message.key,
            value=message.value,
            headers=list(message.headers.items()),
            on_delivery=lambda error, _: error and refused.append(error),
        )
    if producer.flush(20) or refused:
        sys.exit(f"not delivered: {refused}")
else:
    consumer = Consumer(
        {**settings, "group.id": str(uuid.uuid4()), "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    left, deadline = int(argument), time.monotonic() + 20
    while left > 0 and time.monotonic() < deadline:
        record = consumer.poll(0.1)
        if record is None or record.error():
            continue
        message = kafka.KafkaMessage(dict(record.headers()), record.key(), record.value())
        events.to_line(kafka.from_kafka_event(message))
        left -= 1
    consumer.close()
