"""with_pika.py write URL QUEUE MODE | read URL QUEUE COUNT"""

import sys
import time

import pika
from cloudevents.core.bindings import rabbitmq

import events

command, url, queue, argument = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()

if command == "write":
    to_message = {
        "binary": rabbitmq.to_binary_event,
        "structured": rabbitmq.to_structured_event,
    }[argument]
    channel.confirm_delivery()
    for event in events.from_lines():
        message = to_message(event)
        properties = pika.BasicProperties(
            headers=message.headers, content_type=message.content_type, delivery_mode=2
        )
        channel.basic_publish("", queue, message.body, properties, mandatory=True)
else:
    left, deadline = int(argument), time.monotonic() + 20
    while left > 0 and time.monotonic() < deadline:
        method, properties, body = channel.basic_get(queue)
        if method is None:
            time.sleep(0.01)
            continue
        message = rabbitmq.RabbitMQMessage(properties.headers, properties.content_type, body)
        events.to_line(rabbitmq.from_rabbitmq_event(message))
        channel.basic_ack(method.delivery_tag)
        left -= 1
connection.close()
