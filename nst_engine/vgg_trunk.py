"""VGG's frozen layers."""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import tiling
from nst_engine.convolution import Convolution
from nst_engine.vgg import Vgg

# A mean of four is smaller than their maximum, and the deficit grows with every pooling, to a sixth
# at relu5_1. With this gain the norms of the maps at relu2_1 to relu5_1 of vgg16-caffe stay within
# 0.84 to 1.27 of those under max pooling, on photographs; a gain of 2 lets them grow to 2.8 times.
AVERAGE_POOLING_GAIN = 1.5
# Where fewer multiplications are worth more additions and rounding: maps with fewer channels have too much to add
# up, and those of the last block are too small to save time, while its taps have the most rounding behind them.
SPARING_BLOCKS = ("conv2", "conv3", "conv4")
SPARING_CHANNELS = 128


class VggTrunk:
    """The convolutions of a VGG, packed, with the ReLUs and poolings between them. See `backbone.Trunk`."""

    def __init__(
        self,
        network: Vgg,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        sparing: bool = False,
    ) -> None:
        self._network = network
        self._dtype = dtype
        self._convolutions = {
            name: Convolution(
                weights[f"{name}.weight"],
                weights[f"{name}.bias"],
                0 if name == "conv1_1" else 1,
                device,
                dtype,
                sparing=sparing and name.startswith(SPARING_BLOCKS) and channels_in >= SPARING_CHANNELS,
            )
            for name, (channels_in, _) in network.convs.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(convolution.nbytes for convolution in self._convolutions.values())

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int, processes: int
    ) -> tuple[tiling.Tile, ...]:
        """See `tiling.tiles`."""
        itemsize = self._dtype.itemsize
        return tiling.tiles(self._network, taps, pooling, itemsize, height, width, memory_budget, processes)

    def window(
        self, size: tuple[int, int], taps: Collection[str], rows: tuple[int, int], columns: tuple[int, int]
    ) -> tiling.Tile:
        """See `tiling.window`."""
        return tiling.window(self._network, taps, *size, rows, columns)

    def bytes_per_pixel(self, taps: Collection[str], pooling: str) -> float:
        """See `tiling.map_bytes_per_pixel`."""
        return tiling.map_bytes_per_pixel(self._network, taps, pooling, self._dtype.itemsize)

    def maps(self, hidden: Tensor, taps: Collection[str], pooling: str) -> dict[str, Tensor]:
        """The maps at `taps`, in the trunk's dtype."""
        maps: dict[str, Tensor] = {}
        for tap in self._network.taps:
            if len(maps) == len(taps):
                break
            if tap.startswith("conv"):
                # Its ReLU is the next tap: one operation, unless the map before it is wanted.
                hidden = self._convolutions[tap](hidden, relu=tap not in taps)
            elif tap.startswith("pool"):
                hidden = _pool(hidden, pooling)
            elif tap.replace("relu", "conv") in taps:
                hidden = F.relu(hidden)
            if tap in taps:
                maps[tap] = hidden
        return maps


def _pool(hidden: Tensor, pooling: str) -> Tensor:
    if pooling == "max":
        return F.max_pool2d(hidden, 2)
    return F.avg_pool2d(hidden, 2) * AVERAGE_POOLING_GAIN
