"""Clients that follow their jobs to the end, by way of the SDK and of the bare `Stylize` call."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import grpc
from jobs import Plan, Treatment, Work, picture
from link import Link

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import StylizeRequest, StylizeResponse, StylizeStart
from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub
from nst_client import (
    AnyEvent,
    AsyncClient,
    AsyncJob,
    ErrorEvent,
    NotFound,
    NstError,
    PreviewEvent,
    ProgressEvent,
    ResultEvent,
    ServerUnavailable,
)
from nst_client.decoding import decode_event
from nst_client.errors import is_broken_connection
from nst_client.options import build_options
from nst_client.spec import time_limit_message

if TYPE_CHECKING:
    from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceAsyncStub

PREVIEW_INTERVAL = 10
PAUSE_SECONDS = 2.0
STEERED_STRENGTH = 0.8
RECONNECT_SECONDS = 60.0
RETRY_SECONDS = 0.3
# As the SDK's channel: calls go round the gateways, and one that comes back is found soon.
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


@dataclass
class Followed:
    """A job as its client lived through it.

    Attributes:
        plan: what it was to be.
        job_id: empty until the server has accepted it.
        events: its history as the client saw it, without pictures.
        deleted: whether the server has said that the job is gone.
        error: what the SDK raised, or how far it did not come; empty if all went well.
    """

    plan: Plan
    job_id: str = ""
    events: list[AnyEvent] = field(default_factory=list)
    deleted: bool = False
    error: str = ""

    @property
    def result(self) -> str:
        """The digest of the result; empty if there is none."""
        last = self.events[-1] if self.events else None
        return last.reference.sha256 if isinstance(last, ResultEvent) else ""


class LoadClient:
    """One client with a link of its own to every gateway."""

    def __init__(self, name: str, gateway_ports: Sequence[int]) -> None:
        self.name = name
        self._links = [Link(port) for port in gateway_ports]
        self._stack = AsyncExitStack()
        self.sdk: AsyncClient
        self._stylize: StyleTransferServiceAsyncStub

    async def __aenter__(self) -> Self:
        for link in self._links:
            await self._stack.enter_async_context(link)
        target = "ipv4:" + ",".join(f"127.0.0.1:{link.port}" for link in self._links)
        self.sdk = await self._stack.enter_async_context(
            AsyncClient(target, tenant=self.name, reconnect_timeout=RECONNECT_SECONDS)
        )
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        self._stylize = StyleTransferServiceStub(channel)
        await self.sdk.server_info()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def cut(self) -> int:
        """Breaks every open connection of this client; how many there were."""
        return sum(link.cut() for link in self._links)

    async def create(self, work: Work, request_id: str, time_limit: float | None = None) -> AsyncJob:
        """A job by upload and `CreateJob`."""
        return await self.sdk.stylize(
            picture(work.content),
            [picture(style) for style in work.styles],
            request_id=request_id,
            preview_interval=PREVIEW_INTERVAL,
            time_limit=time_limit,
            **work.options,
        )

    async def run(self, followed: Followed) -> Followed:
        """Makes the job, follows it to its end, and treats it on the way as planned."""
        plan = followed.plan
        treating: asyncio.Task[None] | None = None
        try:
            async with contextlib.aclosing(self._events(followed)) as events:
                async for event in events:
                    followed.events.append(without_picture(event))
                    if treating is None and isinstance(event, ProgressEvent) and event.iteration >= plan.treated_at:
                        treating = asyncio.create_task(self._treat(followed))
            if treating is not None:
                await treating
            if plan.treatment is Treatment.DELETE:
                await self._delete(followed)
        except NstError as error:
            followed.error = f"{type(error).__name__}: {error}"
        return followed

    async def _treat(self, followed: Followed) -> None:
        try:
            await treat(self.sdk.job(followed.job_id), followed.plan.treatment)
        except NstError as error:
            followed.error = f"{followed.plan.treatment}: {type(error).__name__}: {error}"

    async def _delete(self, followed: Followed) -> None:
        """Until the server says that the job is gone: a call that broke may have worked."""
        deadline = asyncio.get_running_loop().time() + RECONNECT_SECONDS
        while not followed.deleted:
            try:
                await self.sdk.delete_job(followed.job_id)
                followed.deleted = True
            except NotFound:
                followed.deleted = True
            except ServerUnavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def history(self, job_id: str) -> list[AnyEvent]:
        """The whole history of a job that has ended, as a fresh watcher sees it, without pictures."""
        return [without_picture(event) async for event in self.sdk.job(job_id).events(omit_pictures=True)]

    async def _events(self, followed: Followed) -> AsyncGenerator[AnyEvent, None]:
        plan = followed.plan
        if plan.streamed:
            async with contextlib.aclosing(self._streamed(plan)) as events:
                async for event in events:
                    followed.job_id = event.job_id
                    yield event
                    if _is_final(event):
                        return
        else:
            followed.job_id = (await self.create(plan.work, f"{self.name}-{plan.name}", plan.time_limit)).id
        after = followed.events[-1].sequence if followed.events else 0
        async with contextlib.aclosing(self.sdk.job(followed.job_id).events(after)) as rest:
            async for event in rest:
                yield event

    async def _streamed(self, plan: Plan) -> AsyncGenerator[AnyEvent, None]:
        """The events of a `Stylize` stream until it breaks; asked for again until it has told the job's id."""
        request = StylizeRequest(
            start=StylizeStart(request_id=f"{self.name}-{plan.name}", spec=_inline(plan), detach=True)
        )
        deadline = asyncio.get_running_loop().time() + RECONNECT_SECONDS
        told = False
        while not told:
            try:
                async for response in self._open(request):
                    if response.HasField("event") and (event := decode_event(response.event)):
                        told = True
                        yield event
            except grpc.aio.AioRpcError as error:
                late = not told and asyncio.get_running_loop().time() > deadline
                if late or not is_broken_connection(error):
                    raise NstError(error.code(), error.details() or "") from error
                await asyncio.sleep(RETRY_SECONDS)

    def _open(self, request: StylizeRequest) -> AsyncIterator[StylizeResponse]:
        async def requests() -> AsyncIterator[StylizeRequest]:
            yield request

        metadata = grpc.aio.Metadata(("x-nst-tenant", self.name))
        return aiter(self._stylize.Stylize(requests(), metadata=metadata))


