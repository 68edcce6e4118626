"""The frozen feature network: a picture in, the maps at named taps out."""

from collections.abc import Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import tiling
from nst_engine.convolution import Convolution
from nst_engine.networks import Network

# A mean of four is smaller than their maximum, and the deficit grows with every pooling, to a sixth
# at relu5_1. With this gain the norms of the maps at relu2_1 to relu5_1 of vgg16-caffe stay within
# 0.84 to 1.27 of those under max pooling, on photographs; a gain of 2 lets them grow to 2.8 times.
AVERAGE_POOLING_GAIN = 1.5


class Backbone:
    """The convolution trunk of a `Network` with its weights, on one device, in one dtype.

    Weights and maps are kept channels-last, the layout in which CPUs and GPUs convolve fastest.
    """

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        padding: str = "replicate",
    ) -> None:
        self.network = network
        self.device = device
        self.dtype = dtype
        self._edge = "replicate" if padding == "replicate" else "constant"
        self._convolutions = {
            name: Convolution(
                weights[f"{name}.weight"].to(device, dtype),
                weights[f"{name}.bias"].to(device, dtype),
                padding=0 if name == "conv1_1" else 1,
            )
            for name in network.convs
        }
        self._mean = torch.tensor(network.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(network.std, device=device).view(1, 3, 1, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(convolution.nbytes for convolution in self._convolutions.values())

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int
    ) -> tuple[tiling.Tile, ...]:
        """The tiles in which it works on a picture of that size; see `tiling.tiles`."""
        return tiling.tiles(self.network, taps, pooling, self.dtype.itemsize, height, width, memory_budget)

    def features(self, image: Tensor, taps: Iterable[str], pooling: str = "max") -> dict[str, Tensor]:
        """The maps at `taps`, computed no deeper than the deepest of them.

        Args:
            image: (1, 3, H, W) float32 RGB, 0-255.
            taps: names from `network.taps`.
            pooling: "max" or "average".

        Returns:
            Tap name to (1, C, h, w) in the trunk's dtype, channels-last.
        """
        wanted = set(taps)
        maps: dict[str, Tensor] = {}
        hidden = self._prepare(image)
        for tap in self.network.taps:
            if len(maps) == len(wanted):
                break
            if tap.startswith("conv"):
                # Its ReLU is the next tap: one operation, unless the map before it is wanted.
                hidden = self._convolutions[tap](hidden, relu=tap not in wanted)
            elif tap.startswith("pool"):
                hidden = _pool(hidden, pooling)
            elif tap.replace("relu", "conv") in wanted:
                hidden = F.relu(hidden)
            if tap in wanted:
                maps[tap] = hidden
        return maps

    def _prepare(self, image: Tensor) -> Tensor:
        """The normalised network input with the first convolution's padding already on it.

        Replicated edges look like more of the same picture; zeros look like a frame of the network's
        mean colour, which the optimisation answers with artefacts along the border.
        """
        if self.network.channel_order == "BGR":
            image = image.flip(1)
        normalised = F.pad((image - self._mean) / self._std, (1, 1, 1, 1), mode=self._edge)
        return normalised.to(self.dtype, memory_format=torch.channels_last)


def _pool(hidden: Tensor, pooling: str) -> Tensor:
    if pooling == "max":
        return F.max_pool2d(hidden, 2)
    return F.avg_pool2d(hidden, 2) * AVERAGE_POOLING_GAIN
