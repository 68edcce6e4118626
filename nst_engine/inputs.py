"""What a caller gives: styles, and from its pictures and masks to the material of a session."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nst_engine import pictures
from nst_engine.inpainting import Hole
from nst_engine.masks import StyleMasks, area_resized
from nst_engine.material import Material
from nst_engine.options import OptionError
from nst_engine.pictures import Picture
from nst_engine.protection import subject_mask


@dataclass(frozen=True)
class Style:
    """A style: what is taken, and where on the content it goes.

    Attributes:
        image: (H, W, 3) RGB as uint8 or floating 0-1.
        weight: its share relative to the other styles of the same region.
        region: a mask of the content, (h, w) of any size as uint8 0-255 or floating 0-1, stretched to
            the content's shape: 1 where the style goes, 0 where not, between at soft edges. None is
            everywhere. Where no region is, the content stays.
        source_region: likewise a mask of the style picture: what part of it is taken.
    """

    image: Picture
    weight: float = 1.0
    region: Picture | None = None
    source_region: Picture | None = None


def to_material(
    content: Picture,
    styles: Sequence[Style],
    subject: Picture | None,
    hole: Picture | None,
    *,
    find_faces: bool,
    device: torch.device,
) -> Material:
    """The pictures and masks as tensors on the device; see `Engine.start` for what is given.

    Raises:
        OptionError: a picture or a mask is unusable, or there is a hole together with a subject or faces, or faces
            are to be found without OpenCV; `field` names it.
    """
    target = pictures.to_tensor(content, "content", device)
    images = [pictures.to_tensor(style.image, f"styles[{index}].image", device) for index, style in enumerate(styles)]
    masks = [_masks(style, f"styles[{index}]", device) for index, style in enumerate(styles)]
    protected = subject_mask(target, _mask(subject, "subject", device), find_faces=find_faces)
    if hole is None:
        return Material(target, images, masks, protected)
    if subject is not None or find_faces:
        raise OptionError("hole", "cannot be combined with a subject or faces: what is outside it stays anyway")
    opened = Hole(area_resized(pictures.to_mask(hole, "hole", device), target), target)
    return Material(*opened.open(images, masks), hole=opened)


def _masks(style: Style, name: str, device: torch.device) -> StyleMasks:
    return StyleMasks(
        _mask(style.region, f"{name}.region", device), _mask(style.source_region, f"{name}.source_region", device)
    )


def _mask(mask: Picture | None, name: str, device: torch.device) -> Tensor | None:
    return None if mask is None else pictures.to_mask(mask, name, device)
