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
from nst_engine.winograd_maps import WINDOW

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
            OSError: see `gnu_threads`.
            TypeError: the map or the bias is not in float32, or the bias not contiguous.
            ValueError: the map or the bias has other channels than the weights.
        """
        self._check(hidden, bias)
        height, width = hidden.shape[2:]
        mapped = hidden.new_empty(len(hidden), height, width, self._channels_out)
        self._convolve(_rows(hidden), None, mapped, None, bias, relu, height, width)
        return mapped.permute(0, 3, 1, 2)

    def pooled(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The 2x2 maxima of the map's ReLU, and where they are, as `unpooled` needs it: both (N, O, h // 2, w // 2).

        Raises:
            OSError, TypeError: see `__call__`.
            ValueError: likewise, or the map has no window of 2x2.
        """
        self._check(hidden, bias)
        height, width = hidden.shape[2:]
        if min(height, width) < WINDOW:
            raise ValueError(f"hidden: a map of {height}x{width} has no window of {WINDOW}x{WINDOW}")
        maxima = hidden.new_empty(len(hidden), height // WINDOW, width // WINDOW, self._channels_out)
        places = torch.empty_like(maxima, dtype=torch.uint8)
        self._convolve(_rows(hidden), None, maxima, places, bias, True, height, width)
        return maxima.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)

    def unpooled(self, gradient: Tensor, places: Tensor, height: int, width: int) -> Tensor:
        """Convolves the gradient of a map with that of its maxima alone.

        Args:
            gradient: of the maxima, (N, I, height // 2, width // 2).
            places: of the maxima, likewise, uint8; see `pooled`.
            height, width: of the map.

        Returns:
            (N, O, height, width).

        Raises:
            OSError: see `__call__`.
            TypeError: the gradient is not in float32, or the places not in uint8.
            ValueError: the gradient has other channels than the weights, or the sizes do not fit.
        """
        self._check(gradient, None)
        if not gradient.shape == places.shape == (*gradient.shape[:2], height // WINDOW, width // WINDOW):
            raise ValueError(f"gradient: {tuple(gradient.shape)} is not that of the maxima of {height}x{width}")
        mapped = gradient.new_empty(len(gradient), height, width, self._channels_out)
        self._convolve(_rows(gradient), _rows(places), mapped, None, None, False, height, width)
        return mapped.permute(0, 3, 1, 2)

    def _check(self, hidden: Tensor, bias: Tensor | None) -> None:
        if hidden.shape[1] != self._channels_in:
            raise ValueError(f"hidden: must have {self._channels_in} channels, not {hidden.shape[1]}")
        if bias is not None and bias.shape != (self._channels_out,):
            raise ValueError(f"bias: must have {self._channels_out} numbers, not {tuple(bias.shape)}")

    def _convolve(
        self,
        sources: Tensor,
        source_places: Tensor | None,
        targets: Tensor,
        target_places: Tensor | None,
        bias: Tensor | None,
        relu: bool,
        height: int,
        width: int,
    ) -> None:
        """See `winograd_kernels.convolve`, of several; all are (N, h, w, C)."""
        far = self._channels_in * self._channels_out > OWN_KERNELS
        tiles, threads = -(-height // TILE) * -(-width // TILE), torch.get_num_threads()
        apart = not far and tiles >= OWN_TILES * OWN_STRIPS * threads
        strip = max(1, min(OWN_TILES if apart else STRIP_TILES, tiles))
        points, products = (
            sources.new_empty(threads if apart else 1, POINTS**2, strip, channels)
            for channels in (self._channels_in, self._channels_out)
        )
        added, least = self._zeros if bias is None else bias, self._zeros if relu else self._lowest
        sizes = height, width, self._channels_in, self._channels_out, strip, int(apart), int(far)
        layer = self._kernels, added, least, points, products, self._zeros, *sizes
        ways = int(source_places is not None), int(target_places is not None)
        none = torch.empty(len(sources), 0, dtype=torch.uint8)
        found, made = (none if each is None else each for each in (source_places, target_places))
        for source, seen, target, chosen in zip(sources, found, targets, made, strict=True):
            _program().run(convolve, source, seen, target, chosen, *layer, *ways)

    @cached_property
    def _kernels(self) -> Tensor:
        # Four times as large as the weights, and no loss may look as deep.
        return _at_the_points(self._weight())


@cache
def _program() -> Program:
    return Program(convolve)


def _rows(maps: Tensor) -> Tensor:
    """(N, h, w, C) of (N, C, h, w)."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _at_the_points(weight: Tensor) -> Tensor:
    """(36, O / 16, I, 16) of (O, I, 3, 3): the kernels at each of the points for rows, and at each for columns."""
    transform = weight.new_tensor(KERNEL_TRANSFORM)
    panels = weight.reshape(-1, PANEL, weight.shape[1], 9).permute(3, 0, 2, 1)
    spread: Tensor = torch.kron(transform, transform) @ panels.flatten(1)
    return spread.view(-1, *panels.shape[1:])
