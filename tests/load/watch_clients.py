"""Processes full of watchers: those that note how old each event is when it comes, and those that never read."""

import asyncio
import time
from dataclasses import dataclass, field

import grpc

from nst.v1.job_service_pb2 import GetJobRequest, WatchJobRequest, WatchJobResponse
from nst.v1.job_service_pb2_grpc import JobServiceStub

METHOD = "/nst.v1.JobService/WatchJob"
Call = grpc.aio.UnaryStreamCall[bytes, bytes]


@dataclass
class Seen:
    """What some watchers were sent.

    Attributes:
        lags: age of each event on receipt, in seconds, by `time.time`.
        pictures: previews that came with their picture.
        previews: previews in all.
    """

    lags: list[float] = field(default_factory=list)
    pictures: int = 0
    previews: int = 0

    def __iadd__(self, other: "Seen") -> "Seen":
        self.lags += other.lags
        self.pictures += other.pictures
        self.previews += other.previews
        return self


def watch(address: str, job_ids: list[str], watchers: int, omit_pictures: bool, settle: float, seconds: float) -> Seen:
    """Follows the jobs by turns from their latest events on; what comes after `settle` seconds is noted."""
    return asyncio.run(_watch(address, job_ids, watchers, omit_pictures, settle, seconds))


async def _watch(
    address: str, job_ids: list[str], watchers: int, omit_pictures: bool, settle: float, seconds: float
) -> Seen:
    seen = Seen()
    start = time.time() + settle
    async with _channel(address) as channel:
        calls = await _open(channel, job_ids, watchers, omit_pictures)
        following = [asyncio.create_task(_follow(call, seen, start)) for call in calls]
        await asyncio.sleep(settle + seconds)
        for task in following:
            task.cancel()
        ended = await asyncio.gather(*following, return_exceptions=True)
    for end in ended:
        if not isinstance(end, asyncio.CancelledError):
            raise AssertionError(f"a watcher ended early: {end!r}")
    return seen


async def _follow(call: Call, seen: Seen, start: float) -> None:
    while (data := await call.read()) is not grpc.aio.EOF:
        now = time.time()
        event = WatchJobResponse.FromString(data).event
        if event.time.seconds < start:
            continue
        seen.lags.append(now - event.time.seconds - event.time.nanos / 1e9)
        if event.HasField("preview"):
            seen.previews += 1
            seen.pictures += event.preview.HasField("image")


def never_read(address: str, job_ids: list[str], watchers: int, seconds: float) -> None:
    """Opens watches and reads nothing from them."""
    asyncio.run(_never_read(address, job_ids, watchers, seconds))


async def _never_read(address: str, job_ids: list[str], watchers: int, seconds: float) -> None:
    async with _channel(address) as channel:
        calls = await _open(channel, job_ids, watchers, omit_pictures=False)
        await asyncio.sleep(seconds)
        for call in calls:
            call.cancel()


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])


async def _open(channel: grpc.aio.Channel, job_ids: list[str], watchers: int, omit_pictures: bool) -> list[Call]:
    """Watches of the jobs by turns, each from the job's latest event on, so that nobody has to catch up."""
    stub = JobServiceStub(channel)
    jobs = [(await stub.GetJob(GetJobRequest(job_id=job_id))).job for job_id in job_ids]
    method = channel.unary_stream(METHOD)
    calls: list[Call] = []
    for number in range(watchers):
        job = jobs[number % len(jobs)]
        request = WatchJobRequest(job_id=job.job_id, after_sequence=job.last_sequence, omit_pictures=omit_pictures)
        calls.append(method(request.SerializeToString()))
    return calls
