"""A job on a server, as the client holds it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import overload

import grpc
from PIL.Image import Image as PilImage

from nst.v1 import image_pb2, job_pb2
from nst.v1.job_service_pb2 import CancelJobRequest, GetJobRequest, UpdateJobRequest
from nst_client.decoding import decode_status
from nst_client.errors import JobCancelled, JobFailed, NotFound, NstError
from nst_client.events import AnyEvent, ErrorEvent, JobStatus, Partial, ResultEvent, StateEvent, ends_history
from nst_client.formats import Codec, EncodedFormat, Format, TensorFormat, format_message
from nst_client.images import Decoded, Picture, Pixels
from nst_client.options import naming, set_scalar
from nst_client.spec import Priority, priority_number
from nst_client.transfer import download
from nst_client.transport import Transport
from nst_client.watch import watch


class AsyncJob:
    """A job: `async for event in job` follows it from its first event to its last.

    Every method raises NstError when the server refuses or stays away.
    """

    def __init__(self, transport: Transport, job_id: str) -> None:
        self._transport = transport
        self._id = job_id
        self._ending: AnyEvent | None = None

    def __repr__(self) -> str:
        return f"AsyncJob({self._id!r})"

    @property
    def id(self) -> str:
        """The server's name for the job."""
        return self._id

    def __aiter__(self) -> AsyncIterator[AnyEvent]:
        return self.events()

    async def events(self, after_sequence: int = 0, *, omit_pictures: bool = False) -> AsyncGenerator[AnyEvent, None]:
        """The events after `after_sequence`, each once and in order, over broken connections too.

        `omit_pictures` leaves the pictures out of previews and results. Raises TypeError or ValueError where
        `after_sequence` is no whole number from 0 on.
        """
        async with aclosing(watch(self._transport, self._id, after_sequence, omit_pictures=omit_pictures)) as events:
            async for event in events:
                if ends_history(event):
                    self._ending = event
                yield event

    async def status(self) -> JobStatus:
        """The job as it stands."""
        answer = await self._transport.call(self._transport.jobs.GetJob, GetJobRequest(job_id=self._id), patient=True)
        return decode_status(answer.job)

    @overload
    async def result(self, form: EncodedFormat | Codec) -> PilImage: ...
    @overload
    async def result(self, form: TensorFormat) -> Pixels: ...
    @overload
    async def result(self, form: Format | None = None) -> Decoded: ...
    async def result(self, form: Format | None = None) -> Decoded:
        """The final picture, once the job has ended: a PIL picture, or an array for a TensorFormat.

        Args:
            form: None takes the form that the job was made with.

        Raises:
            JobFailed, JobCancelled: there is no final picture. The error of a job that was out of time has its
                best picture so far, in the same form.
        """
        picture = await self.result_picture(form)
        return await asyncio.to_thread(picture.decode)

    async def result_picture(self, form: Format | None = None) -> Picture:
        """As `result`, but the bytes as they came."""
        message = format_message(form, "form")
        try:
            ending = await self.wait()
        except JobFailed as error:
            raise await self._with_partial(error, message) from None
        if message is None and ending.picture is not None:
            return ending.picture
        return await download(self._transport, self._id, message)

    async def _with_partial(self, error: JobFailed, form: image_pb2.ImageFormat | None) -> JobFailed:
        """The error with the best picture so far, where there is one that is still stored."""
        match self._ending:
            case ErrorEvent(partial=Partial()) as end:
                with suppress(NotFound):
                    picture = await download(self._transport, self._id, form)
                    return JobFailed(self._id, end.code, end.reason, end.message, partial=picture)
        return error

    async def wait(self) -> ResultEvent:
        """The last event of the job, once it has succeeded.

        Raises:
            JobFailed, JobCancelled: it ended otherwise.
        """
        match self._ending or await self._await_ending():
            case ErrorEvent() as error:
                raise JobFailed(self._id, error.code, error.reason, error.message)
            case StateEvent() as cancelled:
                raise JobCancelled(self._id, cancelled.reason)
            case ResultEvent() as result:
                return result
            case other:
                raise NstError(grpc.StatusCode.INTERNAL, f"job {self._id} ended with {other}, which ends no history")

    async def cancel(self) -> JobStatus:
        """Ask for the job to end; its history then ends with a change to CANCELLED."""
        answer = await self._transport.call(self._transport.jobs.CancelJob, CancelJobRequest(job_id=self._id))
        return decode_status(answer.job)

    async def steer(
        self,
        *,
        strength: float | None = None,
        content_weight: float | None = None,
        style_weight: float | None = None,
        tv_weight: float | None = None,
        style_shares: Sequence[float] | None = None,
        content_layers: Mapping[str, float] | None = None,
        style_layers: Mapping[str, float] | None = None,
        iterations: int | None = None,
        priority: Priority | None = None,
    ) -> JobStatus:
        """Change weights and iterations while the job waits or runs; what is left out stays as it is.

        A running job obeys from the iteration after the one in hand. The status that is returned has the
        number of the change: it counts from the first ProgressEvent whose `control_version` is at least
        this one.

        Args:
            strength: 0 to 1, for a job that is balanced by strength.
            content_weight, style_weight: for a job with raw weights.
            tv_weight: of the total variation.
            style_shares: one number for each style, at least 0, and not all 0.
            content_layers, style_layers: weights by tap, in the place of all weights of that kind: a tap left
                out weighs 0. Only taps that the job's options name.
            iterations: over all scales; fewer than are done end the job after the iteration in hand.
            priority: while the job waits.

        Raises:
            TypeError, ValueError: an argument cannot be sent, or there is nothing to change.
        """
        update = job_pb2.JobUpdate(priority=priority_number(priority))
        with naming("style_shares"):
            update.style_shares.extend(() if style_shares is None else style_shares)
        with naming("content_layers"):
            update.content_layers.update(content_layers or {})
        with naming("style_layers"):
            update.style_layers.update(style_layers or {})
        numbers = {
            "strength": strength,
            "content_weight": content_weight,
            "style_weight": style_weight,
            "tv_weight": tv_weight,
            "iterations": iterations,
        }
        for name, number in numbers.items():
            if number is not None:
                set_scalar(update, name, number, name)
        if update == job_pb2.JobUpdate():
            raise ValueError("give something to change")
        return await self._update(update)

    async def pause(self) -> JobStatus:
        """Hold the job where it is."""
        return await self._update(job_pb2.JobUpdate(paused=True))

    async def resume(self) -> JobStatus:
        """Let a paused job go on."""
        return await self._update(job_pb2.JobUpdate(paused=False))

    async def _update(self, update: job_pb2.JobUpdate) -> JobStatus:
        request = UpdateJobRequest(job_id=self._id, update=update)
        answer = await self._transport.call(self._transport.jobs.UpdateJob, request)
        return decode_status(answer.job)

    async def _await_ending(self) -> AnyEvent | None:
        # A job that has ended replays its last event alone; its picture is fetched when it is wanted.
        after = max((await self.status()).last_sequence - 1, 0)
        async for _ in self.events(after, omit_pictures=True):
            pass
        return self._ending
