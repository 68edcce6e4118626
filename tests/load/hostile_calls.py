"""Hostile calls to a real gateway over sockets: any bytes, any messages, in any order, broken off anywhere."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
from gateway_support import ANSWERS, CONTENT, tiny_spec
from random_messages import Fuzz
from reading_cases import REQUESTS, picture_files

from nst.v1 import job_pb2
from nst.v1 import job_service_pb2 as jobs_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2

SECONDS = 20.0
AT_ONCE = 16
# What grpc.aio makes of a write to a call that has ended. Its own status is lost then, but the gateway counts it.
OUR_OWN = "Internal error from Core"
MAKING, JOBS = "/nst.v1.StyleTransferService/", "/nst.v1.JobService/"
UNARY = {
    MAKING + "CreateJob": making_pb2.CreateJobRequest,
    MAKING + "GetServerInfo": making_pb2.GetServerInfoRequest,
    JOBS + "GetJob": jobs_pb2.GetJobRequest,
    JOBS + "ListJobs": jobs_pb2.ListJobsRequest,
    JOBS + "UpdateJob": jobs_pb2.UpdateJobRequest,
    JOBS + "CancelJob": jobs_pb2.CancelJobRequest,
    JOBS + "DeleteJob": jobs_pb2.DeleteJobRequest,
}
EXPECTED = ANSWERS | {grpc.StatusCode.CANCELLED}  # by us


@dataclass
class Outcome:
    """What came of the calls: how many ended how, and those that must not end so."""

    statuses: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


class Attacker:
    """Makes calls to one gateway."""

    def __init__(self, channel: grpc.aio.Channel, seed: str) -> None:
        self.outcome = Outcome()
        self._channel = channel
        self._seed = seed
        self._number = 0
        self._job_ids = ["0" * 32]

    async def attack(self, deadline: float) -> None:
        """Makes calls, some at once, until `time.monotonic` reaches the deadline."""
        await asyncio.gather(*(self._caller(deadline) for _ in range(AT_ONCE)))

    async def _caller(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._number += 1
            case = f"{self._seed}/{self._number}"
            fuzz = Fuzz(case, picture_files())
            call = fuzz.rng.choice((self._unary, self._unary, self._upload, self._stylize, self._watch, self._result))
            start = time.monotonic()
            status, details = grpc.StatusCode.OK, ""
            try:
                status = await call(fuzz)
            except grpc.aio.AioRpcError as error:
                status, details = error.code(), error.details() or ""
            if details.startswith(OUR_OWN):
                status = grpc.StatusCode.CANCELLED
            self.outcome.statuses[f"{call.__name__.removeprefix('_')} {status.name}"] += 1
            if status not in EXPECTED or time.monotonic() - start > SECONDS / 2:
                took = time.monotonic() - start
                self.outcome.findings.append(f"{case} {call.__name__}: {status.name} after {took:.1f} s: {details}")

    def _bytes(self, fuzz: Fuzz, message: object) -> bytes:
        data: bytes = message.SerializeToString()  # type: ignore[attr-defined]
        return fuzz.damaged(data) if fuzz.rng.random() < 0.1 else data

    def _job_id(self, fuzz: Fuzz) -> str:
        return fuzz.rng.choice(self._job_ids) if fuzz.rng.random() < 0.7 else fuzz.text()

    def _spec(self, fuzz: Fuzz) -> job_pb2.JobSpec:
        spec = tiny_spec()
        if fuzz.rng.random() < 0.6:
            spec.MergeFrom(fuzz.message(job_pb2.JobSpec))
        return spec

    async def _unary(self, fuzz: Fuzz) -> grpc.StatusCode:
        method, kind = fuzz.rng.choice(list(UNARY.items()))
        request = fuzz.message(kind)
        if hasattr(request, "job_id"):
            request.job_id = self._job_id(fuzz)
        if isinstance(request, making_pb2.CreateJobRequest):
            request = making_pb2.CreateJobRequest(request_id=f"{fuzz.rng.randrange(300)}", spec=self._spec(fuzz))
        if fuzz.rng.random() < 0.05:
            request = fuzz.message(fuzz.rng.choice(REQUESTS))
        answer = await self._channel.unary_unary(method)(self._bytes(fuzz, request), timeout=SECONDS)
        if method.endswith("CreateJob"):
            self._job_ids = [*self._job_ids[-20:], making_pb2.CreateJobResponse.FromString(answer).job.job_id]
        return grpc.StatusCode.OK

    async def _upload(self, fuzz: Fuzz) -> grpc.StatusCode:
        data = fuzz.data()
        messages = [
            making_pb2.UploadImageRequest(header={"size": len(data)}),
            making_pb2.UploadImageRequest(chunk={"data": data}),
        ]
        call = self._channel.stream_unary(MAKING + "UploadImage")(timeout=SECONDS)
        return await self._converse(fuzz, call, messages, making_pb2.UploadImageRequest)

    async def _stylize(self, fuzz: Fuzz) -> grpc.StatusCode:
        spec = self._spec(fuzz)
        if fuzz.rng.random() < 0.3:
            spec.content.CopyFrom(
                job_pb2.JobSpec(content={"attached": {"name": "photo", "header": {"size": len(CONTENT)}}}).content
            )
        messages = [
            making_pb2.StylizeRequest(start={"spec": spec}),
            making_pb2.StylizeRequest(chunk={"name": "photo", "data": CONTENT}),
            making_pb2.StylizeRequest(update=fuzz.message(job_pb2.JobUpdate)),
            making_pb2.StylizeRequest(cancel={}),
        ]
        call = self._channel.stream_stream(MAKING + "Stylize")(timeout=SECONDS)
        return await self._converse(fuzz, call, messages, making_pb2.StylizeRequest)

    async def _converse(self, fuzz: Fuzz, call: object, messages: list, kind: type) -> grpc.StatusCode:  # type: ignore[type-arg]
        """Sends the messages with some left out, doubled, moved or replaced, and then leaves or listens."""
        rng, sent = fuzz.rng, list(messages)
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            place = rng.randint(0, len(sent))
            sent.insert(place, fuzz.message(kind) if rng.random() < 0.5 else rng.choice(messages))
        if rng.random() < 0.3:
            del sent[rng.randrange(len(sent))]
        if rng.random() < 0.1:
            rng.shuffle(sent)
        try:
            for message in sent:
                await call.write(self._bytes(fuzz, message))  # type: ignore[attr-defined]
            if rng.random() < 0.8:
                await call.done_writing()  # type: ignore[attr-defined]
                if hasattr(call, "read"):
                    await call.read()
                    return grpc.StatusCode.CANCELLED if call.cancel() else await call.code()
                await call  # type: ignore[misc]
            call.cancel()  # type: ignore[attr-defined]
        except asyncio.InvalidStateError:
            pass  # the call ended while we wrote
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        code: grpc.StatusCode = await call.code()  # type: ignore[attr-defined]
        return code

    async def _watch(self, fuzz: Fuzz) -> grpc.StatusCode:
        request = fuzz.message(jobs_pb2.WatchJobRequest)
        request.job_id = self._job_id(fuzz)
        return await self._first_message(JOBS + "WatchJob", self._bytes(fuzz, request))

    async def _result(self, fuzz: Fuzz) -> grpc.StatusCode:
        request = fuzz.message(making_pb2.GetResultRequest)
        request.job_id = self._job_id(fuzz)
        return await self._first_message(MAKING + "GetResult", self._bytes(fuzz, request))

    async def _first_message(self, method: str, request: bytes) -> grpc.StatusCode:
        call = self._channel.unary_stream(method)(request, timeout=SECONDS)
        await call.read()
        call.cancel()
        return await call.code()
