"""with_redis.py write URL STREAM MODE | read URL STREAM COUNT"""

import sys

import redis
from cloudevents.core.bindings import kafka

import events

command, url, stream, argument = sys.argv[1:]
client = redis.Redis.from_url(url)

# The SDK has no binding for Redis. Fields are what headers are on Kafka; `data` is the value.
if command == "write":
    to_message = {
        "binary": kafka.to_binary_event,
        "structured": kafka.to_structured_event,
    }[argument]
    for event in events.from_lines():
        message = to_message(event)
        client.xadd(stream, {**message.headers, "data": message.value})
else:
    for _, fields in client.xrange(stream, count=int(argument)):
        headers = {name.decode(): value for name, value in fields.items()}
        value = headers.pop("data")
        events.to_line(kafka.from_kafka_event(kafka.KafkaMessage(headers, None, value)))
