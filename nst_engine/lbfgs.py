"""L-BFGS, and the preconditioner that it starts from."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from nst_engine.recording import RECORDED_PIXELS, Loan, Pool, Recording, Shelf

Precondition = Callable[[Tensor], Tensor]

# The preconditioner multiplies by f**-0.75: in trials at 128 px this took the fewest iterations of
# the exponents 0 (none), 0.25, 0.5, 0.75, 1 (a 1/sqrt(f) basis) and 1.5.
FREQUENCY_EXPONENT = 0.75
# The newest pair lies where the loss is steep, and the initial inverse Hessian serves the directions that the pairs
# leave out, which are flatter. With 1.5 to 2 times the newest pair's scale runs need up to 23 % fewer iterations; with
# 3 times they go astray.
LENGTHENING = 1.5
# A pair whose curvature s.y is below this share of |s||y| would make the inverse Hessian blow up.
MINIMUM_CURVATURE = 1e-6


class LBFGS:
    """Limited-memory BFGS with a preconditioner as its initial inverse Hessian.

    Args:
        shape: of the parameters.
        device: theirs.
        history_size: pairs kept.
        learning_rate: the multiple of its own step.
        precondition: symmetric and positive definite, from flat parameters to such, determined by its type and the
            shape; None is the identity.
        shelf: where its pairs come from, and go to, with their recordings; None makes new ones.
    """

    def __init__(
        self,
        shape: torch.Size,
        device: torch.device,
        history_size: int,
        learning_rate: float,
        precondition: Precondition | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self._shape = shape
        self._device = device
        self._learning_rate = learning_rate
        self._precondition = precondition
        self._shelf = shelf
        self._loan = self._empty(history_size)

    def _empty(self, history_size: int) -> Loan["_Pairs"]:
        make = partial(_Pairs, self._shape.numel(), self._device, history_size, self._precondition)
        if self._shelf is None or self._shape.numel() > 3 * RECORDED_PIXELS:
            return Loan(make(None))
        kind = self._shape, history_size, type(self._precondition)
        loan = self._shelf.lend(kind, partial(make, self._shelf.pool))
        loan.thing.forget()
        return loan

    @property
    def _pairs(self) -> "_Pairs":
        return self._loan.thing

    @property
    def nbytes(self) -> int:
        """See `optimizers.Optimizer`."""
        return self._pairs.nbytes

    def propose(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """See `optimizers.Optimizer`."""
        return self._pairs.proposal(parameters, loss, gradient, step * self._learning_rate)

    def accept(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """See `optimizers.Optimizer`."""
        self._pairs.add(parameters, gradient, new_parameters, new_gradient)

    def restart(self) -> None:
        """See `optimizers.Optimizer`."""
        self._pairs.forget()

    def turn_back(self) -> None:
        """See `optimizers.Optimizer`. The pairs led there, so all of them go."""
        self._pairs.forget()

    def tensors(self) -> dict[str, Tensor]:
        """See `optimizers.Optimizer`."""
        return {name: tensor.clone() for name, tensor in self._pairs.state.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `optimizers.Optimizer`."""
        # As many pairs as the run has had: the memory budget may have changed since it began.
        history_size = len(tensors["steps"])
        if history_size != self._pairs.size:
            del self._loan  # or there would be two histories at once
            self._loan = self._empty(history_size)
        for name, tensor in self._pairs.state.items():
            tensor.copy_(tensors[name])


