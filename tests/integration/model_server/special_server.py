"""`nst-server model-server`, made slow and short of memory: special_server.py ARGUMENTS..."""

import sys
import threading
from collections.abc import Sequence

import torch

from nst_engine import Engine, Session, StepReport
from nst_server.main import main
from nst_server.model_server import app

# A job of so many iterations hangs in its second.
ENDLESS = 41


def warm_when_told() -> None:
    """The engine is warm after a line has come in."""
    warm_engine = app.warm_engine

    def later(settings: app.ModelServerSettings) -> Engine:
        sys.stdin.readline()
        return warm_engine(settings)

    app.warm_engine = later


def out_of_memory_once() -> None:
    """Memory runs out in the third iteration of the first job that gets so far."""
    step = Engine.step
    failed: list[Session] = []

    def failing(engine: Engine, sessions: Sequence[Session]) -> list[StepReport | Exception]:
        outcomes = step(engine, sessions)
        for place, session in enumerate(sessions):
            if session.iteration == 3 and not failed:
                failed.append(session)
                outcomes[place] = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return outcomes

    Engine.step = failing  # type: ignore[method-assign]


def without_end() -> None:
    """The second iteration of an `ENDLESS` job does not end, and is not waited for long."""
    step = Engine.step
    app.LAST_SECONDS = 1.0

    def hanging(engine: Engine, sessions: Sequence[Session]) -> list[StepReport | Exception]:
        if any((session.iteration, session.options.iterations) == (1, ENDLESS) for session in sessions):
            threading.Event().wait()
        return step(engine, sessions)

    Engine.step = hanging  # type: ignore[method-assign]


if __name__ == "__main__":
    warm_when_told()
    out_of_memory_once()
    without_end()
    main()
