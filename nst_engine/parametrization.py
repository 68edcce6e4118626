"""Parametrisations: what is optimised, and the picture that it stands for."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from nst_engine import losses
from nst_engine.evaluation import Evaluation
from nst_engine.image_network import BYTES_PER_PIXEL, ImageNetwork
from nst_engine.options import BudgetError, OptionError, StylizeOptions
from nst_engine.pictures import MID_GREY
from nst_engine.tiling import MIB


class Parametrization(Protocol):
    """Stands for pictures of one size, (1, 3, H, W) float32 in 0-255, by a tensor of parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes held besides the parameters."""

    def of(self, image: Tensor) -> Tensor:
        """The parameters of `image`; a run begins with this call or with `load`."""

    def image(self, parameters: Tensor) -> Tensor:
        """The picture, differentiable in the parameters."""

    def tensors(self, parameters: Tensor) -> dict[str, Tensor]:
        """The parameters, and all else that `load` needs."""

    def load(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The parameters that `tensors` was given.

        Raises:
            OptionError: they are of pictures of another size.
        """


class Pixels:
    """The picture itself."""

    nbytes = 0

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def of(self, image: Tensor) -> Tensor:
        """See `Parametrization`."""
        return image

    def image(self, parameters: Tensor) -> Tensor:
        """See `Parametrization`."""
        return parameters

    def tensors(self, parameters: Tensor) -> dict[str, Tensor]:
        """See `Parametrization`."""
        return {"image": parameters}

    def load(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Parametrization`."""
        return _of_size(tensors["image"], self._size)


class Fourier:
    """Real Fourier coefficients, (1, 3, H, W), of the deviation from mid-grey, each over its basis picture's weight.

    The basis is that of the discrete Hartley transform (Bracewell, J. Opt. Soc. Am. 73, 1983): the
    cosine plus the sine of each frequency. It is real, orthonormal, symmetric and its own inverse.
    A weight falls with the frequency f as 1/f, as the amplitudes of photographs do (Mordvintsev et
    al., "Differentiable Image Parameterizations", Distill 2018): equal steps in all coefficients
    then change a picture by something like one. The mean square of the weights is 1, so that such a
    step has the size, in 0-255 units, that it would have in pixels.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self._size = size
        height, width = size
        # Not made on the device: on `meta` that loads torch's compiler.
        vertical = torch.fft.fftfreq(height)[:, None]
        horizontal = torch.fft.fftfreq(width)[None, :]
        frequency = torch.hypot(vertical, horizontal)
        weights = 1.0 / frequency.clamp(min=1.0 / max(height, width))
        self._weights = (weights / weights.square().mean().sqrt()).to(device)

    @property
    def nbytes(self) -> int:
        """See `Parametrization`."""
        return self._weights.nbytes

    def of(self, image: Tensor) -> Tensor:
        """See `Parametrization`."""
        return hartley(image - MID_GREY) / self._weights

    def image(self, parameters: Tensor) -> Tensor:
        """See `Parametrization`."""
        return hartley(parameters * self._weights) + MID_GREY

    def tensors(self, parameters: Tensor) -> dict[str, Tensor]:
        """See `Parametrization`."""
        return {"spectrum": parameters}

    def load(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Parametrization`."""
        return _of_size(tensors["spectrum"], self._size)


class Network:
    """The weights of an `ImageNetwork`, whose output is added to the picture that a scale starts from.

    With a sum the start is exact and costs nothing; a network that has to paint the picture first
    (Ulyanov et al., "Deep image prior", arXiv 1711.10925) takes many iterations to, and ends blurred.
    """

    def __init__(self, size: tuple[int, int], device: torch.device, seed: int) -> None:
        self._size = size
        self._network = ImageNetwork(seed)
        self._start = torch.empty(0, device=device)

    @property
    def nbytes(self) -> int:
        """See `Parametrization`."""
        return self._start.nbytes

    def of(self, image: Tensor) -> Tensor:
        """See `Parametrization`. All pictures are from here on variations of this one."""
        self._start = image
        return self._network.initial_weights().to(image.device)

    def image(self, parameters: Tensor) -> Tensor:
        """See `Parametrization`."""
        return self._start + self._network(self._start, parameters)

    def tensors(self, parameters: Tensor) -> dict[str, Tensor]:
        """See `Parametrization`."""
        return {"weights": parameters, "start": self._start}

    def load(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Parametrization`."""
        self._start = _of_size(tensors["start"], self._size)
        return tensors["weights"]


def make_parametrization(options: StylizeOptions, size: tuple[int, int], device: torch.device) -> Parametrization:
    """The parametrisation that `options` names, for pictures of `size` (height, width)."""
    match options.parametrization:
        case "fourier":
            return Fourier(size, device)
        case "network":
            return Network(size, device, options.seed)
        case _:
            return Pixels(size)


def check_parametrization(options: StylizeOptions, size: tuple[int, int], memory_budget: int) -> None:
    """Makes sure that pictures of `size` (height, width) can be made within `memory_budget` bytes.

    Raises:
        BudgetError: a network, which makes a picture as a whole, would exceed it.
    """
    height, width = size
    if options.parametrization == "network" and BYTES_PER_PIXEL * height * width > memory_budget:
        raise BudgetError(
            "parametrization",
            f"a network makes a picture as a whole, and its maps at {width}x{height} do not fit into the memory "
            f"budget of {memory_budget / MIB:.0f} MiB: choose pixels, set a smaller size, or raise the engine's "
            "memory_budget",
        )


def hartley(image: Tensor) -> Tensor:
    """The orthonormal discrete Hartley transform over the last two dimensions; it is its own inverse."""
    spectrum: Tensor = torch.fft.fft2(image, norm="ortho")
    return spectrum.real - spectrum.imag


def pulled_back(evaluation: Evaluation, image: Tensor, parameters: Tensor) -> Evaluation:
    """The evaluation at an image that was made of parameters, its gradient pulled back to them by the chain rule."""
    if image is parameters:
        return evaluation
    (gradient,) = torch.autograd.grad(image, parameters, evaluation.gradient)
    finite = evaluation.finite and math.isfinite(losses.square_sum(gradient).item())
    return Evaluation(evaluation.losses, evaluation.total, gradient, finite)


def _of_size(image: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = image.shape[2:]
    if (height, width) != size:
        raise OptionError(
            "content",
            f"gives a working size of {size[1]}x{size[0]} where the checkpoint has {width}x{height}: "
            "resume with the pictures that the run was started with",
        )
    return image
