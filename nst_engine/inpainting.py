"""Filling a hole in a picture whose other pixels stay as they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import pictures
from nst_engine.masks import StyleMasks, area_resized
from nst_engine.options import OptionError
from nst_engine.patches import fill_from_patches

# By which a resampled share of 1 is off, at most.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Hole:
    """What alone may change in a picture.

    The picture is seen as content + mask (image - content), and the image is optimised: where the
    mask is 0 the picture is the content to the last bit, and at soft edges it blends.

    Attributes:
        mask: (1, 1, H, W), 0-1, above 0 somewhere.
        content: (1, 3, H, W), 0-255, with what was in the hole.
    """

    mask: Tensor
    content: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.mask.nbytes + self.content.nbytes

    def resized(self, size: tuple[int, int]) -> "Hole":
        """The hole in the content at another size, (height, width).

        Each pixel of the content counts by what the mask leaves of it. Otherwise those beside the hole would be in
        part of what was in it, and make a line around it.
        """
        if size == self.mask.shape[2:]:
            return self
        left = (1 - self.mask).clamp(min=0.0)  # a mask that was enlarged may be above 1 by its rounding
        # One channel at a time: the content may be far larger than the job.
        parts = [_resampled(channel * left, size) for channel in torch.split(self.content, 1, 1)]
        sharp, sums = (torch.cat(channels, 1) for channels in zip(*parts, strict=True))
        sharp_share, share = _resampled(left, size)
        untouched = (sharp_share - 1).abs() < ROUNDING
        content = torch.where(untouched, sharp, sums / share.clamp(min=torch.finfo(share.dtype).tiny))
        return Hole(area_resized(self.mask, size), content)

    def shrunk(self, size: tuple[int, int]) -> "Hole":
        """The hole in the content at `size`, (height, width), unless that is no larger."""
        return self.resized(size) if max(self.content.shape[2:]) > max(size) else self

    def confined(self, masks: Sequence[StyleMasks]) -> Iterator[StyleMasks]:
        """The masks of styles, with regions that are within the hole.

        Raises:
            OptionError: a region has no part in it.
        """
        for index, one in enumerate(masks):
            region = self.mask if one.region is None else self.mask * area_resized(one.region, self.mask.shape[2:])
            if not region.any():
                raise OptionError(f"styles[{index}].region", "has no part in the hole: nothing else can change")
            yield replace(one, region=region)

    def composite(self, image: Tensor) -> Tensor:
        """The image in the hole and the content elsewhere, (1, 3, H, W), differentiable in the image."""
        return torch.lerp(self.content, image, self.mask)

    def open(
        self, styles: Sequence[Tensor], masks: Sequence[StyleMasks]
    ) -> tuple[Tensor, list[Tensor], list[StyleMasks]]:
        """What is to fill the hole.

        Given styles do so from a smooth start, each in its region. If there are none
        the content does: structure goes on by patches, and the parts that these come from are the style.

        Args:
            styles: (1, 3, h, w) each, or none.
            masks: one per style, `confined`.

        Returns:
            The content with a start in the hole, (1, 3, H, W); the styles; their masks.

        Raises:
            OptionError: there is no style and nothing around the hole.
        """
        smooth = self.smoothed()
        if styles:
            return smooth, [*styles], [*masks]
        if (self.mask > 0).all():
            raise OptionError("hole", "covers the whole picture, so there is none left to fill it from: give a style")
        filled, sources = fill_from_patches(smooth, self.mask)
        return filled, [filled], [StyleMasks(region=self.mask, source_region=sources)]

    def smoothed(self) -> Tensor:
        """The content with smooth colours from around it wherever the mask is above 0, (1, 3, H, W).

        Averages of what is known on ever coarser grids, interpolated back: Gortler et al., "The
        Lumigraph" (SIGGRAPH 1996, section 3.4). Mid-grey where nothing is known.
        """
        known = (self.mask == 0).to(self.content.dtype)
        if not known.any():
            return torch.full_like(self.content, pictures.MID_GREY)
        return _pull_push(self.content, known)


def _resampled(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The image as a picture is resized, and in means over areas: less sharp, and never beyond what it is made of."""
    return pictures.resize(image, size), area_resized(image, size)


def _pull_push(image: Tensor, known: Tensor) -> Tensor:
    """(1, 3, H, W) with what is not known, where (1, 1, H, W) is 0, filled in; something is."""
    if known.all():
        return image
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(image * known, 2, ceil_mode=True) / share.clamp(min=torch.finfo(share.dtype).tiny)
    coarse = _pull_push(means, (share > 0).to(image.dtype))
    height, width = image.shape[2:]
    smooth = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(known > 0, image, smooth)
