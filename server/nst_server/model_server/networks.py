"""The weights of networks: read beside the computing, before the jobs that need them are admitted."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Set
from functools import partial

from nst_engine import Engine, StylizeOptions, WeightsError
from nst_server.jobs.announcements import announcements
from nst_server.jobs.backbone import Backbone

LEFT_SECONDS = 60.0


class Networks:
    """Prepares an engine for jobs, each network once however many wait for it."""

    def __init__(self, engine: Engine, backbone: Backbone, server: str, seconds: float) -> None:
        """`server` is this one's name; `seconds` is how long a job waits, the setting `weights_seconds`."""
        self._engine = engine
        self._backbone = backbone
        self._server = server
        self._seconds = seconds
        self._reading: dict[tuple[str, ...], asyncio.Future[None]] = {}
        self._left: dict[str, float] = {}  # until when, on the loop's clock

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

    async def leave_to_others(self, model: str) -> bool:
        """Leaves jobs with this model to other servers for a while; False if none of them has its weights."""
        alive = await announcements(self._backbone, patience=None)
        if not any(model in other.models for other in alive if other.server.name != self._server):
            return False
        self._left[model] = asyncio.get_running_loop().time() + LEFT_SECONDS
        return True

    @property
    def left(self) -> Set[str]:
        """The models that are left to others now."""
        now = asyncio.get_running_loop().time()
        return {model for model, end in self._left.items() if end > now}

    @property
    def announced(self) -> list[str]:
        """The models whose jobs others may leave to this server: those whose weights are here, and could be read."""
        left = self.left
        return [model for model in self._engine.available_models() if model not in left]

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
