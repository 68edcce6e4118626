"""The client: everything that can be asked of a server, in asyncio."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypedDict

import grpc

from nst.v1 import job_pb2
from nst.v1.job_service_pb2 import DeleteJobRequest, ListJobsRequest
from nst.v1.style_transfer_service_pb2 import CreateJobRequest, GetServerInfoRequest
from nst_client import transfer
from nst_client.decoding import decode_status
from nst_client.errors import InvalidRequest, NstError
from nst_client.events import JobState, JobStatus, StateName, read_states
from nst_client.formats import Format, format_message
from nst_client.images import ImageInput, ImageRef, to_picture
from nst_client.info import ServerInfo
from nst_client.job import AsyncJob
from nst_client.options import OptionValue, build_options, set_scalar
from nst_client.spec import (
    Priority,
    Source,
    Style,
    StyleInput,
    preview_options,
    priority_number,
    read_styles,
    time_limit_message,
)
from nst_client.transport import Transport

_ANSWER_SECONDS = 5.0  # for which one who leaves waits


class ConnectionSettings(TypedDict, total=False):
    """The keyword arguments of `AsyncClient`, which describes them."""

    tls: grpc.ChannelCredentials | None
    tenant: str | None
    reconnect_timeout: float
    silence_timeout: float


class AsyncClient:
    """A client of one server or of the load balancer in front of many. Use it as an async context manager.

    Args:
        address: HOST:PORT with a port from 1 to 65535, or another target that gRPC knows, such as unix:/run/nst.sock.
        tls: credentials from `grpc.ssl_channel_credentials`; None talks without TLS.
        tenant: whom the jobs and pictures belong to, 1 to 64 letters, digits, `-`, `_` or `.`; None is "anonymous".
        reconnect_timeout: seconds for which a server that has answered before is looked for when
            the connection breaks, and for which one that has no room to show a job is asked again. A server
            that never answered is not waited for.
        silence_timeout: seconds without any message, heartbeats included, after which a stream of
            events is attached anew. Keep it at several of the server's heartbeat periods.

    Raises:
        TypeError, ValueError: the address or the tenant is none; the text names it.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: grpc.ChannelCredentials | None = None,
        tenant: str | None = None,
        reconnect_timeout: float = 60.0,
        silence_timeout: float = 45.0,
    ) -> None:
        self._transport = Transport(address, tls, tenant, reconnect_timeout, silence_timeout)

    def __repr__(self) -> str:
        return f"AsyncClient({self._transport.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Jobs go on without it."""
        await self._transport.close()

    async def stylize(
        self,
        /,
        content: Source,
        styles: StyleInput | Sequence[StyleInput] = (),
        *,
        initial: Source | None = None,
        subject: Source | None = None,
        hole: Source | None = None,
        size: int | None = None,
        iterations: int | None = None,
        strength: float | None = None,
        preview_interval: int | None = None,
        preview_max_size: int | None = None,
        result_format: Format | None = None,
        preview_format: Format | None = None,
        priority: Priority | None = None,
        time_limit: float | None = None,
        request_id: str | None = None,
        **options: OptionValue | None,
    ) -> AsyncJob:
        """Upload the pictures and make a job of them. It runs whether or not anybody follows it.

        What is None means the server's default, which `server_info` tells. Cancelled (by Ctrl-C, where it blocks)
        while the server makes the job, this cancels the job too, if the server answers within seconds, unless you have
        given it a `request_id` to ask for it by.

        Args:
            content: the picture whose subject is kept: a path, the bytes of a picture file, a PIL
                picture, a numpy array or torch tensor (see `Picture.from_array`), or a reference.
            styles: the picture or pictures whose look is taken, each alone, as (picture, weight), or as a `Style`;
                none at all only where there is a `hole`.
            initial, subject: what to start from (`init` is then "image"), and a mask, white on what `protection` keeps.
            hole: a mask, white on what alone may change: it is filled in the styles, or as what is around it. In
                an array of bool, True is white.
            size, preview_max_size: long side of the result and of previews, in pixels.
            iterations, preview_interval: over all scales, and between previews (0 for none).
            strength: how much of the style to take, 0 to 1.
            result_format, preview_format: a codec's name, EncodedFormat or TensorFormat.
            priority: "interactive" or "batch".
            time_limit: seconds after its creation in which the job must end, waiting included; if it has not, it
                fails with DEADLINE_EXCEEDED, and `JobFailed.picture` is its best picture so far. None for ever.
            request_id: the same one and the same arguments give the same job; None makes one up.
            options: any other field of `StylizeOptions`, by name.

        Raises:
            TypeError, ValueError, OSError: an argument cannot be sent, or a file cannot be read.
            InvalidRequest, ServerBusy, NstError: the server refuses, is full, or stays away.
        """
        request = CreateJobRequest()
        set_scalar(request, "request_id", request_id or str(uuid.uuid4()), "request_id")
        spec = job_pb2.JobSpec(
            options=build_options({"size": size, "iterations": iterations, "strength": strength, **options}),
            preview=preview_options(preview_interval, preview_max_size, preview_format),
            result_format=format_message(result_format, "result_format"),
            priority=priority_number(priority),
            time_limit=time_limit_message(time_limit),
        )
        others = {"initial": initial, "subject": subject, "hole": hole}
        await self._attach(spec, content, read_styles(styles, needed=hole is None), others)
        request.spec.CopyFrom(spec)
        making = self._create(request)
        return await (making if request_id else _made_or_cancelled(making))

    async def upload(self, image: ImageInput, *, name: str = "image") -> ImageRef:
        """Store a picture, so that many jobs can use it by reference. Raises as `stylize` does.

        Args:
            image: as the content of `stylize`.
            name: what errors call the picture.
        """
        # Reading and packing a large picture takes long enough to stall other calls on this loop.
        picture = await asyncio.to_thread(to_picture, image, name)
        try:
            return await transfer.upload(self._transport, picture)
        except InvalidRequest as error:
            cause = "; ".join(error.violations.values()) or error.message
            raise InvalidRequest(
                error.code, f"{name}: {cause}", reason=error.reason, violations={name: cause}
            ) from error

    def job(self, job_id: str) -> AsyncJob:
        """The job of this id, to follow or steer from here. Asks the server nothing yet."""
        return AsyncJob(self._transport, job_id)

    def jobs(
        self, states: JobState | StateName | Iterable[JobState | StateName] = ()
    ) -> AsyncGenerator[JobStatus, None]:
        """The jobs in these states, newest first, fetched page by page as they are wanted.

        Args:
            states: one or several, each as JobState or as its name in small letters ("running"); none is all.

        Raises:
            TypeError, ValueError: one is no such state.
        """
        chosen = [job_pb2.JobState.ValueType(state) for state in read_states(states)]
        return self._list(ListJobsRequest(states=chosen))

    async def delete_job(self, job_id: str) -> None:
        """Remove a job that has ended, and all that it has; its pictures, unless another job has them, within minutes.

        A broken connection is not tried again: the second attempt could not tell whether the first worked.
        """
        await self._transport.call_once(self._transport.jobs.DeleteJob, DeleteJobRequest(job_id=job_id))

    async def server_info(self) -> ServerInfo:
        """What the server is, what it allows and what it assumes."""
        answer = await self._transport.call(self._transport.transfer.GetServerInfo, GetServerInfoRequest())
        return ServerInfo.from_proto(answer)

    async def _list(self, request: ListJobsRequest) -> AsyncGenerator[JobStatus, None]:
        while True:
            page = await self._transport.call(self._transport.jobs.ListJobs, request)
            for job in page.jobs:
                yield decode_status(job)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _create(self, request: CreateJobRequest) -> AsyncJob:
        answer = await self._transport.call(self._transport.transfer.CreateJob, request)
        return self.job(answer.job.job_id)

    async def _attach(
        self,
        spec: job_pb2.JobSpec,
        content: Source,
        styles: Sequence[Style],
        others: Mapping[str, Source | None],
    ) -> None:
        spec.content.CopyFrom((await self._reference(content, "content")).to_proto())
        for index, style in enumerate(styles):
            name = f"styles[{index}]"
            image = (await self._reference(style.image, name)).to_proto()
            message = spec.styles.add(image=image, weight=style.weight, scale=style.scale)
            if style.region is not None:
                message.region.CopyFrom((await self._reference(style.region, f"{name}.region")).to_proto())
            if style.source_region is not None:
                source = await self._reference(style.source_region, f"{name}.source_region")
                message.source_region.CopyFrom(source.to_proto())
        for name, other in others.items():
            if other is not None:
                getattr(spec, name).CopyFrom((await self._reference(other, name)).to_proto())

    async def _reference(self, source: Source, name: str) -> ImageRef:
        if isinstance(source, ImageRef):
            return source
        return await self.upload(source, name=name)


async def _made_or_cancelled(making: Coroutine[Any, Any, AsyncJob]) -> AsyncJob:
    """The job that is being made; it is cancelled with its caller, as far as possible: nobody would have its id."""
    task = asyncio.create_task(making)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(NstError, TimeoutError):
            await cancel_unheard(await asyncio.wait_for(task, _ANSWER_SECONDS))
        raise


async def cancel_unheard(job: AsyncJob) -> None:
    """Cancels a job that nobody will have the id of, as far as possible."""
    with suppress(NstError, TimeoutError):
        await asyncio.wait_for(job.cancel(), _ANSWER_SECONDS)
