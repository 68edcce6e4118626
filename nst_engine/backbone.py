"""The frozen feature network: a picture in, the maps at named taps out."""

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine.distributed import Processes
from nst_engine.network import Network, TorchvisionNetwork
from nst_engine.recording import Recordings, Shelf
from nst_engine.tiling import Tile
from nst_engine.torchvision_trunk import TorchvisionTrunk
from nst_engine.vgg import Vgg
from nst_engine.vgg_trunk import VggTrunk

# One for each session or batch of sessions that is evaluated by turns with others, and some to spare.
RECORDINGS = 32
SHELF_BYTES = 2 * 2**30  # what 32 jobs of 512 px leave there


class Trunk(Protocol):
    """The frozen layers of one kind of network."""

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int, processes: int
    ) -> tuple[Tile, ...]:
        """See `Backbone.tiles`."""

    def window(
        self, size: tuple[int, int], taps: Collection[str], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Tile:
        """See `Backbone.window`."""

    def bytes_per_pixel(self, taps: Collection[str], pooling: str) -> float:
        """See `Backbone.bytes_per_pixel`."""

    def maps(self, hidden: Tensor, taps: Collection[str], pooling: str) -> dict[str, Tensor]:
        """The maps at `taps`, none of them twice, of prepared pictures: normalised, padded, channels-last."""


class Backbone:
    """A `Network` with its weights, on one device, computing in one dtype; a VGG `sparing` multiplications or not.

    Where several processes share the pictures, each has a trunk, and `processes` says which is which.
    `recordings` are of evaluations that it is part of; what optimisers have recorded is left on `optimizer_shelf`, with
    a pool of its own, as a pool's memory is let go with the last recording in it.
    Weights and maps are kept channels-last, the layout in which CPUs and GPUs convolve fastest.
    """

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        padding: str = "replicate",
        processes: Processes | None = None,
        *,
        sparing: bool = False,
    ) -> None:
        self.network = network
        self.processes = processes or Processes()
        self.device = device
        self.dtype = dtype
        self._trunk = _trunk(network, weights, device, dtype, sparing)
        self._mean = torch.tensor(network.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(network.std, device=device).view(1, 3, 1, 1)
        self._begin(padding)

    def padded(self, padding: str) -> "Backbone":
        """One of the same layers, which are not there twice, that pads pictures so."""
        other = copy(self)
        other._begin(padding)
        return other

    def _begin(self, padding: str) -> None:
        """With nothing recorded yet, as what is recorded has the padding in it."""
        self._edge = "replicate" if padding == "replicate" else "constant"
        self.recordings = Recordings(self.device, RECORDINGS)
        self.optimizer_shelf = Shelf(self.device, SHELF_BYTES)

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int
    ) -> tuple[Tile, ...]:
        """The tiles of a picture of that size, those of all processes together.

        It is one where a single process can hold the maps of the whole.

        Args:
            height, width: of the picture, each at least `network.minimum_side(taps)`.
            taps: those in use, at least one.
            pooling: "max" or "average".
            memory_budget: bytes that the maps of one evaluation may take.

        Raises:
            OptionError: not even the smallest tile fits, or the network cannot work in tiles and would have to.
        """
        return self._trunk.tiles(height, width, taps, pooling, memory_budget, self.processes.size)

    def window(
        self, size: tuple[int, int], taps: Collection[str], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Tile:
        """What the network has to see of a picture so that the maps at some of its pixels are those of the whole.

        Args:
            size: height and width of the picture.
            taps: those in use, at least one.
            rows, columns: of the pixels, from the first to before the last, multiples of the taps' strides.
        """
        return self._trunk.window(size, taps, rows, columns)

    def bytes_per_pixel(self, taps: Collection[str], pooling: str) -> float:
        """Bytes kept for each pixel of a picture, from the forward pass for the backward pass."""
        return self._trunk.bytes_per_pixel(taps, pooling)

    def features(self, images: Tensor, taps: Iterable[str], pooling: str = "max") -> dict[str, Tensor]:
        """The maps at `taps`, computed no deeper than the deepest of them; those of a picture depend on no other.

        Args:
            images: (N, 3, H, W) float32 RGB, 0-255.
            taps: names from `network.taps`.
            pooling: "max" or "average".

        Returns:
            Tap name to (N, C, h, w), channels-last: in the trunk's dtype, or float32 where maps are smoothed.
        """
        return self._trunk.maps(self._prepare(images), set(taps), pooling)

    def _prepare(self, images: Tensor) -> Tensor:
        """The normalised network input with the first convolution's padding already on it.

        Replicated edges look like more of the same picture; zeros look like a frame of the network's
        mean colour, which the optimisation answers with artefacts along the border.
        """
        if self.network.channel_order == "BGR":
            images = images.flip(1)
        normalised = F.pad((images - self._mean) / self._std, (self.network.padding,) * 4, mode=self._edge)
        return normalised.to(self.dtype, memory_format=torch.channels_last)


def _trunk(
    network: Network, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype, sparing: bool
) -> Trunk:
    match network:
        case Vgg():
            return VggTrunk(network, weights, device, dtype, sparing=sparing)
        case TorchvisionNetwork():
            return TorchvisionTrunk(network, weights, device, dtype)
    raise TypeError(f"there is no trunk for a {type(network).__name__}")
