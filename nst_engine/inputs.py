"""What a caller gives: styles, and from its pictures and masks to the material of a session."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nst_engine import faces, pictures
from nst_engine.inpainting import Hole
from nst_engine.masks import StyleMasks, area_resized
from nst_engine.material import Material, style_size
from nst_engine.options import STYLE_SCALES, WEIGHTS, OptionError, StylizeOptions, checked
from nst_engine.pictures import Picture
from nst_engine.protection import subject_mask
from nst_engine.schedule import plan


@dataclass(frozen=True)
class Style:
    """A style: what is taken, and where on the content it goes.

    Attributes:
        image: (H, W, 3) RGB as uint8 or floating 0-1.
        weight: its share relative to the other styles of the same region, 0 to 1e12.
        region: a mask of the content, (h, w) of any size as uint8 0-255 or floating 0-1, stretched to
            the content's shape: 1 where the style goes, 0 where not, between at soft edges. None is
            everywhere. Where no region is, no style is taken.
        source_region: likewise a mask of the style picture: what part of it is taken.
        scale: the size at which it is looked at, 0.1 to 2: its long side relative to the picture's. Strokes and
            shapes grow with it.
    """

    image: Picture
    weight: float = 1.0
    region: Picture | None = None
    source_region: Picture | None = None
    scale: float = 1.0


def to_material(
    content: Picture,
    styles: Sequence[Style],
    subject: Picture | None,
    hole: Picture | None,
    options: StylizeOptions,
    device: torch.device,
) -> Material:
    """The pictures and masks as tensors on the device; see `Engine.start` for what is given.

    What is larger than it is ever needed is shrunk at once, so that a session's memory follows its own size.

    Raises:
        OptionError: a picture, a mask, a weight or a scale is unusable, or there is a hole together with a subject or
            faces, or faces are to be found without OpenCV, or at this size nothing is left of the content; `field`
            names it.
    """
    whole = pictures.to_tensor(content, "content", device)
    last = plan(whole.shape[2], whole.shape[3], options)[-1]
    size = last.height, last.width
    parts = [_style(style, f"styles[{index}]", options, device) for index, style in enumerate(styles)]
    images, masks = [image for image, _ in parts], [mask for _, mask in parts]
    scales = [float(style.scale) for style in styles]
    if hole is None:
        heads = faces.head_mask(pictures.to_picture(whole)) if options.faces else None
        target = pictures.shrunk(whole, size)
        protected = subject_mask(target, _mask(subject, "subject", device), _mask(heads, "faces", device))
        return Material(target, images, masks, scales, protected).shrunk(size)
    if subject is not None or options.faces:
        raise OptionError("hole", "cannot be combined with a subject or faces: what is outside it stays anyway")
    given = Hole(area_resized(pictures.to_mask(hole, "hole", device), whole.shape[2:]), whole)
    kept = given.shrunk(size)
    masks = [one.shrunk(size, None) for one in given.confined(masks)]
    return Material(*kept.open(images, masks), scales or [1.0], hole=kept).shrunk(size)


def _style(style: Style, name: str, options: StylizeOptions, device: torch.device) -> tuple[Tensor, StyleMasks]:
    image = pictures.to_tensor(style.image, f"{name}.image", device)
    scale = checked(f"{name}.scale", style.scale, STYLE_SCALES)
    checked(f"{name}.weight", style.weight, WEIGHTS)
    size = style_size(image, scale * options.size, options)
    region = _mask(style.region, f"{name}.region", device)
    source_region = _mask(style.source_region, f"{name}.source_region", device)
    return pictures.shrunk(image, size), StyleMasks(region, source_region).shrunk(None, size)


def _mask(mask: Picture | None, name: str, device: torch.device) -> Tensor | None:
    return None if mask is None else pictures.to_mask(mask, name, device)
