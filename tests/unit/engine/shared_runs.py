"""Run as a program: one of three processes that share pictures, and what it comes to.

    python shared_runs.py RANK FOLDER

FOLDER holds content.npy and style.npy, and is where the processes meet. All three share the case `IN_THREE`, and the
first two every case. Each writes SHARING.CASE.RANK.npz, where SHARING is how many share it: the arrays that a case
gives, or the "error" in which it ended.
"""

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from engine_runs import MODEL, SHALLOW, Pixels, bytes_for, finish, noisy, steps
from numpy.typing import NDArray

from nst_engine import Engine, Style, StylizeOptions, checkpoint, pictures
from nst_engine.backbone import Backbone

Arrays = dict[str, Any]
Mask = NDArray[np.float32]
Backbones = dict[Any, Backbone]

PROCESSES, PAIR = 3, 2
IN_THREE = "gram"
SECONDS = 150
GRAM: dict[str, Any] = {"style_statistic": "gram", "strength": None, "style_weight": 0.1, "tv_weight": 0.01}
RUN: dict[str, Any] = {**SHALLOW, "size": 128, "iterations": 4, "scales": 2, "style_statistic": "gram"}
# The most pixels that a small tile may have.
SMALL_TILE = 64 * 64
RIGHT = np.repeat(np.float32([[0, 1]]), 8, axis=1).repeat(16, axis=0)  # a mask of the right half


def options(**changes: Any) -> StylizeOptions:
    return StylizeOptions(**{"size": 160, "scales": 1, "iterations": 6, "precision": "float32", **changes})


class Process:
    """An engine of one of several processes, or of one alone, and the pictures.

    `backbones` are networks that have been read for others of the same group; what is read is added.
    """

    def __init__(
        self, content: Pixels, style: Pixels, backbones: Backbones, group: dist.ProcessGroup | None = None
    ) -> None:
        self.content, self.style, self.group = content, style, group
        self.rank = 0 if group is None else group.rank()
        self._backbones = backbones
        self.new_engine()

    def new_engine(self, **given: Any) -> None:
        self.engine = Engine("cpu", threads=1, process_group=self.group, **given)
        if "weights" not in given:
            self.engine._backbones = self._backbones

    def evaluation(
        self, *, region: Mask | None = None, subject: Mask | None = None, hole: Mask | None = None, **changes: Any
    ) -> Arrays:
        """The losses and the gradient at the content under noise."""
        styles = [Style(self.style, region=region)]
        session = self.engine.start(self.content, styles, options(**changes), subject=subject, hole=hole)
        height, width = session.image().shape[:2]
        objective, passes = session._stage.objective, []
        features = objective.features
        objective.features = lambda part: passes.append(part) or features(part)
        found = objective.evaluate(pictures.resize(noisy(self.content), (height, width)))
        return {
            **found.losses,
            "total": found.total,
            "gradient": found.gradient.numpy(),
            "tiles": len(objective._tiles) if self.group else 1,
            "passes": len(passes),
            "bytes": objective.nbytes,
        }

    def run(self, **changes: Any) -> Arrays:
        """A run at two scales, steered on its way, and the same resumed in the middle."""
        session = self.engine.start(self.content, [Style(self.style)], options(**{**RUN, **changes}))
        steps(self.engine, session, 3)
        state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
        session.update(strength=0.7)
        finish(self.engine, session)
        resumed = self.engine.resume(state, self.content, [Style(self.style)])
        resumed.update(strength=0.7)
        reports = finish(self.engine, resumed)
        return {
            "picture": session.image(),
            "image": session.state_dict().tensors["image"].numpy(),
            "resumed": resumed.state_dict().tensors["image"].numpy(),
            "total": reports[-1].total_loss,
        }


def in_small_tiles(process: Process) -> Arrays:
    """Two tiles and more for each process; the budget is the last one's, as the smallest."""
    process.new_engine(memory_budget=bytes_for(options(**SHALLOW), SMALL_TILE) if process.rank else 2**40)
    return process.evaluation(**SHALLOW, **GRAM)


def other_pixels(process: Process) -> Arrays:
    process.content = process.content + np.uint8(process.rank)
    return process.evaluation(**GRAM)


def other_layout(process: Process) -> Arrays:
    """The same picture is the same however it lies in memory."""
    if process.rank:
        process.content = np.asfortranarray(process.content)
        process.style = process.style[:, ::-1].copy()[:, ::-1]
    return process.evaluation(**SHALLOW, **GRAM)


