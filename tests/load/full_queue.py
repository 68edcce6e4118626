"""A queue that fills up: how long CreateJob takes near its limit and past it, and ListJobs with all of them.

No model server runs, so that every job waits. Run by `make load`.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import grpc
import machine
from gateway_support import CONTENT, STYLE, tiny_spec, upload_messages
from load_server import load_server, percentile
from processes import RESULTS
from report import Report

from nst.v1 import image_pb2, job_pb2
from nst.v1.job_service_pb2 import ListJobsRequest
from nst.v1.job_service_pb2_grpc import JobServiceStub
from nst.v1.style_transfer_service_pb2 import CreateJobRequest
from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub

CALLERS = (1, 8)
PAGES = 20


class Measurement:
    """Calls to one gateway, timed."""

    def __init__(self, channel: grpc.aio.Channel, report: Report) -> None:
        self._making = StyleTransferServiceStub(channel)
        self._jobs = JobServiceStub(channel)
        self._report = report
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

    async def time(self, name: str, target: str, call: Callable[[], Awaitable[None]], calls: int, callers: int) -> None:
        """Makes the calls, so many at a time, and notes how long they take."""
        left = iter(range(calls))
        took: list[float] = []

        async def caller() -> None:
            for _ in left:
                start = time.perf_counter()
                await call()
                took.append(1000 * (time.perf_counter() - start))

        await asyncio.gather(*(caller() for _ in range(callers)))
        ways = {label: [percentile(took, share)] for label, share in (("p50", 0.5), ("p99", 0.99), ("largest", 1.0))}
        self._report.add(f"{name}, {callers} at a time ({calls} calls)", "ms", target, ways)


async def measure(jobs: int) -> Report:
    """Fills a queue of this length, and goes on asking."""
    report = Report("load-queue", f"a queue of {jobs} waiting jobs", machine.facts())
    with load_server(NST_MAX_QUEUED_JOBS=str(jobs)) as server, machine.OtherLoad() as others:
        async with grpc.aio.insecure_channel(server.address) as channel:
            measurement = Measurement(channel, report)
            await measurement.upload()
            rest = jobs
            for callers in CALLERS:
                await measurement.time("CreateJob while the queue fills", "", measurement.create, jobs // 4, callers)
                rest -= jobs // 4
            for callers in reversed(CALLERS):
                await measurement.time(
                    "CreateJob, the queue nearly full", "p99 under 50", measurement.create, jobs // 4, callers
                )
                rest -= jobs // 4
            await asyncio.gather(*(measurement.create() for _ in range(rest)))
            for callers in CALLERS:
                await measurement.time("refusal past the limit", "under 10", measurement.be_refused, jobs // 2, callers)
            await measurement.time("ListJobs, page of 50", "", lambda: measurement.list_page(50), PAGES, 1)
            await measurement.time("ListJobs, page of 500", "", lambda: measurement.list_page(500), PAGES, 1)
            failed = job_pb2.JOB_STATE_FAILED
            await measurement.time("ListJobs, none fits", "", lambda: measurement.list_page(50, failed), PAGES, 1)
            report.add("gateway's memory at the end", "MiB", "", {"p50": [server.resident_mib()]})
    report.add("processors busy for others", "", "0", {"p50": [others.processors]})
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="The length of the queue.")
    report = asyncio.run(measure(parser.parse_args().jobs))
    report.show()
    report.write(RESULTS)


if __name__ == "__main__":
    main()
