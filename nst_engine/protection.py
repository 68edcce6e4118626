"""Keeping a subject recognisable: more content weight where it is, and its fine structure."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from nst_engine import losses
from nst_engine.masks import area_resized

# At full protection, by eye. The content weight on the subject, in multiples of that elsewhere:
# much more brings the photograph's colours back, and the mask shows.
CONTENT_GAIN = 2.0
# The gradient of the detail loss on the subject, in multiples of the content loss's elsewhere, both
# at the content under noise: at ten no paint is left.
DETAIL_LEVEL = 2.0
# Sides in pixels of the cells over which pictures are averaged before their Laplacians are compared.
CELLS = (2, 4, 8)


def subject_mask(content: Tensor, given: Tensor | None, heads: Tensor | None) -> Tensor | None:
    """Where the subject is, (1, 1, H, W), 0-1: the mask given together with the faces; None where there is neither.

    Args:
        content: (1, 3, H, W), 0-255.
        given, heads: (1, 1, h, w), 0-1, each stretched to the content's shape.
    """
    masks = [area_resized(mask, content.shape[2:]) for mask in (given, heads) if mask is not None]
    return reduce(torch.maximum, masks) if masks else None


class Protection:
    """What holds a subject together in one picture at one size.

    Args:
        content: (1, 3, H, W), 0-255.
        subject: (1, 1, H, W), 0-1: how much a pixel belongs to it.
        amount: 0 (like the rest) to 1.
    """

    def __init__(self, content: Tensor, subject: Tensor, amount: float) -> None:
        self._subject = subject
        self._amount = amount
        self._details = {cell: losses.laplacian(content, cell) for cell in CELLS}
        self._detail_weights = {
            cell: area_resized(subject, details.shape[2:]) for cell, details in self._details.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self._subject, *self._details.values(), *self._detail_weights.values()))

    @property
    def detail_level(self) -> float:
        """The gradient that the detail loss is to have on the subject, in multiples of the content loss's elsewhere."""
        return self._amount * DETAIL_LEVEL

    def content_weights(self, size: Sequence[int]) -> Tensor:
        """The content weight at each position of a map of `size`, (h, w), as (1, 1, h, w): 1 off the subject."""
        return 1 + self._amount * (CONTENT_GAIN - 1) * area_resized(self._subject, size)

    def detail_loss(self, image: Tensor) -> Tensor:
        """Mean squared difference of the Laplacians of the image and the content, on the subject, over every cell size.

        Li et al. (arXiv 1707.01253), weighted by position.
        """
        loss = image.new_zeros(())
        for cell, target in self._details.items():
            details = losses.laplacian(image, cell)
            loss = loss + losses.mean_squared_error(details, target, self._detail_weights[cell])
        return loss
