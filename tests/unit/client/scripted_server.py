"""A gRPC server over a real socket whose streams break where a test says so."""

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from nst.v1 import image_pb2, job_pb2
from nst.v1 import job_service_pb2 as js
from nst.v1 import style_transfer_service_pb2 as sts
from nst.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from nst.v1.style_transfer_service_pb2_grpc import (
    StyleTransferServiceServicer,
    add_StyleTransferServiceServicer_to_server,
)

JOB_ID = "job-1"
Breaker = Callable[[grpc.ServicerContext], None]


@dataclass(frozen=True)
class Fault:
    """A watcher's stream that breaks after so many messages; `how` does the breaking."""

    after: int
    how: Breaker


def abort(code: grpc.StatusCode, message: str, *details: Message) -> Breaker:
    """Ends a call with an error, whose google.rpc details are these."""

    def how(context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            status.details.add().Pack(detail)
        if details:
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, message)

    return how


def state_event(state: job_pb2.JobState.ValueType, reason: str = "") -> job_pb2.JobEvent:
    return job_pb2.JobEvent(job_state=state, state=job_pb2.StateChange(state=state, reason=reason))


def progress_event(iteration: int, iterations: int = 10, control_version: int = 0) -> job_pb2.JobEvent:
    progress = job_pb2.Progress(
        iteration=iteration,
        iterations=iterations,
        control_version=control_version,
        scale=1,
        scales=1,
        width=4,
        height=3,
        total_loss=100.0 / iteration,
        losses={"content": 10.0 / iteration, "style": 90.0 / iteration},
        iterations_per_second=2.0,
        seconds_left=float(iterations - iteration),
    )
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, attempt=1, progress=progress)


def preview_event(iteration: int, data: bytes) -> job_pb2.JobEvent:
    preview = job_pb2.Preview(iteration=iteration, width=4, height=3, image=encoded(data))
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, attempt=1, preview=preview)


def result_event(
    data: bytes | None, stop_reason: job_pb2.StopReason.ValueType = job_pb2.STOP_REASON_ITERATIONS
) -> job_pb2.JobEvent:
    image = encoded(data) if data is not None else None
    result = job_pb2.Result(iterations=10, width=4, height=3, image=image, run_seconds=1.5, stop_reason=stop_reason)
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_SUCCEEDED, attempt=1, result=result)


def out_of_time_event(iterations: int = 7) -> job_pb2.JobEvent:
    """The end of a job whose time limit passed, with the picture that GetResult sends."""
    reference = image_pb2.ImageReference(sha256="c" * 64)
    partial = job_pb2.Result(iterations=iterations, width=4, height=3, reference=reference, run_seconds=1.5)
    error = job_pb2.JobError(code=4, reason="DEADLINE_EXCEEDED", message="the time limit passed", partial=partial)
    return job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, attempt=1, error=error)


def encoded(data: bytes) -> image_pb2.Image:
    return image_pb2.Image(encoded=image_pb2.EncodedImage(data=data))


def without_pictures(message: js.WatchJobResponse) -> js.WatchJobResponse:
    bare = js.WatchJobResponse.FromString(message.SerializeToString())
    for kind in ("preview", "result"):
        if message.event.HasField(kind):
            getattr(bare.event, kind).ClearField("image")
    return bare


def result_messages(
    data: bytes, *, chunk: int = 512 * 1024, sha256: str | None = None, tensor: image_pb2.TensorHeader | None = None
) -> list[sts.GetResultResponse]:
    """What GetResult sends for these bytes; `sha256` announces another digest than theirs."""
    digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
    header = image_pb2.ImageHeader(size=len(data), sha256=digest, tensor=tensor)
    return [
        sts.GetResultResponse(header=sts.ResultHeader(image=header)),
        *(
            sts.GetResultResponse(chunk=image_pb2.ImageChunk(offset=offset, data=data[offset : offset + chunk]))
            for offset in range(0, len(data), chunk)
        ),
    ]


