"""What a strength means: where the gradients of content and style are measured, and what they are brought to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nst_engine.network import Network, TorchvisionNetwork
from nst_engine.pictures import MID_GREY


@dataclass(frozen=True)
class Balance:
    """How a strength becomes weights.

    Attributes:
        grey: whether gradients are measured around mid-grey instead of the content.
        noise: the standard deviation of the noise there, 0-255 units. Without it neither side would be clear of
            its own minimum, or of what a network makes of nothing.
        content_level: root mean square, per pixel, of a wholly weighted content gradient there. It sets what
            `tv_weight` and `box_weight` mean next to a strength, at any size.
        style_levels: the same for style, by statistic. At these ratios, chosen by eye, strength 0.5 gives clear
            brush strokes and colours of the style on a subject that is still plain.
    """

    grey: bool
    noise: float
    content_level: float
    style_levels: Mapping[str, float]

    def image(self, content: Tensor) -> Tensor:
        """Where gradients are measured, of the content's shape, (1, 3, H, W)."""
        return noisy(torch.full_like(content, MID_GREY) if self.grey else content, self.noise)


# Of the images tried, from the content under noise to the style itself, this one brings pairs of pictures closest
# together at one strength: it owes nothing to either.
PLAIN = Balance(True, 10.0, 0.3, {"gram": 5.0, "moments": 0.21, "sliced": 3.8})
# Smoothing divides by a map's own deviation, which a nearly flat image leaves next to none of.
SMOOTHED = Balance(False, 100.0, 1.0, {"gram": 600.0, "moments": 1.3, "sliced": 7.0})


def balance_of(network: Network) -> Balance:
    """The one for the maps of this network."""
    return SMOOTHED if isinstance(network, TorchvisionNetwork) else PLAIN


def noisy(image: Tensor, deviation: float) -> Tensor:
    """The image under noise that is the same on every device, to be differentiated in."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + deviation * noise.to(image.device)).requires_grad_(True)
