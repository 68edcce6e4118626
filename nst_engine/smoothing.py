"""Smoothing of feature maps, without which networks with skip connections are of little use for style."""

import torch
from torch import Tensor

# The temperature of the softmax, in standard deviations of the map. At one and below, the softmax of
# most maps is peakier than the map itself; at this many, its entropy is 0.97 to 1 of what it can be.
TEMPERATURE = 3.0
# Standard deviation below which a map counts as flat. It only keeps quotients finite.
SMALLEST_DEVIATION = 1e-6


def smoothed(features: Tensor) -> Tensor:
    """The softmax of features / T over all of a (1, C, H, W) map, times C H W; float32, in its memory layout.

    Wang, Li and Vasconcelos, "Rethinking and improving the robustness of image style transfer" (SWAG,
    arXiv 2104.05623): skip connections leave maps in which a few large activations outweigh all the
    others in the Gram matrix; the softmax raises the entropy of a map, and style transfer works. Two
    things differ from theirs. The factor C H W makes the mean 1, so that maps of pictures of different
    sizes compare. And T, which is 1 in their code, is `TEMPERATURE` standard deviations of the map.
    """
    exact = features.float()
    temperature = TEMPERATURE * exact.std(correction=0).clamp(min=SMALLEST_DEVIATION)
    exponentials = torch.exp((exact - exact.detach().amax()) / temperature)
    return exponentials / exponentials.mean()
