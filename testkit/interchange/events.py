"""Events between the tests and the official CloudEvents SDK, as lines of JSON.

A line holds `attributes` (texts), `times` (microseconds since 1970) and `data`: a value in `json`,
or bytes in `hex`.
"""

import json
import sys
from datetime import datetime, timedelta, timezone

from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse

# CloudEvents knows integers as well as texts: these are written as such.
INTEGERS = {"level", "schemaversion"}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def from_lines():
    """The events that the tests want written."""
    return [from_line(json.loads(line)) for line in sys.stdin]


def from_line(line):
    attributes = {
        name: int(value) if name in INTEGERS else value
        for name, value in line["attributes"].items()
    }
    for name, microseconds in line["times"].items():
        time = EPOCH + timedelta(microseconds=microseconds)
        # The SDK knows one time; an extension is a text to it.
        attributes[name] = time if name == "time" else time.isoformat().replace("+00:00", "Z")
    if "json" in line["data"]:
        data = line["data"]["json"]
    else:
        data = bytes.fromhex(line["data"]["hex"])
        if attributes["datacontenttype"].startswith("text/"):
            data = data.decode()
    return CloudEvent(attributes, data or None)


def to_line(event):
    """Prints an event that was read."""
    attributes, times = {}, {}
    for name, value in event.get_attributes().items():
        if name in ("time", "expirytime"):
            time = value if isinstance(value, datetime) else isoparse(value)
            times[name] = (time - EPOCH) // timedelta(microseconds=1)
        else:
            attributes[name] = str(value)
    data = event.get_data()
    if data is None:
        data = b""
    if isinstance(data, str):
        data = data.encode()
    data = {"hex": data.hex()} if isinstance(data, bytes) else {"json": data}
    print(json.dumps({"attributes": attributes, "times": times, "data": data}))
