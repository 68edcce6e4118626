"""The image that a run starts from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nst_engine import colors, pictures
from nst_engine.options import OptionError, StylizeOptions

# Standard deviation of the noise start around mid-grey, 0-255 units.
NOISE_DEVIATION = 32.0


def first_image(
    content: Tensor, styles: Sequence[Tensor], shares: Sequence[float], options: StylizeOptions, initial: Tensor | None
) -> Tensor:
    """What `options.init` asks for, at the size of the content.

    Args:
        content: (1, 3, H, W), 0-255, at the working size.
        styles: (1, 3, h, w) each.
        shares: one per style.
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
        return 127.5 + NOISE_DEVIATION * noise.to(content.device)
    if options.init == "recolored":
        return colors.recolored(content, colors.pooled_moments(styles, shares))
    return content
