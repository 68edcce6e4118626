"""JobService: following and steering jobs."""

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import aclosing

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2, job_service_pb2_grpc
from nst.v1 import job_service_pb2 as pb
from nst.v1 import style_transfer_service_pb2 as service_pb2
from nst_server.gateway.calls import Context
from nst_server.gateway.errors import invalid
from nst_server.gateway.specs import check_update
from nst_server.gateway.watching import Watching
from nst_server.jobs.commands import JobCommands

DEFAULT_PAGE = 50
LARGEST_PAGE = 500


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """The RPCs of nst.v1.JobService; what they raise, the call interceptor turns into statuses."""

    def __init__(self, commands: JobCommands, watching: Watching) -> None:
        self._commands = commands
        self._watching = watching

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=await self._commands.get(named(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        for state in request.states:
            if state not in job_pb2.JobState.values() or state == job_pb2.JOB_STATE_UNSPECIFIED:
                raise invalid("states", f"{state} is no state that a job can be in")
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        records = sorted([record async for record in self._commands.records.all()], key=_position, reverse=True)
        if request.page_token:
            after = _decoded(request.page_token)
            records = [record for record in records if _position(record) < after]
        page: list[job_pb2.Job] = []
        for index, record in enumerate(records):
            job = await self._commands.describe(record)
            if not request.states or job.state in request.states:
                page.append(job)
            if len(page) == size:
                more = index + 1 < len(records)
                return pb.ListJobsResponse(jobs=page, next_page_token=_encoded(_position(record)) if more else "")
        return pb.ListJobsResponse(jobs=page)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        with self._watching.place():
            job = await self._commands.get(named(request.job_id))
            events = self._watching.events(job, request.after_sequence, omit_pictures=request.omit_pictures)
            async with aclosing(events):
                async for event in events:
                    if event is None:
                        yield pb.WatchJobResponse(heartbeat=service_pb2.Heartbeat())
                    else:
                        yield pb.WatchJobResponse(event=event)

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Context) -> pb.UpdateJobResponse:
        job = await self._commands.get(named(request.job_id))
        check_update(job, request.update)
        return pb.UpdateJobResponse(job=await self._commands.update(job.job_id, request.update))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=await self._commands.cancel(named(request.job_id)))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> pb.DeleteJobResponse:
        await self._commands.delete(named(request.job_id))
        return pb.DeleteJobResponse()


def named(job_id: str) -> str:
    """The job id, if it can be one.

    Raises:
        Refusal: it cannot.
    """
    if not (0 < len(job_id) <= 64 and job_id.isalnum() and job_id.isascii()):
        raise invalid("job_id", "is empty or malformed: give the id that CreateJob returned")
    return job_id


def _position(record: JobRecord) -> tuple[int, str]:
    return record.create_time.ToNanoseconds(), record.job_id


def _encoded(position: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{position[0]}:{position[1]}".encode()).decode()


def _decoded(token: str) -> tuple[int, str]:
    try:
        time, job_id = base64.urlsafe_b64decode(token.encode()).decode().split(":")
        return int(time), job_id
    except (binascii.Error, ValueError) as error:
        raise invalid("page_token", "is none that ListJobs returned") from error
