"""Convolutions by oneDNN, with weights that are packed once for each size of the layouts that maps want."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

# The picture size whose layout is there from the start, so that what a process has computed before changes nothing.
PACKING_SIDE = 64
NO_DILATION = (1, 1)
LAYOUTS_REMEMBERED = 2**14

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype here."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights in `dtype`, laid out as convolutions here take them."""
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


class Packed:
    """A convolution with these weights.

    The layout in which oneDNN wants them depends on the shape of the maps; with AVX2 every third wants another. It
    takes them in any, but puts them into its own first, at every call: 512 channels in 0.2 s, where it convolves small
    maps in 2 ms. Layouts of one size are taken for one: it is quick to put these into each other.

    Args:
        weight: makes what is packed, (O, I / groups, h, w) in float32.
        dtype: what to compute in.
        padding, stride: rows and columns.
        groups: into which the channels are divided.
    """

    def __init__(
        self,
        weight: Callable[[], Tensor],
        dtype: torch.dtype,
        padding: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        self._weight, self._dtype = weight, dtype
        self._geometry = padding, stride, NO_DILATION, groups
        made = weight()
        self._shape = tuple(made.shape)
        maps = (1, groups * made.shape[1], PACKING_SIDE, PACKING_SIDE)
        size = packed_bytes(self._shape, dtype, self._geometry, maps)
        self._layouts = {size: _packed(rounded(made, dtype), self._geometry, maps)}

    def __call__(self, hidden: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """The maps (N, O, h, w) of (N, I, h, w), plus a bias (O,), and with the ReLU if asked; all channels-last."""
        then = "relu" if relu else "none"
        weight = self._in_layout_for(tuple(hidden.shape))
        mapped: Tensor = torch.ops.mkldnn._convolution_pointwise(hidden, weight, bias, *self._geometry, then, [], "")
        return mapped

    def onto(self, maps: Tensor, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """The sum of `maps` and the maps of `hidden`, rounded once."""
        weight = self._in_layout_for(tuple(hidden.shape))
        added: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            hidden, maps, weight, bias, *self._geometry, "add", None, None, [], None
        )
        return added

    def _in_layout_for(self, shape: tuple[int, ...]) -> Tensor:
        size = packed_bytes(self._shape, self._dtype, self._geometry, shape)
        if size not in self._layouts:
            self._layouts[size] = _packed(rounded(self._weight(), self._dtype), self._geometry, shape)
        return self._layouts[size]


@lru_cache(LAYOUTS_REMEMBERED)
def packed_bytes(weight: tuple[int, ...], dtype: torch.dtype, geometry: Geometry, shape: tuple[int, ...]) -> int:
    """What weights of a shape take when packed for maps of a shape, by which layouts are told apart."""
    blank = rounded(torch.zeros(weight), dtype)
    return int(torch.ops.mkldnn._nbytes(_packed(blank, geometry, shape)))


def _packed(weight: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(shape))
    return packed
