"""The part of a picture that the network has to see."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from nst_engine.backbone import Backbone
from nst_engine.masks import StyleMasks, area_resized
from nst_engine.options import StylizeOptions
from nst_engine.schedule import named_taps
from nst_engine.tiling import Tile, whole


def window(backbone: Backbone, size: Sequence[int], options: StylizeOptions, masks: Sequence[StyleMasks]) -> Tile:
    """All of a picture of this height and width, unless nothing counts but styles in regions of it, as in a hole."""
    height, width = size
    regions = [one.region for one in masks if one.region is not None]
    if options.content_layers or len(regions) < len(masks):
        return whole(height, width)
    rows, columns = zip(*_extents(backbone, size, options, regions), strict=True)
    return backbone.window((height, width), named_taps(options), _around(rows), _around(columns))


def _extents(
    backbone: Backbone, size: Sequence[int], options: StylizeOptions, regions: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Rows and columns, in pixels, of the positions that count: of each region, at each stride."""
    height, width = size
    for stride in {backbone.network.stride(tap) for tap in options.style_layers}:
        for region in regions:
            counting = area_resized(region, (height // stride, width // stride))[0, 0] > 0
            sides = (counting.any(dim).nonzero() for dim in (1, 0))
            yield tuple((int(side[0]) * stride, (int(side[-1]) + 1) * stride) for side in sides)


def _around(extents: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(first for first, _ in extents), max(last for _, last in extents)
