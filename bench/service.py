"""The same work through the service, by way of the SDK."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs import CONTENT, STYLE, Job, Timing
from machine import OtherLoad, cpu_seconds
from processes import Server, running_server

from nst_client import Client
from nst_client.events import PreviewEvent, ProgressEvent


@dataclass(frozen=True)
class Service:
    """A server of its own and a client of it."""

    server: Server
    client: Client

    def run(self, job: Job) -> Timing:
        """Runs the job to its result, with every preview fetched on the way."""
        cpu = self._cpu_seconds()
        progressed: list[float] = []
        with OtherLoad() as others:
            start = time.perf_counter()
            running = self.client.stylize(CONTENT, STYLE, size=job.size, iterations=job.iterations)
            for event in running:
                if isinstance(event, ProgressEvent):
                    progressed.append(time.perf_counter())
            result = running.wait()
            call = time.perf_counter() - start
        used = {name: seconds - cpu[name] for name, seconds in self._cpu_seconds().items()}
        return Timing(progressed[-1] - progressed[0], call, result.run_seconds, used, others.processors)

    def first_preview_seconds(self, content: bytes, style: bytes, size: int) -> float:
        """Seconds from the call to the first preview in hand; the job is then cancelled."""
        start = time.perf_counter()
        job = self.client.stylize(content, style, size=size)
        seconds = 0.0
        for event in job:
            if isinstance(event, PreviewEvent) and not seconds:
                seconds = time.perf_counter() - start
                job.cancel()
        return seconds

    def _cpu_seconds(self) -> dict[str, float]:
        return {"client": cpu_seconds(os.getpid()), **self.server.cpu_seconds()}


@contextmanager
def service(**environment: str) -> Iterator[Service]:
    """A service for as long as the block runs, with these settings in its environment."""
    with running_server(**environment) as server, Client(server.address) as client:
        yield Service(server, client)
