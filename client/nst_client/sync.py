"""The blocking client: each method is the asyncio one, run on an event loop in a background thread."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from PIL.Image import Image as PilImage

from nst_client.client import AsyncClient, ConnectionSettings, cancel_unheard
from nst_client.events import AnyEvent, ResultEvent
from nst_client.formats import Codec, EncodedFormat, Format, TensorFormat
from nst_client.images import Decoded, Picture, Pixels
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

    def __repr__(self) -> str:
        return repr(self._core).removeprefix("Async")


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
        made: list[AsyncJob] = []

        async def make() -> AsyncJob:
            made.append(await method(self._core, *args, **kwargs))
            return made[0]

        try:
            return Job(self._loop, self._loop.run(make()))
        except BaseException:  # Ctrl-C, perhaps when the job was there already
            if made and not kwargs.get("request_id"):
                self._loop.run(cancel_unheard(made[0]))
            raise

    return call


class Job(_Facade[AsyncJob]):
    """A job: `for event in job` follows it from its first event to its last. See `AsyncJob`.

    What waits for its end takes a `timeout` in seconds, None for ever. Raises TimeoutError when so much time has
    passed; the job goes on.
    """

    events = _iterating(AsyncJob.events)
    status = _blocking(AsyncJob.status)
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

    def wait(self, timeout: float | None = None) -> ResultEvent:
        """As `AsyncJob.wait`, for so many seconds."""
        return self._within(timeout, lambda job: job.wait())

    @overload
    def result(self, form: EncodedFormat | Codec, *, timeout: float | None = None) -> PilImage: ...
    @overload
    def result(self, form: TensorFormat, *, timeout: float | None = None) -> Pixels: ...
    @overload
    def result(self, form: Format | None = None, *, timeout: float | None = None) -> Decoded: ...
    def result(self, form: Format | None = None, *, timeout: float | None = None) -> Decoded:
        """As `AsyncJob.result`, waited for so many seconds."""
        return self._within(timeout, lambda job: job.result(form))

    def result_picture(self, form: Format | None = None, *, timeout: float | None = None) -> Picture:
        """As `AsyncJob.result_picture`, waited for so many seconds."""
        return self._within(timeout, lambda job: job.result_picture(form))

    def _within(self, timeout: float | None, ask: Callable[[AsyncJob], Coroutine[Any, Any, T]]) -> T:
        async def asking() -> T:
            try:
                async with asyncio.timeout(timeout) as limit:
                    return await ask(self._core)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise TimeoutError(f"no result of job {self.id} in {timeout:g} s: it goes on") from None

        return self._loop.run(asking())


class Client(_Facade[AsyncClient]):
    """A client that blocks, usable from any number of threads. Takes the arguments of `AsyncClient`.

    Close it, or use it as a context manager. One that is dropped, with all its jobs, is closed with a ResourceWarning.

    In a process that was forked from the one that made it, every call raises NstError. Start processes by spawn
    (`multiprocessing.get_context("spawn")`), and make a client in each: one that is made after a fork may hang,
    because gRPC itself does where it was used before, and what was open at the fork may crash it.
    """

    def __init__(self, address: str, **settings: Unpack[ConnectionSettings]) -> None:
        core = AsyncClient(address, **settings)
        super().__init__(LoopThread(core.close, f"the client of {address}"), core)

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
        self._loop.close()
