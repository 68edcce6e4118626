"""The weights of networks: read beside the computing, before the jobs that need them are admitted."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from functools import partial

from nst_engine import Engine, StylizeOptions, WeightsError


class Networks:
    """Prepares an engine for jobs, each network once however many wait for it."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        """`seconds` is how long a job waits, the setting `weights_seconds`."""
        self._engine = engine
        self._seconds = seconds
        self._reading: dict[tuple[str, ...], asyncio.Future[None]] = {}

    async def ready(self, options: StylizeOptions) -> None:
        """Returns once a session with these options needs neither a download nor a file.

        Raises:
            WeightsError: the weights cannot be had, or not in time.
        """
        key = options.model, options.precision, options.chosen_padding
        if (reading := self._reading.get(key)) is None:
            reading = self._reading[key] = _in_thread(partial(self._engine.prepare, options))
            reading.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait({reading}, timeout=self._seconds)
        if not reading.done():
            raise WeightsError(
                f"the weights of {options.model} have not come within weights_seconds = {self._seconds:g}"
            )
        reading.result()

    def _forget(self, key: tuple[str, ...], done: asyncio.Future[None]) -> None:
        del self._reading[key]
        if not done.cancelled():
            done.exception()  # it may be that nobody waits any more


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Runs it in a thread of its own, for which nothing waits at the end: a download may never end."""
    outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            work()
        except Exception as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return asyncio.wrap_future(outcome)
