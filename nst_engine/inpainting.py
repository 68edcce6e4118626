"""Filling a hole in a picture whose other pixels stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import pictures
from nst_engine.masks import StyleMasks, area_resized
from nst_engine.options import OptionError
from nst_engine.patches import fill_from_patches


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
        """The hole in the content at another size, (height, width)."""
        content = pictures.resize(self.content, size)
        return Hole(area_resized(self.mask, size), content)

    def composite(self, image: Tensor) -> Tensor:
        """The image in the hole and the content elsewhere, (1, 3, H, W), differentiable in the image."""
        return torch.lerp(self.content, image, self.mask)

    def open(
        self, styles: Sequence[Tensor], masks: Sequence[StyleMasks]
    ) -> tuple[Tensor, list[Tensor], list[StyleMasks]]:
        """What is to fill the hole.

        Given styles do so from a smooth start, each where its region meets the hole. If there are none
        the content does: structure goes on by patches, and the parts that these come from are the style.

        Args:
            styles: (1, 3, h, w) each, or none.
            masks: one per style.

        Returns:
            The content with a start in the hole, (1, 3, H, W); the styles; their masks.

        Raises:
            OptionError: there is no style and nothing around the hole, or a region has no part in it.
        """
        smooth = self.smoothed()
        if styles:
            regions = [self._confined(one.region, f"styles[{index}].region") for index, one in enumerate(masks)]
            return smooth, [*styles], [replace(one, region=mask) for one, mask in zip(masks, regions, strict=True)]
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

    def _confined(self, region: Tensor | None, name: str) -> Tensor:
        if region is None:
            return self.mask
        inside = self.mask * area_resized(region, self.mask.shape[2:])
        if not inside.any():
            raise OptionError(name, "has no part in the hole: nothing else can change")
        return inside


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
