"""with_boto3.py write URL queue:NAME|topic:NAME structured | read URL queue:NAME COUNT"""

import sys
import time

import boto3
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

import events

command, url, place, argument = sys.argv[1:]
# Emulators of AWS ask for credentials, and take any.
server = {
    "endpoint_url": url.removeprefix("sqs+"),
    "region_name": "us-east-1",
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
}
kind, name = place.split(":")
sqs = boto3.client("sqs", **server)

if command == "write":
    # There is no binary mode on SQS: it carries text.
    assert argument == "structured"
    for event in events.from_lines():
        body = JSONFormat().write(event).decode()
        if kind == "topic":
            sns = boto3.client("sns", **server)
            sns.publish(TopicArn=sns.create_topic(Name=name)["TopicArn"], Message=body)
        else:
            sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"], MessageBody=body)
else:
    queue = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    left, deadline = int(argument), time.monotonic() + 20
    while left > 0 and time.monotonic() < deadline:
        received = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=min(left, 10), WaitTimeSeconds=1
        )
        for message in received.get("Messages", []):
            events.to_line(JSONFormat().read(CloudEvent, message["Body"]))
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            left -= 1
