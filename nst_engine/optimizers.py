"""The optimisers. Each proposes the next parameters and learns from them once they are accepted."""

import sys
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from nst_engine.lbfgs import LBFGS, FourierPreconditioner
from nst_engine.options import StylizeOptions
from nst_engine.pictures import MID_GREY
from nst_engine.recording import Shelf

# Pairs that L-BFGS keeps at any size: with fewer it would be little more than gradient descent.
MINIMUM_HISTORY = 2
# Used where none is given. For the first-order ones, the largest rates tried (two to three times
# apart) whose first iteration lowered the loss of jobs balanced by strength, at 96 px on three pairs
# of pictures. Raw weights scale the gradient, and with it the rate that gradient descent wants.
# Network weights: of two or three rates, those with about the lowest loss after 24 iterations at 64 px
# on two of these pairs. Fourier coefficients: likewise for gradient descent; a step is as large as in
# pixels, so Adam and Adagrad have the rates of those.
LEARNING_RATES = {
    "pixels": {"lbfgs": 1.0, "adam": 10.0, "adagrad": 12.0, "gradient_descent": 0.3},
    "fourier": {"lbfgs": 1.0, "adam": 10.0, "adagrad": 12.0, "gradient_descent": 0.1},
    "network": {"lbfgs": 1.0, "adam": 0.6, "adagrad": 1.2, "gradient_descent": 0.003},
}


class Optimizer(Protocol):
    """State and update rule; parameters, of one shape, and gradients are float32."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""

    def propose(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """The next parameters to try, `step` times as far as the rule says."""

    def accept(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """Learns from a proposal that was taken."""

    def restart(self) -> None:
        """Forgets what no longer holds once the objective has changed."""

    def turn_back(self) -> None:
        """Forgets where it was going, as that diverged: the parameters are earlier ones again."""

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the whole state."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes on a state that `tensors` gave, and its tensors with it."""


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

    BETAS = (0.9, 0.99)
    EPSILON = 1e-8

    def __init__(self, shape: torch.Size, device: torch.device, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._mean = torch.zeros(shape, device=device)
        self._square = torch.zeros(shape, device=device)
        self._count = 0
        self._proposed = (self._mean, self._square)

    @property
    def nbytes(self) -> int:
        """See `Optimizer`."""
        return self._mean.nbytes + self._square.nbytes

    def propose(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """See `Optimizer`."""
        first, second = self.BETAS
        mean = self._mean.lerp(gradient, 1 - first)
        square = self._square.lerp(gradient.square(), 1 - second)
        self._proposed = (mean, square)
        count = self._count + 1
        deviation = (square / (1 - second**count)).sqrt() + self.EPSILON
        return parameters - (step * self._learning_rate / (1 - first**count)) * mean / deviation

    def accept(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """See `Optimizer`."""
        self._mean, self._square = self._proposed
        self._count += 1

    def restart(self) -> None:
        """See `Optimizer`. The moments adapt by themselves within a few iterations, so they stay."""

    def turn_back(self) -> None:
        """See `Optimizer`. The squares say how steep it is around here, which holds."""
        self._mean = torch.zeros_like(self._mean)

    def tensors(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        return {"mean": self._mean, "square": self._square, "count": torch.tensor(self._count)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        self._mean = tensors["mean"].to(self._mean.device)
        self._square = tensors["square"].to(self._square.device)
        self._count = int(tensors["count"])


class Adagrad:
    """Adagrad with a diagonal matrix (Duchi, Hazan and Singer, JMLR 12, 2011, figure 1).

    A parameter's step shrinks with the root of the summed squares of its gradients so far.
    """

    EPSILON = 1e-10

    def __init__(self, shape: torch.Size, device: torch.device, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._squares = torch.zeros(shape, device=device)

    @property
    def nbytes(self) -> int:
        """See `Optimizer`."""
        return self._squares.nbytes

    def propose(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """See `Optimizer`."""
        root = (self._squares + gradient.square()).sqrt() + self.EPSILON
        return parameters - step * self._learning_rate * gradient / root

    def accept(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """See `Optimizer`."""
        self._squares = self._squares + gradient.square()

    def restart(self) -> None:
        """See `Optimizer`. Sums never fade: those of another objective would slow this one down for good."""
        self._squares = torch.zeros_like(self._squares)

    def turn_back(self) -> None:
        """See `Optimizer`. It goes nowhere by itself, and what it remembers only makes steps shorter."""

    def tensors(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        return {"squares": self._squares}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        self._squares = tensors["squares"].to(self._squares.device)


class GradientDescent:
    """Gradient descent with heavy-ball momentum (Polyak 1964) and weight decay.

    The velocity v = momentum v + gradient + weight_decay (parameters - origin) is what is stepped
    along: weight decay is the L2 penalty on the deviation from the origin.
    """

    def __init__(
        self,
        shape: torch.Size,
        device: torch.device,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        origin: float,
    ) -> None:
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._origin = origin
        self._velocity = torch.zeros(shape, device=device)

    @property
    def nbytes(self) -> int:
        """See `Optimizer`."""
        return self._velocity.nbytes

    def propose(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """See `Optimizer`."""
        return parameters - step * self._learning_rate * self._next_velocity(parameters, gradient)

    def accept(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """See `Optimizer`."""
        self._velocity = self._next_velocity(parameters, gradient)

    def _next_velocity(self, parameters: Tensor, gradient: Tensor) -> Tensor:
        return self._momentum * self._velocity + gradient + self._weight_decay * (parameters - self._origin)

    def restart(self) -> None:
        """See `Optimizer`."""
        self._velocity = torch.zeros_like(self._velocity)

    def turn_back(self) -> None:
        """See `Optimizer`."""
        self.restart()

    def tensors(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        return {"velocity": self._velocity}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        self._velocity = tensors["velocity"].to(self._velocity.device)


def make_optimizer(
    options: StylizeOptions,
    shape: torch.Size,
    device: torch.device,
    memory_budget: int = sys.maxsize,
    shelf: Shelf | None = None,
) -> Optimizer:
    """The optimiser that `options` names, for parameters of `shape`; its own learning rate where none is given.

    L-BFGS keeps fewer pairs than asked for, but at least `MINIMUM_HISTORY`, where together they
    would take more than `memory_budget` bytes, and takes them from the shelf.
    """
    rate = options.learning_rate or LEARNING_RATES[options.parametrization][options.optimizer]
    pixels = options.parametrization == "pixels"
    match options.optimizer:
        case "adam":
            return Adam(shape, device, rate)
        case "adagrad":
            return Adagrad(shape, device, rate)
        case "gradient_descent":
            # Black is no more natural an origin than white; the other parametrisations have theirs at zero.
            origin = MID_GREY if pixels else 0.0
            return GradientDescent(shape, device, rate, options.momentum, options.weight_decay, origin)
        case _:
            pair = 2 * torch.float32.itemsize * shape.numel()
            fitting = max(MINIMUM_HISTORY, memory_budget // pair)
            precondition = FourierPreconditioner(shape, device) if pixels else None
            return LBFGS(shape, device, min(options.history_size, fitting), rate, precondition, shelf)
