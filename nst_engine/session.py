"""One stylisation in progress: how it is steered, and where it is in the schedule."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import batching, colors, pictures
from nst_engine.backbone import Backbone
from nst_engine.batching import BatchKey, Iteration
from nst_engine.checkpoint import SessionState
from nst_engine.divergence import Guard
from nst_engine.evaluation import Evaluation
from nst_engine.material import Material
from nst_engine.memory import WorkingMemory, check_sorting, working_memory
from nst_engine.options import OptionError, StylizeOptions, checked_shares, steered
from nst_engine.parametrization import check_parametrization
from nst_engine.report import StepReport
from nst_engine.schedule import Scale, cut, plan, taps_in_use, with_total
from nst_engine.stage import Resources, Stage
from nst_engine.stopping import StopReason
from nst_engine.style_cache import StyleCache
from nst_engine.tiled import TiledObjective

_numbers = itertools.count()


class Session:
    """One stylisation in progress. Made by `Engine.start` or `Engine.resume`.

    It is advanced by `Engine.step`, together with others, or alone by `advance`.

    Args:
        backbone: the feature network.
        material: the pictures and masks.
        shares: one per style.
        options: how to stylise.
        initial: (1, 3, H, W), 0-255, the picture to start from; for `init` "image" alone.
        state: where to continue; its options and shares are those given.
        memory_budget: bytes for the maps of one evaluation, and again for the history of L-BFGS.
        cache: where measured styles are kept for other sessions; None keeps nothing.

    Attributes:
        number: higher than those of sessions made before.

    Raises:
        OptionError: the styles or their shares are unusable, the content is too thin for `size`, the
            initial picture does not go with `init`, or the memory budget is too small for `size` or
            for what needs the whole picture at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        material: Material,
        shares: Sequence[float],
        options: StylizeOptions,
        *,
        initial: Tensor | None = None,
        state: SessionState | None = None,
        memory_budget: int = sys.maxsize,
        cache: StyleCache | None = None,
    ) -> None:
        self.number = next(_numbers)
        self._resources = Resources(backbone, material, memory_budget, cache or StyleCache(0))
        if not material.styles:
            raise OptionError("styles", "at least one style is needed, or a hole to fill")
        self._shares = checked_shares(shares, len(material.styles))
        self._options = options
        height, width = material.content.shape[2:]
        self._scales = plan(height, width, options, None if state is None else state.scale_ends)
        self._check_memory()
        self._iteration = 0 if state is None else state.iteration
        if state is None:
            first = self._scales[0]
            self._enter(first, material.first_image(first, options, self._shares, initial), Guard())
        else:
            scale = next(scale for scale in self._scales if state.iteration <= scale.last)
            final = self._is_last(scale)
            self._stage = Stage.restore(self._resources, scale, options, self._shares, state, final=final)
        self._view = self._stage.view

    @property
    def options(self) -> StylizeOptions:
        """The options as steered so far."""
        return self._options

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self._iteration

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self._iteration >= self._scales[-1].last

    @property
    def nbytes(self) -> int:
        """An estimate of the memory held between steps, in bytes, without the shared network."""
        return self._resources.material.nbytes + self._stage.nbytes

    @cached_property
    def working_memory(self) -> WorkingMemory:
        """An estimate of the most memory that it takes while it is stepped, at any scale.

        Without the shared network and without the sessions that it is stepped with.
        """
        given = self._resources
        return working_memory(given.backbone, given.material, self._scales[-1], self._options, given.memory_budget)

    @property
    def batch_key(self) -> BatchKey | None:
        """What the next iteration has in common with those it can be evaluated together with: equal keys, one batch.

        None where it takes its turn alone: it is finished, or worked on in tiles or by several processes.
        """
        if self.finished:
            return None
        scale, given = self._next_scale, self._resources
        if scale is self._stage.scale:
            objective = self._stage.objective
            seen = None if isinstance(objective, TiledObjective) else objective.window
        else:
            seen = given.material.seen_at_once(given.backbone, scale, self._options, given.memory_budget)
        if seen is None:
            return None
        return BatchKey(given.backbone, tuple(taps_in_use(self._options)), self._options.pooling, *seen.size)

    def image(self) -> NDArray[np.uint8]:
        """The picture after the last iteration, (H, W, 3) RGB, at the working size, in colours as by `options.color`.

        Any thread may ask for it, also while the next iteration is under way.
        """
        view = self._view
        image = view.image
        if self._options.color == "keep_luminance":
            image = colors.with_chroma_of(self._resources.material.content_at(view.scale), image)
        return pictures.to_picture(view.composite(image))

    def advance(self) -> StepReport:
        """Runs one iteration of this session alone.

        A proposal that diverges is undone: the image is the best so far of its scale again, and the
        next step is smaller.

        Raises:
            OptionError: the losses overflow where a scale or a steered run starts.
            RuntimeError: the session is finished.
        """
        (outcome,) = batching.advance([self.iterate()])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def iterate(self) -> Iteration:
        """The iteration of `advance`, which asks for each picture to be evaluated and is sent its evaluation."""
        if self.finished:
            raise RuntimeError("the session is finished: start another one")
        scale = self._next_scale
        if scale is not self._stage.scale:
            self._move_to(scale)
        evaluation, reason = yield from self._stage.iterate()
        self._view = self._stage.view
        self._iteration += 1
        return self._report(evaluation, self._stop(reason))

    def update(
        self,
        strength: float | None = None,
        content_weight: float | None = None,
        style_weight: float | None = None,
        tv_weight: float | None = None,
        style_shares: Sequence[float] | None = None,
        content_layers: Mapping[str, float] | None = None,
        style_layers: Mapping[str, float] | None = None,
        iterations: int | None = None,
    ) -> None:
        """Steers the run from the next iteration on; what is None, or equal to what holds, stays as it is.

        When the objective changes, its curvature so far no longer holds: L-BFGS starts its history
        afresh and the gradient is evaluated anew. With a strength, a change of layers or shares strikes
        the balance anew: a strength looks alike whatever the layers are.

        Args:
            strength: as in `StylizeOptions`; for a run that is balanced by it.
            content_weight, style_weight: for a run with raw weights.
            tv_weight: as in `StylizeOptions`.
            style_shares: one per style, at least 0, at least one above 0.
            content_layers, style_layers: weights by tap, at least 0, at least one above 0, at taps that the
                options name; one left out weighs 0.
            iterations: the new number in all. More go to the last scale, and fewer are taken from it; fewer
                than the scales before it have end the run at one of these, and cut it short for good. Fewer
                than are done leave one more to do.

        Raises:
            OptionError: a value out of range, raw weights on a session balanced by strength or the
                other way round, not one share per style, a tap that the run has no target for, or another
                process of the engine's group was given another one. Nothing has changed then.
            RuntimeError: another process has refused. Nothing has changed then.
        """
        given: dict[str, Any] = {
            "strength": strength,
            "content_weight": content_weight,
            "style_weight": style_weight,
            "tv_weight": tv_weight,
            "content_layers": content_layers,
            "style_layers": style_layers,
            "iterations": iterations,
        }
        with self._resources.backbone.processes.in_step({**given, "style_shares": style_shares}):
            options = steered(self._options, {name: value for name, value in given.items() if value is not None})
            shares = self._shares if style_shares is None else checked_shares(style_shares, len(self._shares))
        if options.iterations != self._options.iterations:
            self._options = dataclasses.replace(self._options, iterations=options.iterations)
            # A run ends with an iteration, which tells why, and never between two.
            least = self._iteration if self.finished else self._iteration + 1
            self._reschedule(with_total(self._scales, max(options.iterations, least)))
        if (options, shares) != (self._options, self._shares):
            self._stage.steer(options, shares, final=self._is_last(self._stage.scale))
            self._options, self._shares = options, shares

    def state_dict(self) -> SessionState:
        """A snapshot that later steps do not touch, on the CPU."""
        ends = tuple(scale.last for scale in self._scales)
        return self._stage.snapshot(self._options, self._shares, self._iteration, ends)

    def _enter(self, scale: Scale, image: Tensor, guard: Guard) -> None:
        """Starts `scale` from `image`."""
        final = self._is_last(scale)
        self._stage = Stage.start(self._resources, scale, self._options, self._shares, image, guard, final=final)

    def _move_to(self, scale: Scale) -> None:
        """Goes on at `scale` from the picture so far."""
        image, guard = pictures.resize(self._stage.image, (scale.height, scale.width)), self._stage.guard
        del self._stage  # its memory is wanted for the next one
        self._enter(scale, image, guard)

    def _is_last(self, scale: Scale) -> bool:
        return scale.number == len(self._scales)

    def _reschedule(self, scales: tuple[Scale, ...]) -> None:
        """Changes where scales end; the run stays at the one that it is at."""
        self._scales = scales
        self._stage.scale = scales[self._stage.scale.number - 1]

    def _check_memory(self) -> None:
        """Raises `OptionError` unless all of the largest scale fits."""
        last, given = self._scales[-1], self._resources
        check_parametrization(self._options, (last.height, last.width), given.memory_budget)
        given.material.check_memory(given.backbone, last, self._options, given.memory_budget)
        check_sorting(given.backbone, given.material, last, self._options, given.memory_budget)

    @property
    def _next_scale(self) -> Scale:
        """That of the next iteration; there is one."""
        if self._iteration < self._stage.scale.last:
            return self._stage.scale
        return next(scale for scale in self._scales if scale.last > self._iteration)

    def _stop(self, reason: StopReason | None) -> StopReason | None:
        """Ends the scale if there is a reason to; why the run has ended, if it has."""
        if reason is not None:
            self._reschedule(cut(self._scales, self._stage.scale.number, self._iteration))
        if not self.finished:
            return None
        return reason or StopReason.ITERATIONS

    def _report(self, evaluation: Evaluation, stop_reason: StopReason | None) -> StepReport:
        scale = self._stage.scale
        return StepReport(
            iteration=self._iteration,
            iterations=self._scales[-1].last,
            scale=scale.number,
            scales=len(self._scales),
            width=scale.width,
            height=scale.height,
            total_loss=evaluation.total,
            losses=dict(evaluation.losses),
            undone=self._stage.guard.undone,
            schedule=self._scales,
            stop_reason=stop_reason,
        )