class _Pairs:
    """What L-BFGS remembers: pairs of a step and the change of the gradient, and the next step that they lead to.

    The direction comes from the compact representation (Byrd, Nocedal and Schnabel, Mathematical
    Programming 63, 1994), which is a few products with the pairs stacked in one ring buffer. A
    slot that is empty, or whose pair was refused for bad curvature, holds zeros and drops out of
    every product, so that nothing here waits for the device.
    While no curvature is known the step is Polyak's, loss / (gradient . direction): the one that
    halves the distance to a minimum of zero on a quadratic.
    """

    def __init__(
        self, numbers: int, device: torch.device, size: int, precondition: Precondition | None, pool: Pool | None
    ) -> None:
        """Of so many parameters, at most `size`; what is done with them is recorded into the pool, if there is one."""
        self._precondition = precondition or (lambda flat: flat)
        self._steps = torch.zeros(size, numbers, device=device)
        self._changes = torch.zeros(size, numbers, device=device)
        self._products = torch.zeros(size, size, device=device)  # older steps times newer changes
        self._scale = torch.zeros((), device=device)
        self._head = torch.zeros(1, dtype=torch.int64, device=device)  # the oldest pair's slot, and the next one's
        # Not made on the device: see `FourierPreconditioner`.
        self._slots = torch.arange(size).to(device)
        self._proposing, self._learning = Recording(pool), Recording(pool)

    @property
    def size(self) -> int:
        """How many there are at most."""
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._steps.nbytes + self._changes.nbytes

    @property
    def failed(self) -> bool:
        """See `recording.Thing`."""
        return self._proposing.failed or self._learning.failed

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors that the state is in, by name."""
        return {
            "steps": self._steps,
            "changes": self._changes,
            "products": self._products,
            "scale": self._scale,
            "head": self._head[0],
        }

    def forget(self) -> None:
        """Drops all pairs."""
        for tensor in self.state.values():
            tensor.zero_()

    def proposal(self, parameters: Tensor, loss: float, gradient: Tensor, step: float) -> Tensor:
        """The next parameters, `step` times as far as the pairs say."""
        largest = torch.finfo(parameters.dtype).max  # a sum of tiles may be beyond it
        scalars = [parameters.new_full((), min(value, largest)) for value in (loss, step)]
        (proposal,) = self._proposing(self._moved, parameters, gradient, *scalars)
        return proposal

    def add(self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor) -> None:
        """Takes a pair in the place of the oldest."""
        self._learning(self._learn, parameters, gradient, new_parameters, new_gradient)

    def _moved(self, parameters: Tensor, gradient: Tensor, loss: Tensor, step: Tensor) -> list[Tensor]:
        return [self._direction(loss, gradient).view_as(parameters).mul_(step).add_(parameters)]

    def _direction(self, loss: Tensor, gradient: Tensor) -> Tensor:
        flat = gradient.flatten()
        count = len(self._slots)
        oldest_first, places = (self._slots + self._head) % count, (self._slots - self._head) % count
        curvature = self._products[oldest_first][:, oldest_first].triu()
        diagonal = curvature.diagonal().clone()
        curvature.diagonal().masked_fill_(diagonal == 0, 1.0)
        projected = (self._steps @ flat)[oldest_first, None]
        newest_effect = torch.linalg.solve_triangular(curvature, projected, upper=True)
        residual = newest_effect[places, 0] @ self._changes
        torch.sub(flat, residual, out=residual)
        preconditioned = self._precondition(residual)
        slope = residual @ preconditioned
        polyak = torch.where(slope > 0, loss / slope, 0.0)  # at a minimum there is nowhere to go
        preconditioned *= torch.where(self._scale > 0, self._scale, polyak)
        projected = (self._changes @ preconditioned)[oldest_first, None]
        right = diagonal[:, None] * newest_effect - projected
        combined = torch.linalg.solve_triangular(curvature.T, right, upper=False)
        del residual  # as large as the parameters, like all the vectors here
        preconditioned += combined[places, 0] @ self._steps
        return preconditioned.neg_()

    def _learn(
        self, parameters: Tensor, gradient: Tensor, new_parameters: Tensor, new_gradient: Tensor
    ) -> Sequence[Tensor]:
        step = (new_parameters - parameters).flatten()
        change = (new_gradient - gradient).flatten()
        curvature = step @ change
        sound = curvature > MINIMUM_CURVATURE * torch.linalg.vector_norm(step) * torch.linalg.vector_norm(change)
        scale = LENGTHENING * curvature / (change @ self._precondition(change))
        self._scale.copy_(torch.where(sound, scale, self._scale))
        step, change = torch.where(sound, step, 0.0), torch.where(sound, change, 0.0)
        self._steps.index_copy_(0, self._head, step[None])
        self._changes.index_copy_(0, self._head, change[None])
        self._products.index_copy_(1, self._head, (self._steps @ change)[:, None])
        self._head.add_(1).remainder_(len(self._slots))
        return ()


class FourierPreconditioner:
    """Multiplies by a falling power of the frequency f: the inverse Hessian of an image in a weighted Fourier basis.

    Photographs have most of their energy at low frequencies, while the losses pull hardest at high
    ones; evening that out saves iterations.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._shape = shape
        height, width = shape[-2:]
        # Not made on the device: on `meta` that loads torch's compiler.
        vertical = torch.fft.fftfreq(height)[:, None]
        horizontal = torch.fft.rfftfreq(width)[None, :]
        frequency = torch.hypot(vertical, horizontal)
        self._gain = (frequency.clamp(min=1.0 / max(height, width)) ** -FREQUENCY_EXPONENT).to(device)

    def __call__(self, flat: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(flat.view(self._shape))
        spectrum *= self._gain
        filtered: Tensor = torch.fft.irfft2(spectrum, s=self._shape[-2:])
        return filtered.flatten()
