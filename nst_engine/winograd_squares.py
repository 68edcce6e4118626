"""3x3 convolutions with a quarter of the multiplications, by Winograd's minimal filtering in both directions."""

from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Tensor

from nst_engine.lanes import PANEL
from nst_engine.machine_code import Program
from nst_engine.product_kernels import BLOCK_ROWS
from nst_engine.winograd import KERNEL_TRANSFORM, POINTS, TILE
from nst_engine.winograd_kernels import convolve
from nst_engine.winograd_pooling import WINDOW, convolve_and_pool, convolve_spread

# Tiles that the threads work on together: with more, what they are at the points leaves the processor's cache, and with
# fewer the kernels, which each strip needs, are read more often.
STRIP_TILES = 144
# Where kernels of so many channels in times channels out, 9 MB at the points, stay in the cache that all cores share,
# each thread works by itself on tiles that stay in its own core's: these are not handed over, and nobody is waited for.
OWN_KERNELS = 256 * 256
OWN_TILES = BLOCK_ROWS
# Strips for each thread, from which on they come out about even.
OWN_STRIPS = 4


class WinogradSquares:
    """A 3x3 convolution with a padding of 1 in float32, on a CPU: as 36 products of matrices, and additions.

    `nst_engine.winograd` in both directions, F(4x4, 3x3). It rounds three to four times as much as a direct one. A
    tile of 4x4 places of the map depends on the 6x6 that it sees, and on nothing else.

    Args:
        weight: makes (O, I, 3, 3) in float32.

    Raises:
        ValueError: O or I is not a multiple of `PANEL`.
    """

    def __init__(self, weight: Callable[[], Tensor]) -> None:
        self._weight = weight
        self._channels_out, self._channels_in, *_ = weight().shape
        if self._channels_out % PANEL or self._channels_in % PANEL:
            raise ValueError(
                f"weight: both channels must be multiples of {PANEL}, not {self._channels_out} and {self._channels_in}"
            )
        self._zeros, self._lowest = torch.zeros(max(self._channels_in, self._channels_out)), torch.tensor([-torch.inf])

    def __call__(self, hidden: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """See `onednn.Packed`.

        Raises:
            TypeError: the map or the bias is not in float32, or the bias not contiguous.
            ValueError: the map or the bias has other channels than the weights.
        """
        self._check(hidden)
        height, width = hidden.shape[2:]
        mapped = hidden.new_empty(len(hidden), height, width, self._channels_out)
        layer, least = self._layer(hidden, height, width), self._zeros if relu else self._lowest
        for picture, made in zip(_rows(hidden), mapped, strict=True):
            _program().run(convolve, picture, made, self._added(bias), least, *layer)
        return mapped.permute(0, 3, 1, 2)

    def pooled(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The 2x2 maxima of the map's ReLU, and where they are, as `spread` needs it: both (N, O, h // 2, w // 2).

        Raises:
            TypeError: see `__call__`.
            ValueError: likewise, or the map has no window of 2x2.
        """
        self._check(hidden)
        height, width = hidden.shape[2:]
        if min(height, width) < WINDOW:
            raise ValueError(f"hidden: a map of {height}x{width} has no window of {WINDOW}x{WINDOW}")
        maxima = hidden.new_empty(len(hidden), height // WINDOW, width // WINDOW, self._channels_out)
        places, layer = torch.empty_like(maxima, dtype=torch.uint8), self._layer(hidden, height, width)
        for picture, *made in zip(_rows(hidden), maxima, places, strict=True):
            _program().run(convolve_and_pool, picture, *made, self._added(bias), *layer)
        return maxima.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)

    def spread(self, gradient: Tensor, places: Tensor, height: int, width: int) -> Tensor:
        """Convolves the gradient (N, I, height, width) of a map, given that of its maxima, and their places.

        Raises:
            TypeError: the gradient is not in float32.
            ValueError: it has other channels than the weights, or the sizes do not fit.
        """
        self._check(gradient)
        if not gradient.shape == places.shape == (*gradient.shape[:2], height // WINDOW, width // WINDOW):
            raise ValueError(f"gradient: {tuple(gradient.shape)} is not that of the maxima of {height}x{width}")
        mapped = gradient.new_empty(len(gradient), height, width, self._channels_out)
        layer = self._layer(gradient, height, width)
        for picture, place, made in zip(_rows(gradient), _rows(places), mapped, strict=True):
            _program().run(convolve_spread, picture, place, made, self._zeros, self._lowest, *layer)
        return mapped.permute(0, 3, 1, 2)

    def _check(self, hidden: Tensor) -> None:
        if hidden.shape[1] != self._channels_in:
            raise ValueError(f"hidden: must have {self._channels_in} channels, not {hidden.shape[1]}")

    def _added(self, bias: Tensor | None) -> Tensor:
        if bias is not None and bias.shape != (self._channels_out,):
            raise ValueError(f"bias: must have {self._channels_out} numbers, not {tuple(bias.shape)}")
        return self._zeros if bias is None else bias

    def _layer(self, hidden: Tensor, height: int, width: int) -> tuple[Tensor | int, ...]:
        """A `Layer`, for a map so large."""
        far = self._channels_in * self._channels_out > OWN_KERNELS
        tiles, threads = -(-height // TILE) * -(-width // TILE), torch.get_num_threads()
        apart = not far and tiles >= OWN_TILES * OWN_STRIPS * threads
        strip = max(1, min(OWN_TILES if apart else STRIP_TILES, tiles))
        points, products = (
            hidden.new_empty(threads if apart else 1, POINTS**2, strip, channels)
            for channels in (self._channels_in, self._channels_out)
        )
        sizes = height, width, self._channels_in, self._channels_out, strip, int(apart), int(far)
        return self._kernels, points, products, self._zeros, *sizes

    @cached_property
    def _kernels(self) -> Tensor:
        # Four times as large as the weights, and no loss may look as deep.
        return _at_the_points(self._weight())


@cache
def _program() -> Program:
    return Program(convolve, convolve_and_pool, convolve_spread)


def _rows(maps: Tensor) -> Tensor:
    """(N, h, w, C) of (N, C, h, w)."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _at_the_points(weight: Tensor) -> Tensor:
    """(36, O / 16, I, 16) of (O, I, 3, 3): the kernels at each of the points for rows, and at each for columns."""
    transform = weight.new_tensor(KERNEL_TRANSFORM)
    panels = weight.reshape(-1, PANEL, weight.shape[1], 9).permute(3, 0, 2, 1)
    spread: Tensor = torch.kron(transform, transform) @ panels.flatten(1)
    return spread.view(-1, *panels.shape[1:])
