"""StyleTransferService: making jobs, and giving their pictures back."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

from google.rpc import code_pb2

from nst.v1 import image_pb2, job_pb2, style_transfer_service_pb2_grpc
from nst.v1 import style_transfer_service_pb2 as pb
from nst_server import pictures, tracing
from nst_server.gateway.calls import Context, tenant
from nst_server.gateway.errors import Refusal, abort
from nst_server.gateway.fields import check_form, check_request_id
from nst_server.gateway.gallery import Gallery
from nst_server.gateway.info import ServerInfo
from nst_server.gateway.job_service import own_job
from nst_server.gateway.quotas import PictureQuota
from nst_server.gateway.result_memory import ResultMemory
from nst_server.gateway.specs import SpecReader, reduce_to_references
from nst_server.gateway.stylize_stream import StylizeStreams
from nst_server.gateway.uploads import Uploads
from nst_server.jobs.blobs import BlobNotFound
from nst_server.jobs.commands import JobCommands

CHUNK_BYTES = 512 * 1024
ABORT_SECONDS = 0.2


class StyleTransferService(style_transfer_service_pb2_grpc.StyleTransferServiceServicer):
    """The RPCs of nst.v1.StyleTransferService; what they raise, the call interceptor turns into statuses."""

    def __init__(
        self,
        commands: JobCommands,
        specs: SpecReader,
        uploads: Uploads,
        quota: PictureQuota,
        gallery: Gallery,
        streams: StylizeStreams,
        info: ServerInfo,
        results: ResultMemory,
    ) -> None:
        self._commands = commands
        self._specs = specs
        self._uploads = uploads
        self._quota = quota
        self._gallery = gallery
        self._streams = streams
        self._info = info
        self._results = results

    async def UploadImage(
        self, request_iterator: AsyncIterator[pb.UploadImageRequest], context: Context
    ) -> pb.UploadImageResponse:
        digest, width, height = await self._uploads.read(
            request_iterator, tenant(context), self._quota.check, self._specs.store
        )
        return pb.UploadImageResponse(reference=image_pb2.ImageReference(sha256=digest), width=width, height=height)

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        check_request_id(request.request_id)
        await self._commands.check_room(request.request_id, tenant(context))
        known = partial(self._commands.knows, request.request_id, tenant(context))
        bare = self._specs.check(request.spec)
        await self._info.check_possible(bare.options, known)
        spec = await self._specs.complete(tenant(context), request.spec, bare, {})
        asked = reduce_to_references(request.spec, spec)
        job = await self._commands.create(request.request_id, tenant(context), spec, tracing.traceparent(), asked)
        return pb.CreateJobResponse(job=job)

    async def Stylize(  # type: ignore[override]  # serialised already
        self, request_iterator: AsyncIterator[pb.StylizeRequest], context: Context
    ) -> AsyncIterator[bytes]:
        responses = self._streams.run(request_iterator, tenant(context), tracing.traceparent())
        async with aclosing(responses):
            async for response in responses:
                yield response

    async def GetResult(self, request: pb.GetResultRequest, context: Context) -> AsyncIterator[pb.GetResultResponse]:
        job = await own_job(self._commands, request.job_id, context)
        picture = job.error.partial if job.HasField("error") else job.result
        if not picture.reference.sha256:
            state = job_pb2.JobState.Name(job.state)
            raise Refusal(code_pb2.FAILED_PRECONDITION, "NO_RESULT", f"the job has no result: it is {state}")
        form = request.format if request.format.WhichOneof("form") else job.spec.result_format
        check_form("format", form)
        async with self._results.part(job.tenant, pictures.most_bytes(picture.width, picture.height, form)) as timeout:
            try:
                async for response in self._result(job, picture, form):
                    yield response
            except GeneratorExit:
                if timeout.expired():
                    # It is behind what the client has not taken yet, so it is not waited for.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(abort(context, self._results.too_slow), ABORT_SECONDS)
                raise

    async def _result(
        self, job: job_pb2.Job, picture: job_pb2.Result, form: image_pb2.ImageFormat
    ) -> AsyncGenerator[pb.GetResultResponse]:
        try:
            image = await self._gallery.result(job.tenant, picture.reference.sha256, form)
        except BlobNotFound as error:
            raise Refusal(code_pb2.NOT_FOUND, "RESULT_REMOVED", "the result is no longer stored") from error
        header, data = await asyncio.to_thread(_streamed, image)
        del image
        result = pb.ResultHeader(image=header, width=picture.width, height=picture.height)
        yield pb.GetResultResponse(header=result)
        for offset in range(0, len(data), CHUNK_BYTES):
            chunk = image_pb2.ImageChunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
            yield pb.GetResultResponse(chunk=chunk)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return await self._info.describe()


def _streamed(image: image_pb2.Image) -> tuple[image_pb2.ImageHeader, bytes]:
    if image.HasField("tensor"):
        tensor, data = image.tensor, image.tensor.data
        form = image_pb2.TensorHeader(dtype=tensor.dtype, shape=tensor.shape, layout=tensor.layout)
    else:
        form, data = None, image.encoded.data
    return image_pb2.ImageHeader(size=len(data), sha256=hashlib.sha256(data).hexdigest(), tensor=form), data
