"""JobService: following and steering jobs."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import aclosing

from nst.v1 import job_pb2, job_service_pb2_grpc
from nst.v1 import job_service_pb2 as pb
from nst_server.gateway.calls import Context, tenant
from nst_server.gateway.errors import invalid
from nst_server.gateway.specs import SpecReader
from nst_server.gateway.watching import Watching
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.records import JobNotFound, Position

DEFAULT_PAGE = 50
LARGEST_PAGE = 500
DESCRIBED_AT_ONCE = 50


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """The RPCs of nst.v1.JobService; what they raise, the call interceptor turns into statuses."""

    def __init__(self, commands: JobCommands, specs: SpecReader, watching: Watching) -> None:
        self._commands = commands
        self._specs = specs
        self._watching = watching

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=await own_job(self._commands, request.job_id, context))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        for state in request.states:
            if state not in job_pb2.JobState.values() or state == job_pb2.JOB_STATE_UNSPECIFIED:
                raise invalid("states", f"{state} is no state that a job can be in")
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        before = _decoded(request.page_token) if request.page_token else None
        places = await self._commands.listing.newest(tenant(context), LARGEST_PAGE, before, request.states)
        page: list[job_pb2.Job] = []
        at_once = DESCRIBED_AT_ONCE if request.states else min(size, DESCRIBED_AT_ONCE)
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            jobs = await asyncio.gather(*(self._job(job_id, tenant(context)) for _, job_id in some))
            for place, job in zip(some, jobs, strict=True):
                if job is not None and (not request.states or job.state in request.states):
                    page.append(job)
                if len(page) == size and place is not places[-1]:
                    return pb.ListJobsResponse(jobs=page, next_page_token=_encoded(place))
        # With as many as were asked for there may be more.
        token = _encoded(places[-1]) if len(places) == LARGEST_PAGE else ""
        return pb.ListJobsResponse(jobs=page, next_page_token=token)

    async def _job(self, job_id: str, tenant: str) -> job_pb2.Job | None:
        """A tenant's job; None if it has been removed since it was listed, or the store has lost it."""
        try:
            return await self._commands.describe(await self._commands.records.get(job_id))
        except JobNotFound:
            self._commands.listing.forget(tenant)
            return None

    async def WatchJob(  # type: ignore[override]  # serialised already
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[bytes]:
        with self._watching.place():
            job = await own_job(self._commands, request.job_id, context)
            responses = self._watching.responses(job, request.after_sequence, omit_pictures=request.omit_pictures)
            async with aclosing(responses):
                async for response in responses:
                    yield response

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Context) -> pb.UpdateJobResponse:
        job = await own_job(self._commands, request.job_id, context)
        self._specs.check_update(job, request.update)
        return pb.UpdateJobResponse(job=await self._commands.update(job.job_id, request.update))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        job = await own_job(self._commands, request.job_id, context)
        return pb.CancelJobResponse(job=await self._commands.cancel(job.job_id))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> pb.DeleteJobResponse:
        job = await own_job(self._commands, request.job_id, context)
        await self._commands.delete(job.job_id)
        return pb.DeleteJobResponse()


async def own_job(commands: JobCommands, job_id: str, context: Context) -> job_pb2.Job:
    """The caller's job of that id.

    Raises:
        Refusal: it can be no job's id.
        JobNotFound: there is no such job, or another tenant made it.
    """
    if not (0 < len(job_id) <= 64 and job_id.isalnum() and job_id.isascii()):
        raise invalid("job_id", "is empty or malformed: give the id that CreateJob returned")
    return await commands.get(job_id, tenant(context))


def _encoded(place: Position) -> str:
    return base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode()).decode()


def _decoded(token: str) -> Position:
    try:
        time, job_id = base64.urlsafe_b64decode(token.encode()).decode().split(":")
        return int(time), job_id
    except (binascii.Error, ValueError) as error:
        raise invalid("page_token", "is none that ListJobs returned") from error
