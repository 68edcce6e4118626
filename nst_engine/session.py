"""One stylisation in progress: what is optimised, its optimiser, and where it is in the schedule."""

import dataclasses
import math
import sys
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import batching, colors, pictures
from nst_engine.backbone import Backbone
from nst_engine.batching import BatchKey, Iteration, Request
from nst_engine.checkpoint import SessionState
from nst_engine.divergence import Guard, Point
from nst_engine.inpainting import Hole
from nst_engine.material import Material
from nst_engine.memory import working_bytes
from nst_engine.objective import Evaluation, Objective
from nst_engine.optimizers import Optimizer, make_optimizer
from nst_engine.options import OptionError, StylizeOptions, steered
from nst_engine.parametrization import Parametrization, check_parametrization, make_parametrization, pulled_back
from nst_engine.report import StepReport
from nst_engine.schedule import Scale, cut, plan, taps_in_use, with_total
from nst_engine.stopping import StopReason, StopRule
from nst_engine.style_cache import StyleCache
from nst_engine.tiled import TiledObjective, in_tiles


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
        self._backbone = backbone
        self._material = material
        self._shares = _checked_shares(shares, len(material.styles))
        self._options = options
        self._memory_budget = memory_budget
        self._cache = cache or StyleCache(0)
        height, width = material.content.shape[2:]
        self._scales = plan(height, width, options, None if state is None else state.scale_ends)
        self._check_memory()
        self._iteration = 0
        self._guard = Guard()
        self._evaluation: Evaluation | None = None
        self._scale: Scale
        self._parametrization: Parametrization
        self._parameters: Tensor
        self._objective: Objective
        self._hole: Hole | None
        self._optimizer: Optimizer
        self._stop_rule: StopRule
        if state is None:
            first = self._scales[0]
            self._enter(first, material.first_image(first, options, self._shares, initial))
        else:
            self._restore(state)

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
        parts = (self._material, self._parametrization, self._optimizer, self._objective, self._hole)
        # The parameters and their gradient, and those of the best state.
        return 4 * self._parameters.nbytes + sum(part.nbytes for part in parts if part is not None)

    @cached_property
    def working_bytes(self) -> int:
        """An estimate of the most memory that it takes while it is stepped, at any scale, in bytes.

        Without the shared network and without the sessions that it is stepped with.
        """
        return working_bytes(self._backbone, self._material, self._scales[-1], self._options, self._memory_budget)

    @property
    def batch_key(self) -> BatchKey | None:
        """What the next iteration has in common with those it can be evaluated together with: equal keys, one batch.

        None where it takes its turn alone: it is finished, or worked on in tiles or by several processes.
        """
        if self.finished:
            return None
        scale = self._next_scale
        size = scale.height, scale.width
        if scale is self._scale:
            tiled = isinstance(self._objective, TiledObjective)
        else:
            tiled = in_tiles(self._backbone, size, self._options, self._memory_budget)
        if tiled:
            return None
        return BatchKey(self._backbone, tuple(taps_in_use(self._options)), self._options.pooling, *size)

    def image(self) -> NDArray[np.uint8]:
        """The picture now, (H, W, 3) RGB, at the working size, in the colours that `options.color` asks for."""
        image = self._image
        if self._options.color == "keep_luminance":
            image = colors.with_chroma_of(self._material.content_at(self._scale), image)
        return pictures.to_picture(self._composite(image))

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
        if scale is not self._scale:
            del self._objective, self._optimizer  # their memory is wanted for those of the next scale
            self._enter(scale, pictures.resize(self._image, (scale.height, scale.width)))
        if self._evaluation is None:
            before = self._guard.begin((yield from self._evaluated(self._parameters)))
        else:
            before = Point(self._parameters, self._evaluation)
        undone = self._guard.undone
        candidate = yield from self._evaluated(self._guard.propose(self._optimizer, before))
        after = self._guard.judge(self._optimizer, before, candidate)
        self._parameters, self._evaluation = after.parameters, after.evaluation
        self._iteration += 1
        # What was undone says nothing about how the loss moves.
        reason = self._stop_rule.judge(before.evaluation, after.evaluation) if undone == self._guard.undone else None
        return self._report(after.evaluation, self._stop(reason))

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
        with self._backbone.processes.in_step({**given, "style_shares": style_shares}):
            options = steered(self._options, {name: value for name, value in given.items() if value is not None})
            shares = self._shares if style_shares is None else _checked_shares(style_shares, len(self._shares))
        if options.iterations != self._options.iterations:
            self._options = dataclasses.replace(self._options, iterations=options.iterations)
            self._reschedule(options.iterations)
        if (options, shares) != (self._options, self._shares):
            self._options, self._shares = options, shares
            self._objective.steer(options, shares)
            self._optimizer.restart()
            self._start_judging()

    def state_dict(self) -> SessionState:
        """A snapshot that later steps do not touch, on the CPU."""
        tensors = {f"optimizer.{name}": tensor for name, tensor in self._optimizer.tensors().items()}
        tensors |= self._parametrization.tensors(self._parameters)
        if self._evaluation is not None:
            tensors["gradient"] = self._evaluation.gradient
        best = self._guard.best if self._guard.has_left(self._parameters) else None
        if best is not None:
            tensors["best_parameters"], tensors["best_gradient"] = best.parameters, best.evaluation.gradient
        return SessionState(
            self._options,
            self._shares,
            self._iteration,
            tuple(scale.last for scale in self._scales),
            self._stop_rule.recent,
            self._guard.undone,
            self._guard.step,
            self._guard.setbacks,
            self._evaluation.total if self._evaluation else None,
            dict(self._evaluation.losses) if self._evaluation else None,
            best.evaluation.total if best else None,
            dict(best.evaluation.losses) if best else None,
            {name: tensor.to("cpu") for name, tensor in tensors.items()},
        )

    def _enter(self, scale: Scale, image: Tensor) -> None:
        """Starts `scale` from `image`."""
        self._parametrization = make_parametrization(self._options, (scale.height, scale.width), image.device)
        self._parameters = self._parametrization.of(image)
        self._prepare(scale)

    def _prepare(self, scale: Scale) -> None:
        """Gives `scale` its targets and an optimiser without memory."""
        self._scale = scale
        (self._parameters,) = self._backbone.processes.agreed([self._parameters])
        self._hole = self._material.hole_at(scale)
        self._objective = self._material.objective(
            self._backbone, scale, self._options, self._shares, self._memory_budget, self._cache
        )
        self._optimizer = make_optimizer(
            self._options, self._parameters.shape, self._backbone.device, self._memory_budget
        )
        self._start_judging()

    def _start_judging(self) -> None:
        """Begins to watch a scale or an objective that is new."""
        self._stop_rule = StopRule(self._options, final=self._at_last_scale)
        self._guard.restart()
        self._evaluation = None

    def _reschedule(self, iterations: int) -> None:
        # A run ends with an iteration, which tells why, and never between two.
        least = self._iteration if self.finished else self._iteration + 1
        self._scales = with_total(self._scales, max(iterations, least))
        self._scale = self._scales[self._scale.number - 1]

    def _check_memory(self) -> None:
        """Raises `OptionError` unless all of the largest scale fits."""
        last = self._scales[-1]
        check_parametrization(self._options, (last.height, last.width), self._memory_budget)
        self._material.check_memory(self._backbone, last, self._options, self._memory_budget)

    def _restore(self, state: SessionState) -> None:
        scale = next(scale for scale in self._scales if state.iteration <= scale.last)
        # Copied, as what was read from bytes may lie anywhere, and products of unaligned memory round otherwise.
        tensors = {name: tensor.to(self._backbone.device, copy=True) for name, tensor in state.tensors.items()}
        self._parametrization = make_parametrization(self._options, (scale.height, scale.width), self._backbone.device)
        self._parameters = self._parametrization.load(tensors)
        self._prepare(scale)
        self._optimizer.load({name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()})
        self._stop_rule = StopRule(self._options, final=self._at_last_scale, recent=state.recent_losses)
        self._iteration = state.iteration
        if state.total_loss is not None and state.losses is not None:
            self._evaluation = Evaluation(dict(state.losses), state.total_loss, tensors["gradient"], finite=True)
        self._guard = Guard(self._best_of(state, tensors), state.step, state.setbacks, state.undone)

    def _best_of(self, state: SessionState, tensors: Mapping[str, Tensor]) -> Point | None:
        if state.best_total_loss is None or state.best_losses is None:
            return Point(self._parameters, self._evaluation) if self._evaluation else None
        gradient = tensors["best_gradient"]
        evaluation = Evaluation(dict(state.best_losses), state.best_total_loss, gradient, finite=True)
        return Point(tensors["best_parameters"], evaluation)

    @property
    def _image(self) -> Tensor:
        """The picture now, (1, 3, H, W)."""
        return self._parametrization.image(self._parameters)

    def _composite(self, image: Tensor) -> Tensor:
        """The picture that an image stands for: seen through the hole, if there is one."""
        return image if self._hole is None else self._hole.composite(image)

    @property
    def _at_last_scale(self) -> bool:
        return self._scale.number == len(self._scales)

    @property
    def _next_scale(self) -> Scale:
        """That of the next iteration; there is one."""
        if self._iteration < self._scale.last:
            return self._scale
        return next(scale for scale in self._scales if scale.last > self._iteration)

    def _evaluated(self, parameters: Tensor) -> Generator[Request, Evaluation, Point]:
        """The losses at the picture of the parameters, and the gradient of their sum in these."""
        (agreed,) = self._backbone.processes.agreed([parameters])
        variable = agreed.detach().requires_grad_(True)
        image = self._composite(self._parametrization.image(variable))
        evaluation = yield Request(self._objective, image)
        return Point(agreed, pulled_back(evaluation, image, variable))

    def _stop(self, reason: StopReason | None) -> StopReason | None:
        """Ends the scale if there is a reason to; why the run has ended, if it has."""
        if self._guard.exhausted:
            reason = StopReason.DIVERGENCE
        if reason is not None:
            self._scales = cut(self._scales, self._scale.number, self._iteration)
            self._scale = self._scales[self._scale.number - 1]
        if not self.finished:
            return None
        return reason or StopReason.ITERATIONS

    def _report(self, evaluation: Evaluation, stop_reason: StopReason | None) -> StepReport:
        scale = self._scale
        return StepReport(
            iteration=self._iteration,
            iterations=self._scales[-1].last,
            scale=scale.number,
            scales=len(self._scales),
            width=scale.width,
            height=scale.height,
            total_loss=evaluation.total,
            losses=dict(evaluation.losses),
            undone=self._guard.undone,
            schedule=self._scales,
            stop_reason=stop_reason,
        )


def _checked_shares(shares: Sequence[float], styles: int) -> tuple[float, ...]:
    if styles == 0:
        raise OptionError("styles", "at least one style is needed, or a hole to fill")
    if len(shares) != styles:
        raise OptionError("style_shares", f"one share per style is needed: {styles}, not {len(shares)}")
    for index, share in enumerate(shares):
        if not math.isfinite(share) or share < 0:
            raise OptionError(f"style_shares[{index}]", f"must be finite and at least 0, not {share:g}")
    if not any(shares):
        raise OptionError("style_shares", "at least one must be above 0")
    return tuple(float(share) for share in shares)
