"""Stylize: one bidirectional stream that makes a job, follows it and steers it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from uuid import uuid4

from nst.v1 import job_pb2
from nst.v1 import style_transfer_service_pb2 as pb
from nst_server.gateway.errors import as_refusal, invalid
from nst_server.gateway.fields import check_request_id
from nst_server.gateway.info import ServerInfo
from nst_server.gateway.quotas import PictureQuota, RequestRates
from nst_server.gateway.specs import SpecReader, images_of, reduce_to_references
from nst_server.gateway.upload_memory import RequestMemory
from nst_server.gateway.uploads import Arrival, Assembly, Uploads
from nst_server.gateway.watching import Watching
from nst_server.jobs.backbone import BackboneUnavailable
from nst_server.jobs.commands import JobCommands
from nst_server.jobs.records import JobNotFound
from nst_server.jobs.updates import JobEnded, NotWaiting, TooManyChanges

log = logging.getLogger(__name__)

Requests = AsyncIterator[pb.StylizeRequest]


class StylizeStreams:
    """The open Stylize streams of a gateway."""

    def __init__(
        self,
        commands: JobCommands,
        specs: SpecReader,
        uploads: Uploads,
        quota: PictureQuota,
        watching: Watching,
        info: ServerInfo,
        rates: RequestRates,
        memory: RequestMemory,
    ) -> None:
        self._commands = commands
        self._specs = specs
        self._uploads = uploads
        self._quota = quota
        self._watching = watching
        self._info = info
        self._rates = rates
        self._memory = memory
        self._cancelling: set[asyncio.Task[None]] = set()

    async def run(self, requests: Requests, tenant: str, traceparent: str) -> AsyncGenerator[bytes]:
        """Serves one stream to the job's last event; yields serialised StylizeResponses."""
        with self._watching.place():
            start, spec = await self._begin(requests, tenant)
            creating = asyncio.create_task(
                self._commands.create(start.request_id, tenant, spec, traceparent, start.spec)
            )
            try:
                # Shielded: a stream that breaks here must still learn which job to cancel.
                job = await asyncio.shield(creating)
                async with aclosing(self._follow(job, requests)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                if not start.detach and _for_good(error):
                    self._cancel(creating)
                raise

    async def _begin(self, requests: Requests, tenant: str) -> tuple[pb.StylizeStart, job_pb2.JobSpec]:
        first = await self._uploads.first(requests)
        if first is None or first.WhichOneof("message") != "start":
            raise invalid("start", "the first message of a Stylize stream must be start")
        with self._memory.part(first.ByteSize()):
            return await self._complete(first.start, requests, tenant)

    async def _complete(
        self, start: pb.StylizeStart, requests: Requests, tenant: str
    ) -> tuple[pb.StylizeStart, job_pb2.JobSpec]:
        request_id = start.request_id or str(uuid4())
        check_request_id(request_id)
        # Before the client sends the bytes of its pictures for nothing.
        known = partial(self._commands.knows, request_id, tenant)
        bare = self._specs.check(start.spec)
        await self._info.check_possible(bare.options, known)
        await self._commands.check_room(request_id, tenant)
        assemblies = self._assemblies(start.spec)
        size = sum(assembly.size for assembly in assemblies.values())
        await self._quota.check(tenant, size)
        with self._uploads.arrival(requests, tenant, size) as arrival:
            while not all(assembly.whole for assembly in assemblies.values()):
                await self._add_chunk(arrival, assemblies)
            attached = {name: await asyncio.to_thread(assembly.finish) for name, assembly in assemblies.items()}
            spec = await self._specs.complete(tenant, start.spec, bare, attached)
        # The pictures would be held for as long as the stream lasts.
        asked = reduce_to_references(start.spec, spec)
        return pb.StylizeStart(request_id=request_id, detach=start.detach, spec=asked), spec

    def _assemblies(self, spec: job_pb2.JobSpec) -> dict[str, Assembly]:
        assemblies: dict[str, Assembly] = {}
        for path, image in images_of(spec).items():
            if image.WhichOneof("source") != "attached":
                continue
            if not image.attached.name or image.attached.name in assemblies:
                raise invalid(f"{path}.attached.name", "must be set, and different for each attached picture")
            assemblies[image.attached.name] = self._uploads.assembly(f"{path}.attached.header", image.attached.header)
        return assemblies

    async def _add_chunk(self, arrival: Arrival[pb.StylizeRequest], assemblies: dict[str, Assembly]) -> None:
        request = await arrival.next()
        if request is None:
            missing = ", ".join(name for name, assembly in assemblies.items() if not assembly.whole)
            raise invalid(
                "chunk", f"the stream ended before these attached pictures were whole: {missing}", "TRUNCATED"
            )
        if request.WhichOneof("message") != "chunk":
            raise invalid("chunk", "attached pictures must be whole before anything else is sent")
        if request.chunk.name not in assemblies:
            raise invalid("chunk.name", f"no attached picture is called {request.chunk.name!r}")
        await arrival.add(assemblies[request.chunk.name], request.chunk)

    async def _follow(self, job: job_pb2.Job, requests: Requests) -> AsyncGenerator[bytes]:
        """The job's events, while a second task carries out what the client sends."""
        obeying = asyncio.create_task(self._obey(job, requests))
        responses = self._watching.responses(job, 0, omit_pictures=False)
        try:
            async with aclosing(_unless_failed(responses, obeying)) as watched:
                async for response in watched:
                    yield response
        finally:
            obeying.cancel()

    async def _obey(self, job: job_pb2.Job, requests: Requests) -> None:
        async for request in requests:
            await self._rates.wait(job.tenant)
            kind = request.WhichOneof("message")
            if kind == "update":
                self._specs.check_update(job, request.update)
                with contextlib.suppress(JobEnded, NotWaiting):  # it was quicker
                    await self._commands.update(job.job_id, request.update)
            elif kind == "cancel":
                await self._commands.cancel(job.job_id)
            else:
                raise invalid(kind or "message", "once the job is made, only update and cancel may come")

    def _cancel(self, creating: asyncio.Task[job_pb2.Job]) -> None:
        async def cancel() -> None:
            try:
                job = await creating
            except Exception:
                return  # refused: there is no job
            while True:
                try:
                    await self._commands.cancel(job.job_id)
                except BackboneUnavailable:
                    # Nobody else will ask. No more wait here than had jobs when NATS went: none is made without it.
                    continue
                except Exception:
                    log.warning("job of a broken stream not cancelled", extra={"job_id": job.job_id}, exc_info=True)
                return

        task = asyncio.create_task(cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


def _for_good(error: BaseException) -> bool:
    """True when nobody will listen any more.

    A client that is told to try again, as by a gateway that shuts down, comes back for its job.
    """
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return True
    if isinstance(error, JobNotFound | TooManyChanges):
        return False  # it was deleted, or the store has lost its history, and it begins another; or goes on as it is
    refusal = as_refusal(error) if isinstance(error, Exception) else None
    return refusal is not None and refusal.retry_seconds is None


async def _unless_failed(responses: AsyncGenerator[bytes], task: asyncio.Task[None]) -> AsyncGenerator[bytes]:
    """The responses, until they end or the task raises, which is then raised here."""
    async with aclosing(responses):
        while True:
            upcoming = asyncio.ensure_future(anext(responses))
            try:
                await asyncio.wait({upcoming} if task.done() else {upcoming, task}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    task.result()
                try:
                    yield await upcoming
                except StopAsyncIteration:
                    return
            finally:
                upcoming.cancel()
                await asyncio.wait({upcoming})
