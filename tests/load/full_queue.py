"""A queue that fills up: how long CreateJob takes near its limit and past it, and ListJobs with all of them.

No model server runs, so that every job waits. Run by `make load`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import grpc
import machine
from gateway_support import CONTENT, STYLE, tiny_spec, upload_messages
from load_server import load_server, percentile
from table import Table

from nst.v1 import image_pb2, job_pb2
from nst.v1.job_service_pb2 import ListJobsRequest
from nst.v1.job_service_pb2_grpc import JobServiceStub
from nst.v1.style_transfer_service_pb2 import CreateJobRequest
from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub

CALLERS = (1, 8)
CREATE_MS = 50.0
REFUSAL_MS = 10.0
PAGES = 20


class Measurement:
    """Calls to one gateway, timed."""

    def __init__(self, channel: grpc.aio.Channel, table: Table) -> None:
        self._making = StyleTransferServiceStub(channel)
        self._jobs = JobServiceStub(channel)
        self._table = table
        self._spec = tiny_spec()

    async def upload(self) -> None:
        """Stores the pictures of the jobs, which then refer to them."""
        for image, data in ((self._spec.content, CONTENT), (self._spec.styles[0].image, STYLE)):
            answer = await self._making.UploadImage(upload_messages(data))
            image.CopyFrom(image_pb2.Image(reference=answer.reference))

    async def create(self) -> None:
        """Makes a job."""
        await self._making.CreateJob(CreateJobRequest(request_id=str(uuid4()), spec=self._spec))

    async def be_refused(self) -> None:
        """Asks for a job past the limit."""
        try:
            await self.create()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return
            raise
        raise AssertionError("the queue is not full")

    async def list_page(self, size: int, *states: "job_pb2.JobState.ValueType") -> None:
        """Fetches the first page."""
        await self._jobs.ListJobs(ListJobsRequest(page_size=size, states=states))

    async def time(
        self, name: str, call: Callable[[], Awaitable[None]], calls: int, callers: int, most: float | None = None
    ) -> None:
        """Makes the calls, so many at a time, and notes how long they take; 99 of 100 at `most` so many ms."""
        left = iter(range(calls))
        took: list[float] = []

        async def caller() -> None:
            for _ in left:
                start = time.perf_counter()
                await call()
                took.append(1000 * (time.perf_counter() - start))

        await asyncio.gather(*(caller() for _ in range(callers)))
        p50, p99, largest = (percentile(took, share) for share in (0.5, 0.99, 1.0))
        target, kept = ("", None) if most is None else (f"p99 under {most:g}", p99 < most)
        found = f"p50 {p50:.1f}, p99 {p99:.1f}, largest {largest:.1f}"
        self._table.add(f"{name}, {callers} at a time ({calls} calls), ms", found, target, kept)


async def measure(jobs: int) -> Table:
    """Fills a queue of this length, and goes on asking."""
    table = Table("load-queue", f"a queue of {jobs} waiting jobs", details={"machine": machine.facts()})
    with load_server(NST_MAX_QUEUED_JOBS=str(jobs)) as server, machine.OtherLoad() as others:
        async with grpc.aio.insecure_channel(server.address) as channel:
            measurement = Measurement(channel, table)
            await measurement.upload()
            rest = jobs
            for callers in CALLERS:
                await measurement.time("CreateJob while the queue fills", measurement.create, jobs // 4, callers)
                rest -= jobs // 4
            for callers in reversed(CALLERS):
                await measurement.time(
                    "CreateJob, the queue nearly full", measurement.create, jobs // 4, callers, CREATE_MS
                )
                rest -= jobs // 4
            await asyncio.gather(*(measurement.create() for _ in range(rest)))
            for callers in CALLERS:
                await measurement.time("refusal past the limit", measurement.be_refused, jobs // 2, callers, REFUSAL_MS)
            await measurement.time("ListJobs, page of 50", lambda: measurement.list_page(50), PAGES, 1)
            await measurement.time("ListJobs, page of 500", lambda: measurement.list_page(500), PAGES, 1)
            failed = job_pb2.JOB_STATE_FAILED
            await measurement.time("ListJobs, none fits", lambda: measurement.list_page(50, failed), PAGES, 1)
            table.add("gateway's memory at the end (MiB)", server.resident_mib())
    table.add("processors busy for others", others.processors)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="The length of the queue.")
    return asyncio.run(measure(parser.parse_args().jobs)).told()


if __name__ == "__main__":
    sys.exit(main())