def unusable_in_one(process: Process) -> Arrays:
    process.new_engine(weights={MODEL: Path("/no/such/file")} if process.rank else {})
    return process.evaluation(**GRAM)


def other_steering(process: Process) -> Arrays:
    session = process.engine.start(process.content, [Style(process.style)], options(**RUN))
    session.update(strength=0.5 + 0.1 * process.rank)
    return {}


def other_budget(process: Process) -> Arrays:
    process.engine.start(process.content, [Style(process.style)], options(**RUN), memory_budget=2**30 + process.rank)
    return {}


def wandering(process: Process) -> Arrays:
    """Even where the optimisers do not compute the same in every process, the images are one."""
    session = process.engine.start(process.content, [Style(process.style)], options(**RUN))
    propose = session._stage._optimizer.propose
    session._stage._optimizer.propose = lambda *given: propose(*given) + process.rank
    steps(process.engine, session, 2)
    return {"image": session.state_dict().tensors["image"].numpy()}


def left_alone(process: Process) -> Arrays:
    """The others stop in the middle of a run, and go."""
    session = process.engine.start(process.content, [Style(process.style)], options(**RUN))
    steps(process.engine, session, 1 if process.rank else 2)
    return {}


CASES: dict[str, Callable[[Process], Arrays]] = {
    "gram": lambda process: process.evaluation(**GRAM),
    "moments": lambda process: process.evaluation(**SHALLOW, style_statistic="moments", strength=0.4),
    "masks": lambda process: process.evaluation(**SHALLOW, strength=0.4, region=RIGHT, subject=RIGHT.T),
    "a hole": lambda process: process.evaluation(**SHALLOW, **GRAM, hole=RIGHT[:, ::-1] * RIGHT.T),
    "bfloat16": lambda process: process.evaluation(**SHALLOW, **GRAM | {"precision": "bfloat16"}),
    "no style": lambda process: process.evaluation(**SHALLOW | GRAM | {"style_layers": {}}),
    "run": lambda process: process.run(),
    "sliced": lambda process: process.evaluation(style_statistic="sliced"),
    "other size": lambda process: process.evaluation(**SHALLOW, size=128 + 16 * process.rank),
    "tiny": lambda process: process.evaluation(**GRAM, size=24),
    "small tiles": in_small_tiles,
    "other pixels": other_pixels,
    "other layout": other_layout,
    "unusable in one": unusable_in_one,
    "other steering": other_steering,
    "other budget": other_budget,
    "wandering": wandering,
    "left alone": left_alone,
}


def outcome(process: Process, case: str) -> Arrays:
    """What a case gives, or the error in which it ends."""
    try:
        return CASES[case](process)
    except (ValueError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def together(content: Pixels, style: Pixels) -> dict[int, dict[str, list[Arrays]]]:
    """The outcomes of the cases, by how many processes share them, by case, and by rank."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "content.npy", content)
        np.save(folder / "style.npy", style)
        running = [subprocess.Popen([sys.executable, __file__, str(rank), name]) for rank in range(PROCESSES)]
        try:
            assert [process.wait(SECONDS) for process in running] == [0] * PROCESSES
        finally:
            for process in running:
                process.kill()
                process.wait()
        return {
            sharing: {
                case: [dict(np.load(folder / f"{sharing}.{case}.{rank}.npz")) for rank in range(sharing)]
                for case in cases
            }
            for sharing, cases in ((PROCESSES, [IN_THREE]), (PAIR, CASES))
        }


def main(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "meeting"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=SECONDS))
    share(dist.group.WORLD, folder, [IN_THREE])
    pair = dist.new_group(list(range(PAIR)))
    if rank < PAIR:
        share(pair, folder, CASES)
    gc.collect()  # a group that something still holds outlives this call, and its threads the interpreter
    dist.destroy_process_group()


def share(group: dist.ProcessGroup, folder: Path, cases: Iterable[str]) -> None:
    """Writes this process's outcomes of cases that the group shares."""
    pictures = np.load(folder / "content.npy"), np.load(folder / "style.npy")
    backbones: Backbones = {}
    for case in cases:
        found = outcome(Process(*pictures, backbones, group), case)
        np.savez(folder / f"{group.size()}.{case}.{group.rank()}.npz", **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
