"""What can go wrong, as exceptions. Every one is an `NstError` whose text names the cure."""

from collections.abc import Iterable, Mapping
from functools import cached_property

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from nst_client.images import Decoded, Picture


class NstError(Exception):
    """A call or a job failed.

    Attributes:
        code: what kind of failure, as a gRPC status code.
        message: the server's (or this library's) words.
        reason: a constant in capitals for programs, empty when the server gave none.
        violations: for a refused request, what is wrong by field name.
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, *, reason: str = "", violations: Mapping[str, str] | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = dict(violations or {})
        super().__init__(self._text())

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are otherwise made again from their text alone; one that cannot be hangs a pool of processes.
        return _restored, (type(self), str(self)), self.__dict__

    def _text(self) -> str:
        unsaid = [
            f"  {field}: {description}"
            for field, description in self.violations.items()
            if description != self.message and not (field in self.message and description in self.message)
        ]
        return "\n".join([self.message, *unsaid])


class InvalidRequest(NstError):
    """The server refuses the request as it is: change the fields in `violations`."""


class NotFound(NstError):
    """The server has no such job or picture."""


class ServerBusy(NstError):
    """The server has no room now. `retry_after` says in how many seconds to try again."""

    def __init__(self, code: grpc.StatusCode, message: str, *, reason: str = "", retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(code, f"{message} (try again in {retry_after:g} s)", reason=reason)


class ServerUnavailable(NstError):
    """No server of nst.v1 answers at `address`."""

    def __init__(self, code: grpc.StatusCode, message: str, *, address: str) -> None:
        self.address = address
        question = "Is one running there, and is it TLS or not?"
        super().__init__(code, f"no nst.v1 server answers at {address} ({message}). {question}")


class JobFailed(NstError):
    """The job ended with an error.

    Attributes:
        job_id: the job.
        partial: of a job that was out of time, the best picture so far as it came, if `AsyncJob.result` raised
            this; else None.
    """

    def __init__(
        self, job_id: str, code: grpc.StatusCode, reason: str, message: str, *, partial: Picture | None = None
    ) -> None:
        self.job_id = job_id
        self.partial = partial
        super().__init__(code, f"job {job_id} failed: {message}", reason=reason)

    @cached_property
    def picture(self) -> Decoded | None:
        """`partial`, decoded: a PIL picture, or an array if a tensor was asked for."""
        return self.partial.decode() if self.partial else None


class JobCancelled(NstError):
    """The job was cancelled, so it has no result."""

    def __init__(self, job_id: str, reason: str) -> None:
        self.job_id = job_id
        why = f": {reason}" if reason else ""
        super().__init__(grpc.StatusCode.CANCELLED, f"job {job_id} was cancelled{why}", reason=reason)


def client_closed() -> NstError:
    """The error of a call on a client that was closed, before or meanwhile."""
    return NstError(grpc.StatusCode.CANCELLED, "the client is closed: make a new one")


def _restored(kind: type[NstError], text: str) -> NstError:
    return kind.__new__(kind, text)


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# What gRPC itself reports for a connection that was reset or closed under a call.
_MAYBE_BROKEN = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})
# And what it says of an HTTP/2 server that knows no gRPC.
_NO_GRPC = ("Received http2 header with status: 404", "Received http2 header with status: 405", "No status received")


def status_code(number: int) -> grpc.StatusCode:
    """The status code of a google.rpc.Code number; UNKNOWN for one that is not known."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def is_broken_connection(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection failed rather than the request, so that trying again may help.

    A server's own INTERNAL or UNKNOWN carries details; one that a reset connection leaves behind does not.
    """
    return error.code() in _BROKEN or (error.code() in _MAYBE_BROKEN and not has_details(error))


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server itself sent the error: gRPC's own carry no google.rpc details."""
    return _details(error) is not None


def has_lost_status(error: grpc.aio.AioRpcError) -> bool:
    """Whether a server ended a stream that was still being written, and gRPC lost what it said (grpc/grpc#36066)."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> NstError:
    """The exception for a failed call to the server at `address`, with its google.rpc details."""
    code, message = error.code(), error.details() or error.code().name
    if (code in _BROKEN or _is_from_another_server(code, message)) and not has_details(error):
        return ServerUnavailable(code, message, address=address)
    reason, violations, retry_after = _decode(_details(error))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is not None:
        return ServerBusy(code, message, reason=reason, retry_after=retry_after)
    kinds = {grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest, grpc.StatusCode.NOT_FOUND: NotFound}
    return kinds.get(code, NstError)(code, message, reason=reason, violations=violations)


def _is_from_another_server(code: grpc.StatusCode, message: str) -> bool:
    return code is grpc.StatusCode.UNIMPLEMENTED or message.startswith(_NO_GRPC)


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _decode(status: status_pb2.Status | None) -> tuple[str, dict[str, str], float | None]:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details if status else ():
        if not (detail.Unpack(info) or detail.Unpack(request)) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return info.reason, _by_field(request.field_violations), retry_after


def _by_field(violations: Iterable[error_details_pb2.BadRequest.FieldViolation]) -> dict[str, str]:
    by_field: dict[str, str] = {}
    for violation in violations:
        earlier = by_field.get(violation.field)
        by_field[violation.field] = f"{earlier}; {violation.description}" if earlier else violation.description
    return by_field
