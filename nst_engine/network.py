"""What is to be known of a feature network before it computes, without torch: its taps and its input."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True)
class Tap:
    """A place in a network where its map can be had, and how that map lies over the picture.

    Attributes:
        name: what options call it.
        channels: of the map.
        stride: pixels from one position to the next; each stands for a square of that side.
        reach: how many pixels beyond its square a position sees, at most, on each side.
    """

    name: str
    channels: int
    stride: int
    reach: int


@dataclass(frozen=True)
class Network:
    """A feature network; `NETWORKS` has them all.

    It wants its input as (pixel - mean) / std in 0-255 units, channels in the order `channel_order`,
    to which `mean` and `std` belong. Those of torchvision's networks are the default.

    Attributes:
        name: what the option `model` calls it.
        description: for people.
        credit: whose work it is, and on what terms.
        layers: its taps, from shallow to deep.
        content_layers, style_layers: by tap, what the options of these names are where they are left out.
        padding: rows and columns that the first convolution wants around the picture.
        statistic: what `style_statistic` "auto" is where `strength` balances the weights.
        spares: whether it can multiply less, see `hardware.Arithmetic`.
    """

    spares: ClassVar[bool] = False

    name: str
    description: str
    credit: str
    layers: tuple[Tap, ...]
    content_layers: Mapping[str, float]
    style_layers: Mapping[str, float]
    padding: int
    channel_order: str = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    statistic: str = "moments"

    @property
    def taps(self) -> tuple[str, ...]:
        """Tap names from shallow to deep."""
        return tuple(self._by_name)

    def stride(self, tap: str) -> int:
        """Pixels from one position at `tap` to the next."""
        return self._by_name[tap].stride

    def channels(self, tap: str) -> int:
        """Channels of the map at `tap`."""
        return self._by_name[tap].channels

    def minimum_side(self, taps: Iterable[str]) -> int:
        """The shortest side in pixels that gives each of `taps` a position with all the pixels it stands for."""
        return max((self.stride(tap) for tap in taps), default=1)

    def reach(self, taps: Iterable[str]) -> int:
        """How many pixels beyond the square it stands for a position at the deepest of `taps` sees, on each side.

        Its receptive field is 2 * reach + stride at most.
        """
        return max((self._by_name[tap].reach for tap in taps), default=0)

    @cached_property
    def _by_name(self) -> dict[str, Tap]:
        return {tap.name: tap for tap in self.layers}


@dataclass(frozen=True)
class TorchvisionNetwork(Network):
    """A network whose architecture is torchvision's own module; its maps are smoothed (see `nst_engine.smoothing`).

    The smoothing was published for Gram matrices, and with "moments" a picture hardly moved from the
    content in trials.

    Attributes:
        builder: the function of `torchvision.models` that builds it.
        classifier: the submodule behind the last tap, which is left out.
        modules: for each tap, in order, the submodules that lead to it from the tap before, by their
            paths in the module.
    """

    statistic: str = "gram"
    builder: str = ""
    classifier: str = ""
    modules: tuple[tuple[str, ...], ...] = ()