@contextlib.asynccontextmanager
async def running_clients(count: int, gateway_ports: Sequence[int]) -> AsyncIterator[list[LoadClient]]:
    """So many clients for as long as the block runs."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(LoadClient(f"client-{number}", gateway_ports)) for number in range(count)
        ]


async def treat(job: AsyncJob, treatment: Treatment) -> None:
    """Does to the job what is planned; one that has ended meanwhile is left as it is."""
    try:
        if treatment is Treatment.PAUSE:
            await job.pause()
            await asyncio.sleep(PAUSE_SECONDS)
            await job.resume()
        elif treatment is Treatment.STEER:
            await job.steer(strength=STEERED_STRENGTH)
        elif treatment is Treatment.CANCEL:
            await job.cancel()
        elif treatment is Treatment.PAUSE_CANCEL:
            await job.pause()
            await job.cancel()
    except NstError as error:
        if error.reason != "JOB_ENDED":
            raise


def without_picture(event: AnyEvent) -> AnyEvent:
    """The event as it is stored: a slow watcher is spared the pictures of previews."""
    return replace(event, picture=None) if isinstance(event, PreviewEvent | ResultEvent) else event


def _is_final(event: AnyEvent) -> bool:
    return isinstance(event, ResultEvent | ErrorEvent) or event.job_state.is_final


def _inline(plan: Plan) -> job_pb2.JobSpec:
    work = plan.work

    def image(name: str) -> image_pb2.Image:
        return image_pb2.Image(encoded=image_pb2.EncodedImage(data=picture(name)))

    return job_pb2.JobSpec(
        content=image(work.content),
        styles=[job_pb2.Style(image=image(style)) for style in work.styles],
        options=build_options(work.options),
        preview=job_pb2.PreviewOptions(interval=PREVIEW_INTERVAL),
        time_limit=time_limit_message(plan.time_limit),
    )
