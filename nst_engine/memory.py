"""How much memory a session takes, told before it does."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nst_engine.backbone import Backbone
from nst_engine.image_network import BYTES_PER_PIXEL
from nst_engine.masks import Region, distinct_regions
from nst_engine.material import Material
from nst_engine.optimizers import make_optimizer
from nst_engine.options import StylizeOptions
from nst_engine.parametrization import make_parametrization
from nst_engine.schedule import Scale, named_taps
from nst_engine.statistics import make_statistic
from nst_engine.tiled import too_large_as_a_whole

# Tensors there have a size and take no memory.
META = torch.device("meta")
# The parameters and their gradient, those of the best state, and a proposal with what leads to it.
COPIES = 8
# Peak of the resident memory that an evaluation takes, in multiples of the maps that it keeps: there are gradients on
# the way back, scratch space of the convolutions, and holes in the heap. Measured on a CPU: 3.0 in bfloat16, 3.2 in
# float32, and 3.7 where poolings are merged, as less is kept there.
EVALUATION = 3.5
# Likewise for a style that is measured, without a gradient.
MEASURING = 1.5
# Bytes a pixel: how much positions count at every tap, held for each region; in an evaluation, the subject's detail.
REGION = 6
SUBJECT = 64
# Bytes that comparing sorted projections takes for each of them: themselves, unsorted and sorted, their 64-bit orders,
# what they differ by, and the gradients on the way back.
SORTING = 32


class WorkingMemory(NamedTuple):
    """Bytes.

    Attributes:
        held: from one iteration to the next.
        evaluating: in an iteration, besides.
    """

    held: int
    evaluating: int


def working_memory(
    backbone: Backbone, material: Material, scale: Scale, options: StylizeOptions, memory_budget: int
) -> WorkingMemory:
    """An estimate of the most that a session takes at a scale while it is stepped alone, without the shared network.

    Args:
        backbone: the feature network.
        material: the pictures and masks.
        scale: which.
        options: how to stylise.
        memory_budget: as the session has it.
    """
    size = scale.height, scale.width
    parametrization = make_parametrization(options, size, META)
    parameters = torch.empty(1, 3, *size, device=META)
    if options.parametrization == "network":  # the others have a number for each of the picture's
        parameters = parametrization.of(parameters)
    optimizer = make_optimizer(options, parameters.shape, META, memory_budget)
    held = material.nbytes + COPIES * parameters.nbytes + optimizer.nbytes + parametrization.nbytes
    pixels = [height * width for height, width in (size, *material.style_sizes(scale, options))]
    per_pixel = backbone.bytes_per_pixel(named_taps(options), options.pooling)
    seen = material.window(backbone, scale, options).pixels
    evaluating = EVALUATION * min(seen * per_pixel, memory_budget)
    evaluating += _sorting(backbone, material, pixels[0], options)
    evaluating = max(evaluating, MEASURING * min(max(pixels[1:]) * per_pixel, memory_budget))
    painting = EVALUATION * BYTES_PER_PIXEL if options.parametrization == "network" else 0
    regions = distinct_regions(material.masks)
    masked = sum(one.mask is not None for one in regions)
    besides = painting + (SUBJECT if material.subject is not None else 0)
    held += int(_target_bytes(backbone, pixels[0], pixels[1:], regions, options)) + REGION * masked * pixels[0]
    return WorkingMemory(held, int(evaluating + besides * pixels[0]))


def check_sorting(
    backbone: Backbone, material: Material, scale: Scale, options: StylizeOptions, memory_budget: int
) -> None:
    """Makes sure that an evaluation takes no more than any other where the statistic compares sorted projections.

    Raises:
        OptionError: it would at this scale.
    """
    pixels = scale.height * scale.width
    seen = material.window(backbone, scale, options).pixels
    maps = seen * backbone.bytes_per_pixel(named_taps(options), options.pooling)
    sorting = _sorting(backbone, material, pixels, options)
    if sorting and EVALUATION * maps + sorting > EVALUATION * memory_budget:
        raise too_large_as_a_whole(backbone, (scale.height, scale.width), memory_budget)


def _sorting(backbone: Backbone, material: Material, content: int, options: StylizeOptions) -> float:
    """What it takes to compare a content of so many pixels with the styles, each position once for each region."""
    if make_statistic(options).additive:
        return 0.0
    masks = [one.mask for one in distinct_regions(material.masks)]
    compared = content * sum(1.0 if mask is None else (mask > 0).float().mean().item() for mask in masks)
    numbers = _numbers(backbone)
    return SORTING * compared * sum(numbers[tap] for tap in options.style_layers)


def _numbers(backbone: Backbone) -> dict[str, float]:
    """How many numbers the map at each tap has for a pixel of the picture."""
    network = backbone.network
    return {tap: network.channels(tap) / network.stride(tap) ** 2 for tap in network.taps}


def _target_bytes(
    backbone: Backbone, content: int, styles: list[int], regions: Sequence[Region], options: StylizeOptions
) -> float:
    """What is kept of a content and styles of so many pixels.

    Each statistic is there once more for each region, for what its styles are blended to.
    """
    numbers = _numbers(backbone)
    blended = [max(styles[index] for index in region.styles) for region in regions]
    total = sum(numbers[tap] for tap in options.content_layers) * content * backbone.dtype.itemsize
    for tap in options.style_layers:
        if make_statistic(options).additive:
            squares = backbone.network.channels(tap) ** 2
            total += (len(styles) + len(blended)) * squares * torch.float32.itemsize
        else:
            total += numbers[tap] * (sum(styles) + sum(blended)) * torch.float32.itemsize
    return total
