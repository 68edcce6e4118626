"""How much memory a session takes, told before it does."""

from typing import NamedTuple

import torch

from nst_engine.backbone import Backbone
from nst_engine.image_network import BYTES_PER_PIXEL
from nst_engine.masks import distinct_regions
from nst_engine.material import Material
from nst_engine.optimizers import make_optimizer
from nst_engine.options import StylizeOptions
from nst_engine.parametrization import make_parametrization
from nst_engine.schedule import Scale, named_taps
from nst_engine.statistics import make_statistic

# Tensors there have a size and take no memory.
META = torch.device("meta")
# The parameters and their gradient, those of the best state, and a proposal with what leads to it.
COPIES = 8
# Peak of the resident memory that an evaluation takes, in multiples of the maps that it keeps: there are gradients on
# the way back, scratch space of the convolutions, and holes in the heap. Measured on a CPU, in both precisions.
EVALUATION = 2.5
# Bytes a pixel in an evaluation: how much positions count at every tap, for each region; the detail of a subject.
REGION = 6
SUBJECT = 64
# Bytes that comparing sorted projections takes for each of them: orders and levels are 64-bit.
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
    evaluating = EVALUATION * min(max(pixels) * per_pixel, memory_budget)
    painting = BYTES_PER_PIXEL if options.parametrization == "network" else 0
    regions = sum(one.mask is not None for one in distinct_regions(material.masks))
    besides = painting + REGION * regions + (SUBJECT if material.subject is not None else 0)
    held += int(_target_bytes(backbone, pixels[0], pixels[1:], options))
    return WorkingMemory(held, int(evaluating + besides * pixels[0]))


def _target_bytes(backbone: Backbone, content: int, styles: list[int], options: StylizeOptions) -> float:
    """What is kept of a content and styles of so many pixels, and what it takes to compare with them.

    Each statistic is there once more, for what it is blended to.
    """
    network = backbone.network
    numbers = {tap: network.channels(tap) / network.stride(tap) ** 2 for tap in network.taps}
    total = sum(numbers[tap] for tap in options.content_layers) * content * backbone.dtype.itemsize
    for tap in options.style_layers:
        if make_statistic(options).additive:
            total += (len(styles) + 1) * network.channels(tap) ** 2 * torch.float32.itemsize
        else:
            total += numbers[tap] * (sum(styles) + max(styles)) * torch.float32.itemsize
            total += numbers[tap] * content * SORTING
    return total