class ScriptedServer(JobServiceServicer, StyleTransferServiceServicer):
    """Has one job, whose history a test writes, and keeps what it was sent.

    Attributes:
        faults: the watchers that come take them one by one; None is a stream that does not break.
        breaks: calls of a method take them one by one as they come; None works. GetResult also takes those of
            "GetResult/chunk", between its first chunk and its second.
        watches: `after_sequence` of every watcher.
        received: requests by method name.
        metadata: of every call.
        uploads: bytes by digest.
        result: what GetResult sends.
        jobs: what ListJobs tells, two a page, and GetJob of those that are not the one job.
        ignore_after_sequence: replay the whole history to every watcher.
        heartbeat_seconds: a silent watcher is sent a heartbeat this often.
    """

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.faults: deque[Fault | None] = deque()
        self.breaks: defaultdict[str, deque[Breaker | None]] = defaultdict(deque)
        self.watches: list[int] = []
        self.received: dict[str, list[Any]] = {}
        self.metadata: list[dict[str, str | bytes]] = []
        self.uploads: dict[str, bytes] = {}
        self.result: list[sts.GetResultResponse] = []
        self.info = sts.GetServerInfoResponse(version="scripted")
        self.jobs: list[job_pb2.Job] = []
        self.heartbeat_seconds: float | None = None
        self.ignore_after_sequence = False
        self.heartbeats = 0
        self.open_watchers = 0
        self._history: list[job_pb2.JobEvent] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        add_JobServiceServicer_to_server(self, self._server)
        add_StyleTransferServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every call and stop listening; once more does nothing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.stop(0).wait()
        self._pool.shutdown()

    def publish(self, *events: job_pb2.JobEvent) -> None:
        """Append to the history; watchers are sent it at once."""
        with self._changed:
            for event in events:
                event.job_id, event.sequence = JOB_ID, len(self._history) + 1
                self._history.append(event)
            self._changed.notify_all()

    def wait_for(self, method: str, count: int = 1) -> list[Any]:
        """The requests to a method, once there are `count` of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received.get(method, ())) >= count, timeout=30)
            return self.received[method]

    def _receive(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        with self._changed:
            self.received.setdefault(method, []).append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self._changed.notify_all()
        self._break(method, context)

    def _break(self, method: str, context: grpc.ServicerContext) -> None:
        if self.breaks[method] and (how := self.breaks[method].popleft()):
            how(context)

    def _job(self) -> job_pb2.Job:
        last = self._history[-1] if self._history else job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_QUEUED)
        return job_pb2.Job(
            job_id=JOB_ID,
            state=last.job_state,
            last_sequence=len(self._history),
            control_version=len(self.received.get("UpdateJob", ())),
        )

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[js.WatchJobResponse]:  # type: ignore[override]
        fault = self.faults.popleft() if self.faults else None
        self.watches.append(request.after_sequence)
        self._receive("WatchJob", request, context)
        self._count_watchers(1)
        context.add_callback(lambda: self._count_watchers(-1))
        position, sent = 0 if self.ignore_after_sequence else request.after_sequence, 0
        while not (fault and sent == fault.after):
            event = self._next_event(position, context)
            if event is None:
                return
            yield without_pictures(event) if request.omit_pictures else event
            sent += 1
            position = max(position, event.event.sequence)
        fault.how(context)

    def _next_event(self, position: int, context: grpc.ServicerContext) -> js.WatchJobResponse | None:
        def over() -> bool:
            return self._stopped or not context.is_active()

        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._history) > position or self._ended() or over(), self.heartbeat_seconds
            ):
                self.heartbeats += 1
                self._changed.notify_all()
                return js.WatchJobResponse(heartbeat=sts.Heartbeat())
            if len(self._history) > position and not over():
                return js.WatchJobResponse(event=self._history[position])
            return None

    def _count_watchers(self, change: int) -> None:
        with self._changed:
            self.open_watchers += change
            self._changed.notify_all()

    def wait_for_heartbeats(self, count: int) -> None:
        """Return once so many heartbeats were sent."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.heartbeats >= count, timeout=30)

    def wait_until_unwatched(self) -> None:
        """Return once no watcher's stream is open."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self.open_watchers, timeout=30)

    def _ended(self) -> bool:
        return bool(self._history) and self._history[-1].job_state >= job_pb2.JOB_STATE_SUCCEEDED

    def stay_silent(self, context: grpc.ServicerContext) -> None:
        """A fault: sends nothing more, and keeps the stream open until the watcher leaves."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not context.is_active())

    def UploadImage(self, request_iterator: Any, context: grpc.ServicerContext) -> sts.UploadImageResponse:  # type: ignore[override]
        messages = list(request_iterator)
        self._receive("UploadImage", messages, context)
        data = b"".join(message.chunk.data for message in messages[1:])
        digest = hashlib.sha256(data).hexdigest()
        assert messages[0].header.sha256 == digest
        assert messages[0].header.size == len(data)
        self.uploads[digest] = data
        return sts.UploadImageResponse(reference=image_pb2.ImageReference(sha256=digest), width=4, height=3)

    def CreateJob(self, request: Any, context: grpc.ServicerContext) -> sts.CreateJobResponse:  # type: ignore[override]
        self._receive("CreateJob", request, context)
        return sts.CreateJobResponse(job=self._job())

    def GetResult(self, request: Any, context: grpc.ServicerContext) -> Iterator[sts.GetResultResponse]:  # type: ignore[override]
        self._receive("GetResult", request, context)
        for position, message in enumerate(self.result):
            if position == 2:
                self._break("GetResult/chunk", context)
            yield message

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> sts.GetServerInfoResponse:  # type: ignore[override]
        self._receive("GetServerInfo", request, context)
        return self.info

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> js.GetJobResponse:  # type: ignore[override]
        self._receive("GetJob", request, context)
        others = {job.job_id: job for job in self.jobs if job.job_id != JOB_ID}
        return js.GetJobResponse(job=others.get(request.job_id) or self._job())

    def ListJobs(self, request: Any, context: grpc.ServicerContext) -> js.ListJobsResponse:  # type: ignore[override]
        self._receive("ListJobs", js.ListJobsRequest.FromString(request.SerializeToString()), context)
        start = int(request.page_token or 0)
        end = start + 2
        return js.ListJobsResponse(jobs=self.jobs[start:end], next_page_token=str(end) if end < len(self.jobs) else "")

    def UpdateJob(self, request: Any, context: grpc.ServicerContext) -> js.UpdateJobResponse:  # type: ignore[override]
        self._receive("UpdateJob", request, context)
        return js.UpdateJobResponse(job=self._job())

    def CancelJob(self, request: Any, context: grpc.ServicerContext) -> js.CancelJobResponse:  # type: ignore[override]
        self._receive("CancelJob", request, context)
        if not self._ended():
            self.publish(state_event(job_pb2.JOB_STATE_CANCELLED, "cancelled by the client"))
        return js.CancelJobResponse(job=self._job())

    def DeleteJob(self, request: Any, context: grpc.ServicerContext) -> js.DeleteJobResponse:  # type: ignore[override]
        self._receive("DeleteJob", request, context)
        return js.DeleteJobResponse()
