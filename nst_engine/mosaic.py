"""Feature maps and style statistics of a picture that are computed tile by tile.

The caller gives the network as a function from a part of the picture, (1, 3, h, w), to its maps by
tap. Strides are the taps' own, `Network.stride`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nst_engine.statistics import Statistic
from nst_engine.tiling import Tile

Features = Callable[[Tensor], Mapping[str, Tensor]]


def computed(image: Tensor, tile: Tile) -> Tensor:
    """The view of the picture that the network is given for the tile, halo included."""
    return image[:, :, tile.rows.computed, tile.columns.computed]


def owned(whole: Tensor, tile: Tile, stride: int) -> Tensor:
    """The tile's own positions, as a view of the whole picture's map."""
    return whole[:, :, tile.rows.own(stride), tile.columns.own(stride)]


def owned_within(part: Tensor, tile: Tile, stride: int) -> Tensor:
    """The tile's own positions, as a view of the map of `computed`."""
    return part[:, :, tile.rows.own_within(stride), tile.columns.own_within(stride)]


def share_of(part: Tensor, whole: Tensor, stride: int) -> float:
    """The share of the map of the picture `whole` that `part`, a part of it, is."""
    height, width = whole.shape[2:]
    return part[0, 0].numel() / ((height // stride) * (width // stride))


@torch.no_grad()
def joined_maps(
    features: Features, image: Tensor, tiles: Sequence[Tile], strides: Mapping[str, int]
) -> dict[str, Tensor]:
    """The whole picture's maps at the taps of `strides`, (1, C, h, w), channels-last, without gradients."""
    height, width = image.shape[2:]
    joined: dict[str, Tensor] = {}
    for tile in tiles if strides else ():
        maps = features(computed(image, tile))
        for tap, stride in strides.items():
            if tap not in joined:
                shape = (1, maps[tap].shape[1], height // stride, width // stride)
                joined[tap] = torch.empty(
                    shape, dtype=maps[tap].dtype, device=image.device, memory_format=torch.channels_last
                )
            owned(joined[tap], tile, stride).copy_(owned_within(maps[tap], tile, stride))
        del maps  # before the next tile's are made
    return joined


@torch.no_grad()
def mean_statistics(
    features: Features,
    image: Tensor,
    tiles: Sequence[Tile],
    strides: Mapping[str, int],
    statistic: Statistic[Any, Any],
) -> dict[str, Any]:
    """What an additive statistic measures of the whole picture, at the taps of `strides`, without gradients."""
    means: dict[str, Any] = {}
    for tile in tiles if strides else ():
        maps = features(computed(image, tile))
        for tap, stride in strides.items():
            own = owned_within(maps[tap], tile, stride)
            measured = statistic.measure(own)
            share = share_of(own, image, stride)
            parts = means[tap] if tap in means else [0.0] * len(measured)
            means[tap] = measured._make(mean + share * part for mean, part in zip(parts, measured, strict=True))
        del maps, own, measured  # before the next tile's are made
    return means
