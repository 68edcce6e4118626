"""Oklab, a colour space whose lightness and chroma are about what the eye tells apart.

B. Ottosson, "A perceptual color space for image processing", 2020, gives the matrices for linear
sRGB; the transfer function is that of IEC 61966-2-1.
"""

import torch
from torch import Tensor

BISECTIONS = 8
# In linear sRGB; a tenth of an 8-bit step where steps are finest.
ROUNDING = 3e-5

_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def from_rgb(image: Tensor) -> Tensor:
    """A (1, 3, H, W) sRGB image in 0-255, clipped to it, as L (0 to 1), a and b (about -0.4 to 0.4)."""
    encoded = image.clamp(0.0, 255.0) / 255.0
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return _mixed(_matrix(_TO_LAB, image), _mixed(_matrix(_TO_CONES, image), linear).clamp(min=0.0) ** (1 / 3))


def to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `from_rgb`.

    A colour that sRGB does not have keeps its lightness and hue, and as much of its chroma as fits.
    """
    linear = _linear(lab.new_ones(()), lab)
    if not _fits(linear).all():
        linear = torch.where(_fits(linear), linear, _linear(_fitting_share(lab), lab))
    linear = linear.clamp(0.0, 1.0)
    return 255.0 * torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _fitting_share(lab: Tensor) -> Tensor:
    """The share of its chroma, (1, 1, H, W), with which a colour just fits, by bisection: greys always do."""
    share = torch.zeros_like(lab[:, :1])
    for halving in range(1, BISECTIONS + 1):
        more = share + 0.5**halving
        share = torch.where(_fits(_linear(more, lab)), more, share)
    return share


def _linear(share: Tensor, lab: Tensor) -> Tensor:
    """Linear sRGB of the colours with this share of their chroma."""
    cones = _mixed(torch.linalg.inv(_matrix(_TO_LAB, lab)), torch.cat((lab[:, :1], share * lab[:, 1:]), 1)) ** 3
    return _mixed(torch.linalg.inv(_matrix(_TO_CONES, lab)), cones)


def _fits(linear: Tensor) -> Tensor:
    """Whether a colour is in sRGB, rounding aside, as (1, 1, H, W)."""
    return ((linear > -ROUNDING) & (linear < 1 + ROUNDING)).all(1, keepdim=True)


def _matrix(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _mixed(matrix: Tensor, image: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix, image)
