"""Errors carry what the server says, in words a person can act on."""

import copy
import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from scripted_server import Breaker, ScriptedServer, abort

from nst_client import (
    AsyncClient,
    ImageRef,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    NstError,
    Picture,
    ServerBusy,
    ServerUnavailable,
    transport,
)

REFERENCE = "0" * 64


async def refusal(server: ScriptedServer, how: Breaker) -> NstError:
    """What CreateJob raises when the server answers so."""
    server.breaks["CreateJob"].append(how)
    async with AsyncClient(server.address) as client:
        with pytest.raises(NstError) as caught:
            await client.stylize(ImageRef(REFERENCE), ImageRef(REFERENCE))
    return caught.value


def violation(field: str, description: str) -> BadRequest.FieldViolation:
    return BadRequest.FieldViolation(field=field, description=description)


async def test_a_bad_request_names_fields_and_cures(server: ScriptedServer) -> None:
    request = BadRequest(
        field_violations=[
            violation("options.size", "must be from 16 to 2048"),
            violation("styles[0].weight", "must be above 0"),
            violation("styles[0].weight", "must be finite"),
        ]
    )
    info = ErrorInfo(reason="OPTION_NOT_ALLOWED", domain="nst")
    code = grpc.StatusCode.INVALID_ARGUMENT
    error = await refusal(server, abort(code, "2 fields are not allowed", info, request))
    assert isinstance(error, InvalidRequest)
    assert (error.code, error.message, error.reason) == (code, "2 fields are not allowed", "OPTION_NOT_ALLOWED")
    assert error.violations == {
        "options.size": "must be from 16 to 2048",
        "styles[0].weight": "must be above 0; must be finite",
    }
    assert "options.size: must be from 16 to 2048" in str(error)
    assert "styles[0].weight: must be above 0; must be finite" in str(error)


async def test_a_violation_that_the_message_tells_is_not_told_twice(server: ScriptedServer) -> None:
    request = BadRequest(field_violations=[violation("size", "must be at least 16")])
    error = await refusal(server, abort(grpc.StatusCode.INVALID_ARGUMENT, "size: must be at least 16", request))
    assert str(error) == "size: must be at least 16"
    same = BadRequest(field_violations=[violation("job_id", "there is no job 'x'")])
    error = await refusal(server, abort(grpc.StatusCode.NOT_FOUND, "there is no job 'x'", same))
    assert (str(error), error.violations) == ("there is no job 'x'", {"job_id": "there is no job 'x'"})


async def test_a_violation_of_which_the_message_tells_a_part_is_told(server: ScriptedServer) -> None:
    request = BadRequest(field_violations=[violation("size", "is too small"), violation("seed", "is too small")])
    error = await refusal(server, abort(grpc.StatusCode.INVALID_ARGUMENT, "size: is too small", request))
    assert str(error) == "size: is too small\n  seed: is too small"


async def test_a_busy_server_says_when_to_come_again(server: ScriptedServer) -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    how = abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", ErrorInfo(reason="QUEUE_FULL"), retry)
    error = await refusal(server, how)
    assert isinstance(error, ServerBusy)
    assert error.retry_after == 2.5
    assert error.reason == "QUEUE_FULL"
    assert "try again in 2.5 s" in str(error)
    assert len(server.received["CreateJob"]) == 1


async def test_exhausted_without_a_time_is_no_invitation(server: ScriptedServer) -> None:
    error = await refusal(server, abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"))
    assert type(error) is NstError
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_not_found_and_others(server: ScriptedServer) -> None:
    assert isinstance(await refusal(server, abort(grpc.StatusCode.NOT_FOUND, "no such picture")), NotFound)
    plain = await refusal(server, abort(grpc.StatusCode.FAILED_PRECONDITION, "the job has ended"))
    assert type(plain) is NstError
    assert (plain.reason, plain.violations, str(plain)) == ("", {}, "the job has ended")


async def test_a_server_that_hangs_is_unavailable(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_CALL_TIMEOUT_SECONDS", 0.2)
    server.breaks["GetServerInfo"].append(server.stay_silent)
    server.breaks["DeleteJob"].append(server.stay_silent)
    async with AsyncClient(server.address) as client:
        for call in (client.server_info(), client.delete_job("a")):
            with pytest.raises(ServerUnavailable, match=f"no nst.v1 server answers at {server.address}"):
                await call


async def test_details_that_cannot_be_read_do_not_hide_the_error(server: ScriptedServer) -> None:
    def garbled(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "size is wrong")

    error = await refusal(server, garbled)
    assert isinstance(error, InvalidRequest)
    assert str(error) == "size is wrong"


async def test_a_refused_picture_is_named_as_the_caller_knows_it(server: ScriptedServer) -> None:
    request = BadRequest(field_violations=[violation("header", "is not a PNG, JPEG or WebP file")])
    server.breaks["UploadImage"].extend([None, abort(grpc.StatusCode.INVALID_ARGUMENT, "not a picture", request)])
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.stylize(b"content", [b"style"])
    assert caught.value.violations == {"styles[0]": "is not a PNG, JPEG or WebP file"}
    assert str(caught.value) == "styles[0]: is not a PNG, JPEG or WebP file"


@pytest.mark.parametrize(
    "error",
    [
        NstError(grpc.StatusCode.INTERNAL, "broken", reason="BROKEN"),
        InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "refused", violations={"size": "too large"}),
        ServerBusy(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after=2.5),
        ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "refused", address="127.0.0.1:1"),
        JobFailed("a", grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "late", partial=Picture(b"a picture")),
        JobCancelled("a", "asked for"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_from_process_to_process(error: NstError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
