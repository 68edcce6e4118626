"""The image that a run starts from."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nst_engine import colors, pictures
from nst_engine.masks import StyleMasks, area_resized, distinct_regions, position_weights
from nst_engine.options import OptionError, StylizeOptions
from nst_engine.texture import covering, detail, textured

# Standard deviation of the noise start around mid-grey, 0-255 units.
NOISE_DEVIATION = 32.0


def first_image(
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    masks: Sequence[StyleMasks],
    options: StylizeOptions,
    initial: Tensor | None,
) -> Tensor:
    """What `options.init` asks for, at the size of the content.

    Args:
        content: (1, 3, H, W), 0-255, at the working size.
        styles: (1, 3, h, w) each.
        shares: one per style.
        masks: one per style.
        options: `init` and `seed`.
        initial: a picture of any size for init "image"; None for every other.

    Raises:
        OptionError: a picture is missing, or is given and not asked for.
    """
    if (initial is not None) != (options.init == "image"):
        raise OptionError("initial", "give a picture to start from together with init=image, or neither of the two")
    if initial is not None:
        height, width = content.shape[2:]
        return pictures.resize(initial, (height, width))
    if options.init == "noise":
        noise = torch.randn(content.shape, generator=torch.Generator().manual_seed(options.seed))
        return pictures.MID_GREY + NOISE_DEVIATION * noise.to(content.device)
    if options.init == "content":
        return content
    recolored = _recolored(content, styles, shares, masks)
    return recolored if options.init == "recolored" else _textured(recolored, styles, shares, masks)


def _recolored(
    content: Tensor, styles: Sequence[Tensor], shares: Sequence[float], masks: Sequence[StyleMasks]
) -> Tensor:
    """The content, each region of it with the colours of the styles that go there; a later one is over an earlier."""
    moments = [
        colors.moments(style, position_weights(one.source_region, style.shape[2:]))
        for style, one in zip(styles, masks, strict=True)
    ]
    image, size = content, content.shape[2:]
    for region in distinct_regions(masks):
        parts = [shares[index] for index in region.styles]
        if not any(parts):
            continue
        target = colors.pooled_moments([moments[index] for index in region.styles], parts)
        recolored = colors.recolored(content, target, position_weights(region.mask, size))
        image = recolored if region.mask is None else torch.lerp(image, recolored, area_resized(region.mask, size))
    return image


def _textured(image: Tensor, styles: Sequence[Tensor], shares: Sequence[float], masks: Sequence[StyleMasks]) -> Tensor:
    """The image, each region of it with the detail of the styles that go there, where it has less of its own.

    Details of several styles add up by their shares, and to as much as one has, were they unlike.
    """
    result, size = image, (image.shape[2], image.shape[3])
    for region in distinct_regions(masks):
        parts = [shares[index] for index in region.styles]
        if not any(parts):
            continue
        length, texture = math.hypot(*parts), torch.zeros_like(image)
        for part, index in zip(parts, region.styles, strict=True):  # one at a time: each is as large as the picture
            texture += part / length * detail(covering(_taken(styles[index], masks[index]), size))
        covered = textured(image, texture)
        result = covered if region.mask is None else torch.lerp(result, covered, area_resized(region.mask, size))
    return result


def _taken(style: Tensor, masks: StyleMasks) -> Tensor:
    """The rectangle around what is taken of the style."""
    if masks.source_region is None:
        return style
    weights = area_resized(masks.source_region, style.shape[2:])[0, 0]
    inside = weights >= 0.5 * weights.max()
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    return style[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
