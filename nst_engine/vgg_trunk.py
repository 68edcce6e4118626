"""VGG's frozen layers."""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import tiling
from nst_engine.convolution import Convolution
from nst_engine.pooling import pooled
from nst_engine.vgg import Vgg

# Where fewer multiplications are worth more additions and rounding in bfloat16: maps with fewer channels have too much
# to add up, and those of the last block are too small to save time, while its taps have the most rounding behind them.
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
        self._device = device
        self._convolutions = {
            name: Convolution(
                weights[f"{name}.weight"],
                weights[f"{name}.bias"],
                0 if name == "conv1_1" else 1,
                device,
                dtype,
                sparing=sparing and _worth_sparing(name, channels_in, dtype),
            )
            for name, (channels_in, _) in network.convs.items()
        }

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int, processes: int
    ) -> tuple[tiling.Tile, ...]:
        """See `tiling.tiles`."""
        per_pixel = self.bytes_per_pixel(taps, pooling)
        return tiling.tiles(self._network, taps, per_pixel, height, width, memory_budget, processes)

    def window(
        self, size: tuple[int, int], taps: Collection[str], rows: tuple[int, int], columns: tuple[int, int]
    ) -> tiling.Tile:
        """See `tiling.window`."""
        return tiling.window(self._network, taps, *size, rows, columns)

    def bytes_per_pixel(self, taps: Collection[str], pooling: str) -> float:
        """See `tiling.map_bytes_per_pixel`."""
        late = self._late_relus(taps, pooling)
        merged = {relu for relu in late if self._convolutions[_convolution(relu)].pools}
        return tiling.map_bytes_per_pixel(self._network, taps, pooling, self._dtype.itemsize, late, merged)

    def maps(self, hidden: Tensor, taps: Collection[str], pooling: str) -> dict[str, Tensor]:
        """The maps at `taps`, in the trunk's dtype."""
        maps: dict[str, Tensor] = {}
        late, relu = self._late_relus(taps, pooling), ""
        for tap in self._network.taps:
            if len(maps) == len(taps):
                break
            if tap.startswith("conv"):
                # Its ReLU is the next tap: one operation, unless the map before it is wanted.
                relu, convolution = tap.replace("conv", "relu"), self._convolutions[tap]
                hidden = convolution.pooled(hidden) if relu in late else convolution(hidden, relu=tap not in taps)
            elif tap.startswith("pool"):
                hidden = hidden if relu in late else pooled(hidden, pooling)
            elif _convolution(tap) in taps:
                hidden = F.relu(hidden)
            if tap in taps:
                maps[tap] = hidden
        return maps

    def _late_relus(self, taps: Collection[str], pooling: str) -> Collection[str]:
        # On a GPU cuDNN has the ReLU of a whole map for nothing.
        return self._network.late_relus(taps, pooling) if self._device.type == "cpu" else ()


def _convolution(relu: str) -> str:
    """The tap before it."""
    return relu.replace("relu", "conv")


def _worth_sparing(convolution: str, channels_in: int, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (convolution.startswith(SPARING_BLOCKS) and channels_in >= SPARING_CHANNELS)
