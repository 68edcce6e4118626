"""The way in: an engine holds a device and its networks, and runs sessions on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import batching, hardware, pictures, weights
from nst_engine.backbone import Backbone
from nst_engine.checkpoint import SessionState
from nst_engine.distributed import Processes
from nst_engine.inputs import Style, to_material
from nst_engine.networks import NETWORKS
from nst_engine.options import StylizeOptions
from nst_engine.pictures import Picture
from nst_engine.recording import RECORDED_PIXELS
from nst_engine.report import StepReport
from nst_engine.session import Session
from nst_engine.style_cache import StyleCache

if TYPE_CHECKING:  # a torch without the distributed package has no such name
    from torch.distributed import ProcessGroup


class NetworkKey(NamedTuple):
    """What tells one backbone from another."""

    model: str
    arithmetic: hardware.Arithmetic
    padding: str

    @property
    def layers(self) -> tuple[str, hardware.Arithmetic]:
        """What those have in common that differ in their padding alone."""
        return self.model, self.arithmetic


WARM_UP_SIZE = 64
# What is measured of a dozen styles by moments, at any size, takes a tenth of it.
STYLE_CACHE_BYTES = 2**28


class Engine:
    """Runs stylisations on one device. Not thread-safe: one thread calls it, any may read pictures and `prepare`.

    To be fast it keeps the process from returning freed memory to the system; `release_memory` does.

    Args:
        device: "auto" (CUDA when there is one, else the CPU), "cpu", "cuda", "cuda:1", ...
        threads: CPU threads for torch, process-wide; None leaves torch's choice. Results are
            reproducible bit for bit only with the same number.
        weights: model name to a local weights file, used instead of the cache.
        cache_dir: where fetched weights are kept; None is `$NST_CACHE`, or else `~/.cache/nst`.
        memory_budget: bytes for the network's maps in one evaluation. A larger picture is worked on
            in tiles, with the same result and in more time, and L-BFGS keeps no more history than
            fits into as much again. None is a share of what is free, `hardware.default_memory_budget`.
        process_group: of torch.distributed, gloo for CPUs and nccl for GPUs: the processes share every
            picture, and each computes a part of it. All of them make an engine and call the same methods
            in the same order with the same pictures and options; all get the same reports and the same
            picture, to the last bit. The smallest budget of any counts for all. When one of them raises
            or dies in the middle, the others' call raises torch's error at the timeout of the group at the
            latest, which must be longer than an iteration. None is this process alone.
        batch_limit: how many sessions `step` evaluates together, at most; their maps fit into the memory
            budget in any case, and on a GPU they have `RECORDED_PIXELS` together. None is no other limit.
        style_cache_bytes: for what was measured of style pictures, kept for the next session with the same
            one; the least recently used makes room. 0 keeps nothing.

    Raises:
        ValueError: there is no such device here, the budget or the limit is not above 0, or the cache is below 0.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        threads: int | None = None,
        weights: Mapping[str, Path] | None = None,
        cache_dir: Path | None = None,
        memory_budget: int | None = None,
        process_group: "ProcessGroup | None" = None,
        batch_limit: int | None = None,
        style_cache_bytes: int = STYLE_CACHE_BYTES,
    ) -> None:
        if memory_budget is not None and memory_budget <= 0:
            raise ValueError(
                f"memory_budget: must be above 0 bytes, not {memory_budget}; None takes a share of what is free"
            )
        if batch_limit is not None and batch_limit <= 0:
            raise ValueError(f"batch_limit: must be above 0, not {batch_limit}; None leaves it to the memory budget")
        if style_cache_bytes < 0:
            raise ValueError(f"style_cache_bytes: must be at least 0, not {style_cache_bytes}; 0 keeps nothing")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = hardware.resolve_device(device)
        hardware.keep_freed_memory()
        self._files = dict(weights or {})
        self._cache_dir = cache_dir
        self._backbones: dict[NetworkKey, Backbone] = {}
        self._prepared: dict[tuple[str, hardware.Arithmetic], dict[str, Tensor]] = {}
        self._style_cache = StyleCache(style_cache_bytes)
        self._processes = Processes(process_group, self.device)
        self.memory_budget = self._processes.least(memory_budget or hardware.default_memory_budget(self.device))
        # What is not recorded takes longer than its sessions one by one.
        worthwhile = RECORDED_PIXELS if self.device.type == "cuda" else None
        self._batches = batching.Batches(self.memory_budget, batch_limit, worthwhile)

    @property
    def device_name(self) -> str:
        """What people call the device."""
        return hardware.device_name(self.device)

    def available_models(self) -> list[str]:
        """The models whose weights are here, so that no download is needed."""
        return [name for name in NETWORKS if name in self._files or weights.is_cached(name, self._cache_dir)]

    def prepare(self, options: StylizeOptions) -> None:
        """Fetches and reads the weights that a session with these options needs, so that `start` need not.

        Any thread may call this, beside the one that calls the rest. Nothing is done on the device.

        Raises:
            WeightsError: the weights cannot be had.
        """
        key = self._network_key(options)
        if self._alike(key) is None and key.layers not in self._prepared:
            self._prepared[key.layers] = self._read_weights(options.model)
            if self._alike(key) is not None:  # made meanwhile, by another that has prepared it
                self._prepared.pop(key.layers, None)

    def warm_up(self, model: str) -> None:
        """Loads the weights of `model` and runs one small iteration, so that the first job need not wait.

        Raises:
            WeightsError: the weights cannot be had.
        """
        picture = np.zeros((WARM_UP_SIZE, WARM_UP_SIZE, 3), np.uint8)
        options = StylizeOptions(model=model, size=WARM_UP_SIZE, iterations=1, scales=1)
        self.start(picture, [Style(picture)], options).advance()

    def start(
        self,
        content: Picture,
        styles: Sequence[Style],
        options: StylizeOptions,
        initial: Picture | None = None,
        *,
        subject: Picture | None = None,
        hole: Picture | None = None,
        memory_budget: int | None = None,
    ) -> Session:
        """A new session.

        Args:
            content: the picture to keep, (H, W, 3) RGB, uint8 or floating 0-1, of any size.
            styles: at least one, unless there is a hole; then the content around it is the style.
            options: how to stylise.
            initial: the picture to start from, as content, stretched to its shape; with
                `options.init` "image" and no other.
            subject: a mask, (H, W) uint8 or floating 0-1, of what `options.protection` protects; stretched
                to the content's shape. With `options.faces`, faces are protected too.
            hole: a mask, likewise, of what alone may change. What is there counts for nothing: it starts from
                what is around it, where `options.init` does not say otherwise, and has no content loss.
                Where the mask is 0 the result is the content at the working size, bit for bit; beside the
                hole it is resampled from what is outside alone. Not together with a subject or faces.
            memory_budget: of this session, in bytes; None is the engine's.

        Raises:
            OptionError: a picture, a mask or a share is unusable, or missing, faces are to be found
                without OpenCV, or the size or an option does not fit into the memory budget or is none that
                processes can share; or another process was given another one; `field` names it.
            WeightsError: the weights cannot be had.
            RuntimeError: another process of the group could not start.
        """
        return self._session(
            content, styles, options, initial=initial, subject=subject, hole=hole, memory_budget=memory_budget
        )

    def resume(
        self,
        state: SessionState,
        content: Picture,
        styles: Sequence[Style],
        *,
        subject: Picture | None = None,
        hole: Picture | None = None,
        memory_budget: int | None = None,
    ) -> Session:
        """The session that `Session.state_dict` described, with the pictures and masks it was started with.

        Shares of the styles come from the state, as steered. On the CPU with the same number of
        threads it goes on bit for bit as if it had never stopped.

        Raises:
            OptionError: the pictures do not fit the state.
            WeightsError: the weights cannot be had.
        """
        return self._session(
            content, styles, state.options, subject=subject, hole=hole, state=state, memory_budget=memory_budget
        )

    def step(self, sessions: Sequence[Session]) -> list[StepReport | Exception]:
        """One iteration for every session, those of equal `Session.batch_key` together.

        A batch is one pass through the network and one back, and one transfer from the device; optimiser,
        losses, masks and guard are each session's own. One that is too large after all is done one by one, and
        the next are half as large until memory is released. The others take turns: those with a key of their own,
        and those with none, which are worked on in tiles.

        Returns:
            For each session, in order, its report; or what it raised, which leaves the others as they are. One
            that has raised is of no further use. With a process group all take turns, and the first error is
            raised, since the other processes wait for this one.

        Raises:
            ValueError: a session is given twice.
        """
        if len({id(session) for session in sessions}) < len(sessions):
            raise ValueError("sessions: one of them is given twice, and can only be stepped once at a time")
        if self._processes.size > 1:
            return [session.advance() for session in sessions]
        outcomes: dict[Session, StepReport | Exception] = {}
        # In the order of their making, whoever is given first: other companions would be another recording.
        in_order = sorted(sessions, key=lambda session: session.number)
        for key, batch in self._batches.of([(session, session.batch_key) for session in in_order]):
            too_large = partial(self._batches.was_too_large, key, len(batch))
            found = batching.advance([session.iterate() for session in batch], too_large=too_large)
            outcomes |= zip(batch, found, strict=True)
        return [outcomes[session] for session in sessions]

    def release_memory(self) -> None:
        """Returns the memory of sessions that are gone to the system, and on a GPU to others who use it.

        What states have been copied from there by way of goes too.
        """
        hardware.release_freed_memory()
        self._batches.forget()
        for backbone in self._backbones.values():
            backbone.recordings.clear()
            backbone.optimizer_shelf.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.accelerator.empty_host_cache()

    def _session(
        self,
        content: Picture,
        styles: Sequence[Style],
        options: StylizeOptions,
        *,
        initial: Picture | None = None,
        subject: Picture | None = None,
        hole: Picture | None = None,
        state: SessionState | None = None,
        memory_budget: int | None = None,
    ) -> Session:
        inputs = {"content": content, "styles": styles, "initial": initial, "subject": subject, "hole": hole}
        given = {**inputs, "state": state, "memory_budget": memory_budget, **self._chosen(options)}
        with self._processes.in_step(given):
            start = None if initial is None else pictures.to_tensor(initial, "initial", self.device)
            if hole is not None:
                options = replace(options, content_layers={})
            material = to_material(content, styles, subject, hole, options, self.device)
            shares = [style.weight for style in styles] if state is None else state.style_shares
            if hole is not None:
                shares = shares or [1.0]
            backbone = self._backbone(options)
        return Session(
            backbone,
            material,
            shares,
            options,
            initial=start,
            state=state,
            memory_budget=self.memory_budget if memory_budget is None else memory_budget,
            cache=self._style_cache,
        )

    def _chosen(self, options: StylizeOptions) -> dict[str, Any]:
        """The options by name, and the precision that is meant on this device."""
        return {**vars(options), "precision": str(hardware.arithmetic(options.precision, self.device).dtype)}

    def _backbone(self, options: StylizeOptions) -> Backbone:
        key = self._network_key(options)
        if key not in self._backbones:
            alike = self._alike(key)
            self._backbones[key] = self._made(key) if alike is None else alike.padded(key.padding)
            self._prepared.pop(key.layers, None)  # not sooner: `prepare` would read them again
        return self._backbones[key]

    def _alike(self, key: NetworkKey) -> Backbone | None:
        """One that differs in its padding, if at all."""
        alike = (there for other, there in list(self._backbones.items()) if other.layers == key.layers)
        return next(alike, None)

    def _made(self, key: NetworkKey) -> Backbone:
        tensors = self._prepared.get(key.layers) or self._read_weights(key.model)
        dtype, sparing = key.arithmetic
        return Backbone(NETWORKS[key.model], tensors, self.device, dtype, key.padding, self._processes, sparing=sparing)

    def _network_key(self, options: StylizeOptions) -> NetworkKey:
        arithmetic = hardware.arithmetic(options.precision, self.device)
        if not NETWORKS[options.model].spares:
            arithmetic = arithmetic._replace(sparing=False)
        return NetworkKey(options.model, arithmetic, options.chosen_padding)

    def _read_weights(self, model: str) -> dict[str, Tensor]:
        file = self._files.get(model)
        return weights.load(model, self._cache_dir) if file is None else weights.read_file(file, NETWORKS[model])


def stylize(
    content: Picture,
    styles: Sequence[Style],
    options: StylizeOptions | None = None,
    *,
    initial: Picture | None = None,
    subject: Picture | None = None,
    hole: Picture | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[StepReport, NDArray[np.uint8]]]:
    """Stylises, yielding after every iteration; the last picture is the result.

        for report, picture in stylize(content, [Style(style)]):
            print(report.iteration, report.total_loss)

    Args:
        content: as in `Engine.start`.
        styles: as in `Engine.start`.
        options: None means the defaults.
        initial: as in `Engine.start`.
        subject: as in `Engine.start`.
        hole: as in `Engine.start`.
        engine: None makes one with its defaults.

    Yields:
        The report and the picture so far, (H, W, 3) uint8 RGB at the working size.

    Raises:
        OptionError, WeightsError: as in `Engine.start`.
    """
    engine = engine or Engine()
    session = engine.start(content, styles, options or StylizeOptions(), initial, subject=subject, hole=hole)
    while not session.finished:
        yield session.advance(), session.image()
