"""The work of a session at one scale: what is optimised there, towards what, and how it goes."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nst_engine.backbone import Backbone
from nst_engine.batching import Request
from nst_engine.checkpoint import SessionState, on_cpu
from nst_engine.divergence import Guard, Point
from nst_engine.evaluation import Evaluation
from nst_engine.inpainting import Hole
from nst_engine.material import Material
from nst_engine.optimizers import make_optimizer
from nst_engine.options import StylizeOptions
from nst_engine.parametrization import Parametrization, make_parametrization, pulled_back
from nst_engine.schedule import Scale
from nst_engine.stopping import StopReason, StopRule
from nst_engine.style_cache import StyleCache


@dataclass(frozen=True)
class Resources:
    """What a session works with at every scale.

    Attributes:
        backbone: the feature network.
        material: the pictures and masks.
        memory_budget: bytes for the maps of one evaluation, and again for the history of L-BFGS.
        cache: where measured styles are kept for other sessions.
    """

    backbone: Backbone
    material: Material
    memory_budget: int
    cache: StyleCache


@dataclass(frozen=True)
class View:
    """A picture on the way, computed when it is asked for; what its stage does later does not touch it.

    Attributes:
        scale: of the stage.
        parametrization: what makes an image of the parameters.
        parameters: as they were.
        hole: through which it is seen, if any.
    """

    scale: Scale
    parametrization: Parametrization
    parameters: Tensor
    hole: Hole | None

    @property
    def image(self) -> Tensor:
        """What is optimised, as an image, (1, 3, H, W)."""
        return self.parametrization.image(self.parameters)

    def composite(self, image: Tensor) -> Tensor:
        """The picture that an image stands for: seen through the hole, if there is one."""
        return image if self.hole is None else self.hole.composite(image)


class Stage:
    """One scale of a session. Made by `start` or `restore`.

    Attributes:
        scale: its size, and its iterations as they are planned by now.
        objective: what is minimised.
        guard: what undoes divergence; handed on from stage to stage.
    """

    def __init__(
        self,
        resources: Resources,
        scale: Scale,
        options: StylizeOptions,
        shares: Sequence[float],
        parametrization: Parametrization,
        parameters: Tensor,
        guard: Guard,
        *,
        final: bool,
    ) -> None:
        backbone, material, budget = resources.backbone, resources.material, resources.memory_budget
        self.scale = scale
        self.guard = guard
        self._processes = backbone.processes
        self._parametrization = parametrization
        (self._parameters,) = self._processes.agreed([parameters])
        self._hole = material.hole_at(scale)
        self.objective = material.objective(backbone, scale, options, shares, budget, resources.cache)
        shelf = backbone.optimizer_shelf
        self._optimizer = make_optimizer(options, self._parameters.shape, backbone.device, budget, shelf)
        self._stop_rule: StopRule
        self._evaluation: Evaluation | None
        self._start_judging(options, final=final)

    @classmethod
    def start(
        cls,
        resources: Resources,
        scale: Scale,
        options: StylizeOptions,
        shares: Sequence[float],
        image: Tensor,
        guard: Guard,
        *,
        final: bool,
    ) -> "Stage":
        """The scale from `image` on, (1, 3, H, W); `final` is whether it is the last one."""
        parametrization = make_parametrization(options, (scale.height, scale.width), image.device)
        return cls(resources, scale, options, shares, parametrization, parametrization.of(image), guard, final=final)

    @classmethod
    def restore(
        cls,
        resources: Resources,
        scale: Scale,
        options: StylizeOptions,
        shares: Sequence[float],
        state: SessionState,
        *,
        final: bool,
    ) -> "Stage":
        """The scale where `snapshot` has left it.

        Raises:
            OptionError: the state is of pictures of another size.
        """
        device = resources.backbone.device
        # Copied, as what was read from bytes may lie anywhere, and products of unaligned memory round otherwise.
        tensors = {name: tensor.to(device, copy=True) for name, tensor in state.tensors.items()}
        parametrization = make_parametrization(options, (scale.height, scale.width), device)
        parameters = parametrization.load(tensors)
        stage = cls(resources, scale, options, shares, parametrization, parameters, Guard(), final=final)
        stage._optimizer.load({name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()})
        stage._stop_rule = StopRule(options, final=final, recent=state.recent_losses)
        if state.total_loss is not None and state.losses is not None:
            stage._evaluation = Evaluation(dict(state.losses), state.total_loss, tensors["gradient"], finite=True)
        stage.guard = Guard(stage._best_of(state, tensors), state.step, state.setbacks, state.undone)
        return stage

    def _best_of(self, state: SessionState, tensors: Mapping[str, Tensor]) -> Point | None:
        if state.best_total_loss is None or state.best_losses is None:
            return Point(self._parameters, self._evaluation) if self._evaluation else None
        gradient = tensors["best_gradient"]
        evaluation = Evaluation(dict(state.best_losses), state.best_total_loss, gradient, finite=True)
        return Point(tensors["best_parameters"], evaluation)

    def snapshot(
        self, options: StylizeOptions, shares: tuple[float, ...], iteration: int, scale_ends: tuple[int, ...]
    ) -> SessionState:
        """What a session of these options has earned, on the CPU; later iterations do not touch it."""
        tensors = {f"optimizer.{name}": tensor for name, tensor in self._optimizer.tensors().items()}
        tensors |= self._parametrization.tensors(self._parameters)
        if self._evaluation is not None:
            tensors["gradient"] = self._evaluation.gradient
        best = self.guard.best if self.guard.has_left(self._parameters) else None
        if best is not None:
            tensors["best_parameters"], tensors["best_gradient"] = best.parameters, best.evaluation.gradient
        return SessionState(
            options,
            shares,
            iteration,
            scale_ends,
            self._stop_rule.recent,
            self.guard.undone,
            self.guard.step,
            self.guard.setbacks,
            self._evaluation.total if self._evaluation else None,
            dict(self._evaluation.losses) if self._evaluation else None,
            best.evaluation.total if best else None,
            dict(best.evaluation.losses) if best else None,
            on_cpu(tensors),
        )

    @property
    def nbytes(self) -> int:
        """An estimate of the memory held between iterations, in bytes."""
        parts = (self._parametrization, self._optimizer, self.objective, self._hole)
        # The parameters and their gradient, and those of the best state.
        return 4 * self._parameters.nbytes + sum(part.nbytes for part in parts if part is not None)

    @property
    def view(self) -> View:
        """The picture now."""
        return View(self.scale, self._parametrization, self._parameters, self._hole)

    @property
    def image(self) -> Tensor:
        """What is optimised, as an image, (1, 3, H, W)."""
        return self.view.image

    def iterate(self) -> Generator[Request, Evaluation, tuple[Evaluation, StopReason | None]]:
        """One iteration, which is undone if it diverges.

        Returns:
            The losses after it, and the reason to end the scale there, or None.

        Raises:
            OptionError: the losses overflow where the scale or a steered run starts.
        """
        if self._evaluation is None:
            before = self.guard.begin((yield from self._evaluated(self._parameters)))
        else:
            before = Point(self._parameters, self._evaluation)
        undone = self.guard.undone
        candidate = yield from self._evaluated(self.guard.propose(self._optimizer, before))
        after = self.guard.judge(self._optimizer, before, candidate)
        self._parameters, self._evaluation = after.parameters, after.evaluation
        # What was undone says nothing about how the loss moves.
        reason = self._stop_rule.judge(before.evaluation, after.evaluation) if undone == self.guard.undone else None
        return after.evaluation, StopReason.DIVERGENCE if self.guard.exhausted else reason

    def _evaluated(self, parameters: Tensor) -> Generator[Request, Evaluation, Point]:
        """The losses at the picture of the parameters, and the gradient of their sum in these."""
        (agreed,) = self._processes.agreed([parameters])
        variable = agreed.detach().requires_grad_(True)
        image = self.view.composite(self._parametrization.image(variable))
        evaluation = yield Request(self.objective, image)
        return Point(agreed, pulled_back(evaluation, image, variable))

    def steer(self, options: StylizeOptions, shares: Sequence[float], *, final: bool) -> None:
        """Goes on under another objective; the curvature and the losses so far no longer hold."""
        self.objective.steer(options, shares)
        self._optimizer.restart()
        self._start_judging(options, final=final)

    def _start_judging(self, options: StylizeOptions, *, final: bool) -> None:
        """Begins to watch a scale or an objective that is new."""
        self._stop_rule = StopRule(options, final=final)
        self.guard.restart()
        self._evaluation = None
