"""What of a feature map counts as its style, and how far two of these are apart.

Every statistic describes how feature vectors are distributed, without regard to where in the map
they are. Several styles are pooled: what is aimed at is the statistic of the positions of all styles
together, where each style counts by its share and not by its size.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from nst_engine import losses
from nst_engine.options import StylizeOptions
from nst_engine.wasserstein import MeanCovariance, Sliced

Measured = TypeVar("Measured", bound=tuple[Tensor | None, ...])
Target = TypeVar("Target", bound=tuple[Tensor, ...])


class Statistic(Protocol[Measured, Target]):
    """One choice of `StylizeOptions.style_statistic`.

    Styles are measured once and kept, so that they can be blended anew when their shares are
    steered; the image is measured in every iteration. All of it is float32.

    Attributes:
        additive: whether what is measured of a whole is the mean of what is measured of its parts,
            weighted by their sizes, so that a picture may be measured in parts.
        picks_positions: whether those of weight 0 are left out, so that shapes depend on weights.
    """

    additive: bool
    picks_positions: bool

    def measure(self, features: Tensor, weights: Tensor | None = None) -> Measured:
        """The statistic of one map, differentiable in the map.

        Args:
            features: (1, C, H, W) in any floating dtype.
            weights: (H * W,), at least 0 and with a mean of 1 over the picture, of which the map may be a
                part: how much each position counts. None is 1 for all.
        """
        ...

    def blend(self, measured: Sequence[Measured], shares: Sequence[float]) -> Target:
        """What several styles aim at together; `shares` are at least 0 and sum to 1."""
        ...

    def distance(self, measured: Measured, target: Target) -> Tensor:
        """A scalar, 0 where the two agree."""
        ...


@runtime_checkable
class Stackable(Protocol):
    """A statistic whose distances of several maps are one operation each, whatever their number."""

    def stack(self, targets: Sequence[Any]) -> Any:
        """Targets of N maps of one tap, for `distances`."""

    def distances(self, maps: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        """By taps the distance of each map of (N, C, H, W) to the target of its own, (taps, N).

        Raises:
            torch.linalg.LinAlgError: features have overflowed in one of them or more, on a CPU.
        """


class GramMatrix(NamedTuple):
    """The uncentred second moment of the features, over the channels: (C, C)."""

    matrix: Tensor


class Gram:
    """Mean squared error between Gram matrices F F^T / (C H W) (Gatys, Ecker and Bethge, arXiv 1508.06576).

    The Gram matrix is linear in the positions: that of a whole is the size-weighted mean of those of
    its parts, and the share-weighted mean of those of several styles is that of their pool. The
    share-weighted sum of the losses to each style has the same gradient and differs by a constant.
    """

    additive = True
    picks_positions = False

    def measure(self, features: Tensor, weights: Tensor | None = None) -> GramMatrix:
        return GramMatrix(losses.gram_matrix(features, weights))

    def blend(self, measured: Sequence[GramMatrix], shares: Sequence[float]) -> GramMatrix:
        parts = [one.matrix * share for one, share in zip(measured, shares, strict=True)]
        return GramMatrix(torch.stack(parts).sum(0))

    def distance(self, measured: GramMatrix, target: GramMatrix) -> Tensor:
        return losses.mean_squared_error(measured.matrix, target.matrix)

    def stack(self, targets: Sequence[GramMatrix]) -> GramMatrix:
        """See `Stackable`."""
        return GramMatrix(torch.stack([target.matrix for target in targets]))

    def distances(self, maps: Sequence[Tensor], targets: Sequence[GramMatrix]) -> Tensor:
        """See `Stackable`."""
        error = torch.vmap(losses.mean_squared_error)
        pairs = zip(maps, targets, strict=True)
        return torch.stack([error(losses.gram_matrices(features), target.matrix) for features, target in pairs])


def make_statistic(options: StylizeOptions) -> Statistic[Any, Any]:
    """The statistic that `options.style_statistic` asks for."""
    if options.chosen_statistic == "moments":
        return MeanCovariance()
    if options.chosen_statistic == "sliced":
        return Sliced(options.seed)
    return Gram()


def statistic_key(options: StylizeOptions) -> Hashable:
    """What two options must have in common for `make_statistic` to give them the same."""
    chosen = options.chosen_statistic
    return chosen, options.seed if chosen == "sliced" else None
