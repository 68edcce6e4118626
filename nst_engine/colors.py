"""Colours of a picture as a whole, and giving those of one picture to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nst_engine import oklab

# Standard deviations below one grey level are rounding noise, which recolouring must not blow up.
MINIMUM_VARIANCE = 1.0
STRIP_ROWS = 256


@dataclass(frozen=True)
class Moments:
    """Mean (3,) and covariance (3, 3) of the RGB pixels of a picture in 0-255, as float64."""

    mean: Tensor
    covariance: Tensor


def moments(image: Tensor, weights: Tensor | None = None) -> Moments:
    """The moments of a (1, 3, H, W) image; `weights` as of `masks.position_weights`."""
    pixels = image[0].flatten(1).double()
    mean = (pixels if weights is None else pixels * weights).mean(1)
    deviations = pixels - mean[:, None]
    weighted = deviations if weights is None else deviations * weights
    return Moments(mean, weighted @ deviations.T / pixels.shape[1])


def pooled_moments(each: Sequence[Moments], shares: Sequence[float]) -> Moments:
    """The moments of the pixels of several images together, each image counting by its share.

    This is what blending Gram matrices, which are second moments too, does for features.
    """
    total = sum(shares)
    parts = [share / total for share in shares]
    mean = torch.stack([part * one.mean for part, one in zip(parts, each, strict=True)]).sum(0)
    covariance = [
        part * (one.covariance + torch.outer(one.mean - mean, one.mean - mean))
        for part, one in zip(parts, each, strict=True)
    ]
    return Moments(mean, torch.stack(covariance).sum(0))


def recolored(image: Tensor, target: Moments, weights: Tensor | None = None) -> Tensor:
    """The (1, 3, H, W) image with its colours, as `weights` count them, moved linearly to these moments.

    The result is clipped to 0-255.

    Of the linear maps that do so, this symmetric one moves pixels the least: the optimal transport
    between normal distributions (Pitié and Kokaram, "The linear Monge-Kantorovitch linear colour
    mapping", CVMP 2007).
    """
    source = moments(image, weights)
    root, inverse = _roots(source.covariance)
    middle, _ = _roots(root @ target.covariance @ root, floor=0.0)
    linear = inverse @ middle @ inverse
    pixels = image[0].flatten(1).double()
    moved = linear @ (pixels - source.mean[:, None]) + target.mean[:, None]
    return moved.clamp(0.0, 255.0).to(image.dtype).view_as(image)


def with_chroma_of(content: Tensor, image: Tensor) -> Tensor:
    """The (1, 3, H, W) image's lightness with the hue and chroma of the content, of the same shape, in Oklab.

    Where there is no such colour in sRGB, chroma gives way. Done in strips, as the steps of a whole picture of 4096 px
    would take 1.4 GB.
    """
    strips = []
    for own, other in zip(*(torch.split(picture, STRIP_ROWS, 2) for picture in (image, content)), strict=True):
        lightness, chroma = oklab.from_rgb(own)[:, :1], oklab.from_rgb(other)[:, 1:]
        strips.append(oklab.to_rgb(torch.cat((lightness, chroma), 1)))
    return torch.cat(strips, 2)


def _roots(covariance: Tensor, floor: float = MINIMUM_VARIANCE) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance whose variances are at least `floor`, and its inverse."""
    variances, directions = torch.linalg.eigh(covariance)
    deviations = variances.clamp(min=floor).sqrt()
    return directions * deviations @ directions.T, directions / deviations @ directions.T
