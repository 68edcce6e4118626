"""Feature maps and style statistics of a picture that are computed tile by tile.

The caller gives the network as a function from a part of the picture, (1, 3, h, w), to its maps by
tap. Strides are the taps' own, `Network.stride`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from nst_engine.distributed import Processes
from nst_engine.statistics import Statistic
from nst_engine.tiling import Tile

Features = Callable[[Tensor], Mapping[str, Tensor]]


def computed(image: Tensor, tile: Tile) -> Tensor:
    """The view of the picture that the network is given for the tile, halo included."""
    return image[:, :, tile.rows.computed, tile.columns.computed]


def owned_within(part: Tensor, tile: Tile, stride: int) -> Tensor:
    """The tile's own positions, as a view of the map of `computed`."""
    return part[:, :, tile.rows.own_within(stride), tile.columns.own_within(stride)]


def positions(image: Tensor, stride: int) -> int:
    """Positions in the map of the whole picture."""
    height, width = image.shape[2:]
    return (height // stride) * (width // stride)


def share_of(part: Tensor, whole: Tensor, stride: int) -> float:
    """The share of the map of the picture `whole` that `part`, a part of it, is."""
    return part[0, 0].numel() / positions(whole, stride)


@torch.no_grad()
def owned_maps(
    features: Features, image: Tensor, tiles: Sequence[Tile], strides: Mapping[str, int]
) -> dict[Tile, dict[str, Tensor]]:
    """Each tile's own positions of the maps at the taps of `strides`, (1, C, h, w), without gradients."""
    found: dict[Tile, dict[str, Tensor]] = {}
    for tile in tiles if strides else ():
        maps = features(computed(image, tile))
        own = {tap: owned_within(maps[tap], tile, stride) for tap, stride in strides.items()}
        found[tile] = {tap: part.clone(memory_format=torch.channels_last) for tap, part in own.items()}
        del maps, own  # before the next tile's are made
    return found


@torch.no_grad()
def mean_statistics(
    features: Features,
    image: Tensor,
    tiles: Sequence[Tile],
    strides: Mapping[str, int],
    statistic: Statistic[Any, Any],
    processes: Processes,
) -> dict[str, Any]:
    """What an additive statistic measures of the whole picture, at the taps of `strides`, without gradients.

    Each process measures its own tiles; the means are those of all.
    """
    means: dict[str, Any] = {}
    if not strides:
        return means
    own_tiles = processes.own(tiles)
    # One that has no tile learns from any what the shapes of the sums are.
    for tile in own_tiles or tiles[:1]:
        maps = features(computed(image, tile))
        for tap, stride in strides.items():
            own = owned_within(maps[tap], tile, stride)
            measured = statistic.measure(own)
            share = share_of(own, image, stride) if own_tiles else 0.0
            parts = means[tap] if tap in means else [0.0] * len(measured)
            means[tap] = measured._make(mean + share * part for mean, part in zip(parts, measured, strict=True))
        del maps, own, measured  # before the next tile's are made
    sums = iter(processes.summed(list(chain(*means.values()))))
    return {tap: parts._make(islice(sums, len(parts))) for tap, parts in means.items()}
