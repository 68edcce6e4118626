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
from nst_engine.masks import position_weights
from nst_engine.statistics import Statistic
from nst_engine.tiling import Tile

Features = Callable[[Tensor], Mapping[str, Tensor]]
# How much each position of the whole map at a tap counts, (1, 1, h, w), by tap; at those left out all count alike.
Weights = Mapping[str, Tensor]


def computed(image: Tensor, tile: Tile) -> Tensor:
    """The view of the picture that the network is given for the tile, halo included."""
    return image[:, :, tile.rows.computed, tile.columns.computed]


def owned_within(part: Tensor, tile: Tile, stride: int) -> Tensor:
    """The tile's own positions, as a view of the map of `computed`."""
    return part[:, :, tile.rows.own_within(stride), tile.columns.own_within(stride)]


def owned(whole: Tensor, tile: Tile, stride: int) -> Tensor:
    """The tile's own positions, as a view of a map of the whole picture."""
    return whole[:, :, tile.rows.own(stride), tile.columns.own(stride)]


def map_size(image: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of the map of the whole picture."""
    height, width = image.shape[2:]
    return height // stride, width // stride


def positions(image: Tensor, stride: int) -> int:
    """Positions in the map of the whole picture."""
    height, width = map_size(image, stride)
    return height * width


def map_sizes(image: Tensor, strides: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Those of a network that can work in tiles, by tap."""
    return {tap: map_size(image, stride) for tap, stride in strides.items()}


def weights_in(mask: Tensor | None, sizes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """What counts of a picture where a mask is, (1, 1, H, W), 0-1, in maps of these sizes; see `position_weights`."""
    found = {tap: position_weights(mask, size) for tap, size in sizes.items()}
    return {tap: weights.view(1, 1, *sizes[tap]) for tap, weights in found.items() if weights is not None}


def weights_seen(weights: Weights, tile: Tile, strides: Mapping[str, int]) -> dict[str, Tensor]:
    """Of these, what lies on the map of `computed`; again with a mean of 1."""
    places = {tap: (tile.rows.computed_at(strides[tap]), tile.columns.computed_at(strides[tap])) for tap in weights}
    seen = {tap: whole[(..., *places[tap])] for tap, whole in weights.items()}
    return {tap: part / part.mean() for tap, part in seen.items()}


def counts(tile: Tile, regions: Sequence[Weights], strides: Mapping[str, int]) -> bool:
    """Whether any of the tile's own positions, at the taps of `strides`, counts in any of the regions."""
    return any(
        tap not in weights or bool(owned(weights[tap], tile, stride).any())
        for weights in regions
        for tap, stride in strides.items()
    )


def measured(statistic: Statistic[Any, Any], own: Tensor, tile: Tile, stride: int, weights: Tensor | None) -> Any:
    """What a statistic measures of the tile's own positions, the whole map's weights given."""
    return statistic.measure(own, None if weights is None else owned(weights, tile, stride).flatten())


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
    regions: Sequence[Weights],
    statistic: Statistic[Any, Any],
    processes: Processes,
) -> list[dict[str, Any]]:
    """What an additive statistic measures of each region of a picture, at the taps of `strides`, without gradients.

    Each process measures its own tiles, but for those that lie outside every region; the means are those of all.
    """
    means: list[dict[str, Any]] = [{} for _ in regions]
    if not strides:
        return means
    own_tiles = processes.own(tiles)
    counting = [tile for tile in own_tiles if counts(tile, regions, strides)]
    # One that has none learns from any what the shapes of the sums are.
    for tile in counting or (*own_tiles, *tiles)[:1]:
        maps = features(computed(image, tile))
        for tap, stride in strides.items():
            own = owned_within(maps[tap], tile, stride)
            share = share_of(own, image, stride) if counting else 0.0
            for mean, weights in zip(means, regions, strict=True):
                found = measured(statistic, own, tile, stride, weights.get(tap))
                before = mean.get(tap, [0.0] * len(found))
                mean[tap] = found._make(part + share * more for part, more in zip(before, found, strict=True))
                del found
        del maps, own  # before the next tile's are made
    sums = iter(processes.summed(list(chain(*(parts for mean in means for parts in mean.values())))))
    return [{tap: parts._make(islice(sums, len(parts))) for tap, parts in mean.items()} for mean in means]
