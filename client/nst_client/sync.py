"""The blocking client: each method is the asyncio one, run on an event loop in a background thread."""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

from nst_client.client import AsyncClient, ConnectionSettings
from nst_client.events import AnyEvent
from nst_client.job import AsyncJob
from nst_client.loop_thread import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
Core = TypeVar("Core")


class _Facade(Generic[Core]):
    """A blocking object over an asyncio one."""

    def __init__(self, loop: LoopThread, core: Core) -> None:
        self._loop = loop
        self._core = core


def _blocking(
    method: Callable[Concatenate[Core, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Facade[Core], P], T]:
    @functools.wraps(method)
    def call(self: _Facade[Core], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._core, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Core, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[_Facade[Core], P], Iterator[T]]:
    @functools.wraps(method)
    def call(self: _Facade[Core], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._loop.iterate(method(self._core, *args, **kwargs))

    return call


def _making_job(
    method: Callable[Concatenate[Core, P], Coroutine[Any, Any, AsyncJob]],
) -> Callable[Concatenate[_Facade[Core], P], "Job"]:
    @functools.wraps(method)
    def call(self: _Facade[Core], /, *args: P.args, **kwargs: P.kwargs) -> Job:
        return Job(self._loop, self._loop.run(method(self._core, *args, **kwargs)))

    return call


class Job(_Facade[AsyncJob]):
    """A job: `for event in job` follows it from its first event to its last. See `AsyncJob`."""

    events = _iterating(AsyncJob.events)
    status = _blocking(AsyncJob.status)
    wait = _blocking(AsyncJob.wait)
    result = _blocking(AsyncJob.result)
    result_picture = _blocking(AsyncJob.result_picture)
    cancel = _blocking(AsyncJob.cancel)
    steer = _blocking(AsyncJob.steer)
    pause = _blocking(AsyncJob.pause)
    resume = _blocking(AsyncJob.resume)

    @property
    def id(self) -> str:
        """The server's name for the job."""
        return self._core.id

    def __iter__(self) -> Iterator[AnyEvent]:
        return self.events()


class Client(_Facade[AsyncClient]):
    """A client that blocks, usable from any number of threads. Takes the arguments of `AsyncClient`.

    In a process that was forked from the one that made it, every call raises NstError. Start processes by spawn
    (`multiprocessing.get_context("spawn")`), and make a client in each: one that is made after a fork may hang,
    because gRPC itself does where it was used before, and what was open at the fork may crash it.
    """

    def __init__(self, address: str, **settings: Unpack[ConnectionSettings]) -> None:
        core = AsyncClient(address, **settings)
        super().__init__(LoopThread(), core)

    stylize = _making_job(AsyncClient.stylize)
    upload = _blocking(AsyncClient.upload)
    jobs = _iterating(AsyncClient.jobs)
    delete_job = _blocking(AsyncClient.delete_job)
    server_info = _blocking(AsyncClient.server_info)

    def job(self, job_id: str) -> Job:
        """The job of this id, to follow or steer from here. Asks the server nothing yet."""
        return Job(self._loop, self._core.job(job_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the background thread. Jobs go on without it."""
        self._loop.close(self._core.close)
