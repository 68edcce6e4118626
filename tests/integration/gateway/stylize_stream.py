"""A Stylize stream that a test writes to and reads from as it likes."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway_support import SECONDS

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import StylizeRequest, StylizeStart
from nst_calls import Calls


class Stream:
    """One open stream; iterating gives its events."""

    def __init__(self, call: Calls) -> None:
        self._requests: queue.SimpleQueue[StylizeRequest | None] = queue.SimpleQueue()
        self.responses = call.making.Stylize(iter(self._requests.get, None), timeout=SECONDS)

    def send(self, **message: Any) -> None:
        """Sends one message, given by its field in StylizeRequest."""
        self._requests.put(StylizeRequest(**message))

    def start(self, spec: job_pb2.JobSpec, **fields: Any) -> None:
        """Sends the first message."""
        self.send(start=StylizeStart(spec=spec, **fields))

    def close(self) -> None:
        """Says that nothing more will be sent."""
        self._requests.put(None)

    def __iter__(self) -> Iterator[job_pb2.JobEvent]:
        for response in self.responses:
            if response.HasField("event"):
                yield response.event


@contextmanager
def stylize(call: Calls) -> Iterator[Stream]:
    """A stream that breaks where the block ends."""
    stream = Stream(call)
    try:
        yield stream
    finally:
        stream.responses.cancel()
        stream.close()


def attached(name: str, size: int, **header: Any) -> image_pb2.Image:
    """A picture whose bytes will come in chunks."""
    return image_pb2.Image(attached={"name": name, "header": {"size": size, **header}})


def chunk(name: str, data: bytes, offset: int = 0) -> image_pb2.ImageChunk:
    """A piece of an attached picture."""
    return image_pb2.ImageChunk(name=name, offset=offset, data=data)


def states(events: list[job_pb2.JobEvent]) -> list[int]:
    """The states that the job went through."""
    return [event.state.state for event in events if event.HasField("state")]


def is_running(event: job_pb2.JobEvent) -> bool:
    """True for progress events."""
    return event.HasField("progress")
