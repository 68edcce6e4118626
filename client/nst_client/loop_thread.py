"""An asyncio event loop in a thread of its own, for callers that block."""

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from nst_client.errors import NstError, client_closed

T = TypeVar("T")
Farewell = Callable[[], Coroutine[Any, Any, None]]


class LoopThread:
    """Runs coroutines for other threads, until it is closed or nobody holds it any more.

    Args:
        farewell: run last.
        user: what a ResourceWarning says has not closed this, when nobody holds it any more.
    """

    def __init__(self, farewell: Farewell, user: str) -> None:
        self._farewell = farewell
        self._pid = os.getpid()
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="nst-client", daemon=True)
        self._thread.start()
        self._loop = started.result()
        self._lock = threading.RLock()  # in `_submit` the garbage collector may close a stream, which submits too
        self._open = True
        self._dropped = weakref.finalize(self, _release, self._pid, self._loop, farewell, user)
        self._dropped.atexit = False  # the process takes the thread along

    @staticmethod
    def _serve(started: "Future[asyncio.AbstractEventLoop]") -> None:
        with asyncio.Runner() as runner:
            started.set_result(runner.get_loop())
            runner.get_loop().run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, waited for; the caller's context variables go with it.

        Ctrl-C cancels the work, and goes on when that has ended; a second one at once.

        Raises:
            NstError: the loop was closed, before or meanwhile, or is another process's. Else whatever `work` raises.
        """
        future = self._submit(work)
        try:
            return future.result()
        except CancelledError:
            raise client_closed() from None
        except BaseException:  # Ctrl-C ends the waiting, and is to end the work too
            if future.cancel():
                with suppress(CancelledError):
                    self._submit(_settle()).result()
            raise

    def iterate(self, stream: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an async generator, fetched one by one; leaving early closes it."""
        try:
            while True:
                try:
                    item = self.run(_following(stream))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            # Not waited for: the garbage collector may run this on the loop's own thread.
            self._submit(_close(stream))

    def close(self) -> None:
        """Run the farewell, cancel what still runs, and end the thread. Closing twice is closing once.

        In a process that was forked there is nothing to end.
        """
        if self._is_forked():
            return
        self._dropped.detach()
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            asyncio.run_coroutine_threadsafe(self._farewell(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        refused: Future[T] = Future()
        if self._is_forked():  # asked first, because who held the lock may be a thread that was not forked
            refused.set_exception(_forked())
        else:
            with self._lock:
                if self._open:
                    return asyncio.run_coroutine_threadsafe(work, self._loop)
            refused.cancel()
        work.close()
        return refused

    def _is_forked(self) -> bool:
        return os.getpid() != self._pid


def _forked() -> NstError:
    return NstError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "this process was forked from the one that made the client, without its thread: "
        "start processes by spawn, and make a client in each",
    )


def _release(pid: int, loop: asyncio.AbstractEventLoop, farewell: Farewell, user: str) -> None:
    # Not waited for: the garbage collector may run this on the loop's own thread.
    if os.getpid() == pid:
        asyncio.run_coroutine_threadsafe(_stop(farewell), loop)
        warnings.warn(f"{user} was dropped without close()", ResourceWarning, stacklevel=2)


async def _stop(farewell: Farewell) -> None:
    await farewell()
    asyncio.get_running_loop().stop()


async def _settle() -> None:
    """Return when what was cancelled has cleaned up after itself."""
    if ending := [task for task in asyncio.all_tasks() if task.cancelling()]:
        await asyncio.wait(ending)


async def _following(stream: AsyncGenerator[T, None]) -> T:
    return await anext(stream)


async def _close(stream: AsyncGenerator[T, None]) -> None:
    await stream.aclose()
