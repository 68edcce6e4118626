"""A job's history as one stream, whatever happens to the connections below it."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from nst.v1.job_service_pb2 import GetJobRequest, WatchJobRequest, WatchJobResponse
from nst_client.decoding import decode_event
from nst_client.events import AnyEvent, JobState, ends_history
from nst_client.options import set_scalar
from nst_client.transport import Reconnect, Transport

WatchCall = grpc.aio.UnaryStreamCall[WatchJobRequest, WatchJobResponse]


async def watch(
    transport: Transport, job_id: str, after_sequence: int = 0, *, omit_pictures: bool = False
) -> AsyncGenerator[AnyEvent, None]:
    """The events after `after_sequence`, each once and in order, to the job's last.

    A stream that breaks, falls silent, ends too early or finds no room is attached again after the last event seen.

    Raises:
        TypeError, ValueError: `after_sequence` is no whole number from 0 on.
        NstError: there is no such job, the server stayed away for `reconnect_timeout`, or the client was closed.
    """
    request = WatchJobRequest(job_id=job_id, omit_pictures=omit_pictures)
    set_scalar(request, "after_sequence", after_sequence, "after_sequence")
    reconnect = Reconnect(transport, patient=True)
    while True:
        with transport.calling():
            call = transport.jobs.WatchJob(request, metadata=transport.metadata)
        failure: grpc.aio.AioRpcError | None = None
        try:
            while (message := await _next_message(transport, call)) is not None:
                reconnect.succeeded()
                if not message.HasField("event") or message.event.sequence <= request.after_sequence:
                    continue
                request.after_sequence = message.event.sequence
                if event := decode_event(message.event):
                    yield event
                    if ends_history(event):
                        return
            if await _has_ended(transport, job_id, request.after_sequence):
                return
        except grpc.aio.AioRpcError as error:
            failure = error
        except TimeoutError:
            pass
        finally:
            call.cancel()
        await reconnect.wait(failure)


async def _next_message(transport: Transport, call: WatchCall) -> WatchJobResponse | None:
    with transport.calling():
        async with asyncio.timeout(transport.silence_timeout):
            message = await call.read()
    return message if isinstance(message, WatchJobResponse) else None  # else grpc.aio.EOF


async def _has_ended(transport: Transport, job_id: str, last: int) -> bool:
    answer = await transport.call(transport.jobs.GetJob, GetJobRequest(job_id=job_id), patient=True)
    return JobState(answer.job.state).is_final and answer.job.last_sequence <= last
