"""Where on the content a style goes, and what part of the style is taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StyleMasks:
    """The masks of one style, (1, 1, h, w) float32 in 0-1 of any size; None is everywhere.

    Attributes:
        region: in the frame of the content, where the style goes.
        source_region: in the frame of the style, what part of it is taken.
    """

    region: Tensor | None = None
    source_region: Tensor | None = None

    def shrunk(self, content: tuple[int, int] | None, style: tuple[int, int] | None) -> "StyleMasks":
        """The masks within these sizes, (height, width), of the pictures that they lie on."""
        return StyleMasks(
            self.region if content is None else area_shrunk(self.region, content),
            self.source_region if style is None else area_shrunk(self.source_region, style),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the masks."""
        return sum(mask.nbytes for mask in (self.region, self.source_region) if mask is not None)


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the content, or all of it if `mask` is None, and the indices of the styles that go there."""

    mask: Tensor | None
    styles: tuple[int, ...]

    @property
    def area(self) -> float:
        """Its share of the content's area, soft edges counting in part; above 0, at most 1."""
        return 1.0 if self.mask is None else self.mask.mean().item()


def distinct_regions(masks: Sequence[StyleMasks]) -> list[Region]:
    """The regions of several styles, in the order in which they first come; equal masks are one region."""
    members: list[tuple[Tensor | None, list[int]]] = []
    for index, one in enumerate(masks):
        for mask, styles in members:
            if _same(mask, one.region):
                styles.append(index)
                break
        else:
            members.append((one.region, [index]))
    return [Region(mask, tuple(styles)) for mask, styles in members]


def position_weights(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """How much each position of a map of `size`, (H, W), counts: (H * W,) with a mean of 1; None is 1 for all.

    Each position has the mean of the mask over the area that it stands for. With weights of mean 1
    whatever is averaged over the map is averaged over the mask's own area.
    """
    if mask is None:
        return None
    weights = area_resized(mask, size).flatten()
    return weights / weights.mean()


def area_resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The mask at a `size`, (H, W), as (1, 1, H, W): means over areas.

    A smaller mask is interpolated first, so that it does not come out in blocks.
    """
    height, width = size
    if mask.shape[2] < height or mask.shape[3] < width:
        mask = F.interpolate(mask, size=(max(height, mask.shape[2]), max(width, mask.shape[3])), mode="bilinear")
    return F.interpolate(mask, size=(height, width), mode="area")


def area_shrunk(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """The mask within `size`, (height, width): (1, 1, h, w), means over areas; None stays None."""
    if mask is None:
        return None
    return F.interpolate(mask, size=[min(sides) for sides in zip(mask.shape[2:], size, strict=True)], mode="area")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
