"""The frozen layers of networks that torchvision has as modules, with smoothed maps."""

from collections.abc import Collection, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nst_engine.network import TorchvisionNetwork
from nst_engine.options import BudgetError, OptionError
from nst_engine.smoothing import smoothed
from nst_engine.tiling import MIB, Tile, whole
from nst_engine.torchvision_import import build

# With seeded weights, on a photograph and a painting, the norms of the maps at the pooling are then 0.8 to
# 1.02 of those under max pooling.
AVERAGE_POOLING_GAIN = 1.5
# Side in pixels of the picture on which the memory of maps is measured.
PROBE_SIDE = 128


class TorchvisionTrunk:
    """torchvision's own module up to the last tap, every map that is asked for smoothed. See `backbone.Trunk`.

    Batch normalisation is that of inference, and folded into the convolution before it where there
    is one: that saves two fifths of the memory of ResNet's maps, and an eighth of DenseNet's.
    """

    def __init__(
        self, network: TorchvisionNetwork, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        module = build(network.builder, network.classifier)
        module.load_state_dict(weights, assign=True)
        _fold_batch_norms(module.eval())
        first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
        first.padding = (0, 0)
        module.to(device, dtype).requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._network = network
        self._module = module
        self._bytes_per_pixel: dict[tuple[frozenset[str], str], float] = {}

    def tiles(
        self, height: int, width: int, taps: Collection[str], pooling: str, memory_budget: int, processes: int
    ) -> tuple[Tile, ...]:
        """The whole picture: it cannot be cut, because the softmax is over all of a map.

        Raises:
            BudgetError: the maps do not fit into the budget.
            OptionError: processes are to share the picture.
        """
        if processes > 1:
            raise OptionError(
                "model", f"{self._network.name} cannot work in tiles for {processes} processes: take a VGG"
            )
        needed = height * width * self.bytes_per_pixel(taps, pooling)
        if needed > memory_budget:
            raise BudgetError(
                "size",
                f"the maps of a {width}x{height} picture take {needed / MIB:.0f} MiB in {self._network.name}, over the "
                f"memory budget of {memory_budget / MIB:.0f} MiB, and this network cannot work in tiles: raise the "
                "engine's memory_budget, set a smaller size, or take a VGG model",
            )
        return (whole(height, width),)

    def window(
        self, size: tuple[int, int], taps: Collection[str], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Tile:
        """The whole picture, likewise."""
        return whole(*size)

    def maps(self, hidden: Tensor, taps: Collection[str], pooling: str) -> dict[str, Tensor]:
        """The smoothed maps at `taps`, in float32."""
        if len(hidden) > 1 and hidden.device.type == "cpu" and hidden.dtype == torch.float32:
            # Of few numbers torch convolves one picture in another way than several, and rounds otherwise.
            each = [self.maps(one, taps, pooling) for one in torch.split(hidden, 1)]
            return {tap: torch.cat([maps[tap] for maps in each]) for tap in each[0]}
        maps: dict[str, Tensor] = {}
        for tap, paths in zip(self._network.taps, self._network.modules, strict=True):
            if len(maps) == len(taps):
                break
            for path in paths:
                hidden = _apply(self._module.get_submodule(path), hidden, pooling)
            if tap in taps:
                # Each picture by itself: the softmax is over all of a map.
                maps[tap] = (
                    smoothed(hidden) if len(hidden) == 1 else torch.cat([*map(smoothed, torch.split(hidden, 1))])
                )
        return maps

    def bytes_per_pixel(self, taps: Collection[str], pooling: str) -> float:
        """Bytes kept per pixel of the picture, from the forward pass for the backward pass; measured once."""
        key = frozenset(taps), pooling
        if key not in self._bytes_per_pixel:
            weights = {tensor.untyped_storage().data_ptr() for tensor in self._module.state_dict().values()}
            kept: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            side = PROBE_SIDE + 2 * self._network.padding
            parameter = next(self._module.parameters())
            probe = torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                maps = self.maps(probe, taps, pooling)
            for smooth in maps.values():
                keep(smooth)
            self._bytes_per_pixel[key] = sum(kept.values()) / PROBE_SIDE**2
        return self._bytes_per_pixel[key]


def _fold_batch_norms(module: nn.Module) -> None:
    """Scales and shifts of batch normalisation into the convolutions that they directly follow, throughout."""
    children = list(module.named_children())
    for (name, layer), (next_name, following) in pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(layer, following))
            setattr(module, next_name, nn.Identity())
    for _, child in children:
        _fold_batch_norms(child)


def _apply(layer: nn.Module, hidden: Tensor, pooling: str) -> Tensor:
    if pooling == "average" and isinstance(layer, nn.MaxPool2d):
        pooled = F.avg_pool2d(hidden, layer.kernel_size, layer.stride, layer.padding, count_include_pad=False)
        return pooled * AVERAGE_POOLING_GAIN
    mapped: Tensor = layer(hidden)
    return mapped
