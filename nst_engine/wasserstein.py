"""Style as a distribution of feature vectors, compared by squared Wasserstein-2 distances.

Both distances are divided by the mean squared norm of the target's vectors. That makes them free of
units, about 1 for a map of zeros and far below 1 for a good match, at every layer: one set of layer weights
serves them all.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst_engine import losses, products
from nst_engine.matrix_root import traces_of_roots

# As a share of the largest variance of the target in any direction. White noise of this variance is
# thought added to both sides, without which the gradient would have no bound in directions where the
# image does not vary; directions in which the target varies less are taken for constant. With a larger share
# contrasts grow dull; with a smaller one pictures look the same and more eigenvalues are needed.
NOISE_SHARE = 1e-2
# Projections that are looked at together where no gradient is needed: orders and levels take up to twenty times their
# bytes on the way, which those of all directions at once would take of a large map.
BLOCK = 2**19
# Mean squared norm of feature vectors below which a layer of the style is dead. It only keeps
# quotients finite.
SMALLEST_POWER = 1e-6


class Moments(NamedTuple):
    """The mean (C,) of feature vectors x and the mean (C, C) of x x^T.

    Both are means over positions: those of a whole are the size-weighted means of those of its parts.
    """

    mean: Tensor
    second: Tensor


class GaussianTarget(NamedTuple):
    """A normal distribution in C channels that varies in k directions.

    Attributes:
        mean: (C,).
        directions: (C, k), orthonormal.
        variances: (k,), along them, noise included.
        noise: scalar, the variance of the noise.
        power: scalar, the mean squared norm of the vectors.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    noise: Tensor
    power: Tensor


class MeanCovariance:
    """The squared Wasserstein-2 distance between normal distributions with the maps' means and covariances.

    |m - n|^2 + tr C + tr S - 2 tr (S^1/2 C S^1/2)^1/2 (Dowson and Landau, "The Fréchet distance
    between multivariate normal distributions", 1982, equation 4). In the eigenvectors of the
    target's covariance S, found once, its root is a diagonal, and nothing but the block of C in the k
    directions in which S varies meets it. What is left for every iteration is the eigenvalues of one
    k x k matrix, whose derivative is cheap and stable; k is 57 to 193 of 512 for relu4_1 at 512 px,
    and at most the number of positions that the style has.

    Several styles are pooled by averaging both moments by share, so the target is again one normal
    distribution. Its covariance holds what the means of the styles differ by.
    """

    additive = True
    picks_positions = False

    def measure(self, features: Tensor, weights: Tensor | None = None) -> Moments:
        rows = losses.rows_of(features)
        if weights is None:
            return Moments(*_Moments.apply(rows, None))  # type: ignore[no-untyped-call]
        roots, scale = losses.roots_of(weights, rows.dtype)
        mean, second = _Moments.apply(rows * roots[:, None], roots)  # type: ignore[no-untyped-call]
        return Moments(mean * scale, second * scale)

    def blend(self, measured: Sequence[Moments], shares: Sequence[float]) -> GaussianTarget:
        mean = torch.stack([one.mean * share for one, share in zip(measured, shares, strict=True)]).sum(0)
        second = torch.stack([one.second * share for one, share in zip(measured, shares, strict=True)]).sum(0)
        variances, directions = torch.linalg.eigh((second - torch.outer(mean, mean)).double())
        noise = NOISE_SHARE * variances[-1].clamp(min=0.0)
        kept = variances > noise
        return GaussianTarget(
            mean,
            directions[:, kept].float(),
            (variances[kept] + noise).float(),
            noise.float(),
            second.trace().clamp(min=SMALLEST_POWER),
        )

    def distance(self, measured: Moments, target: GaussianTarget) -> Tensor:
        try:
            return _distances([measured], [target])[0]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # The features have overflowed: a proposal to be dropped.
            return (measured.mean.sum() + measured.second.sum()) * math.inf

    def stack(self, targets: Sequence[GaussianTarget]) -> GaussianTarget:
        """See `statistics.Stackable`.

        There are as many directions as for the target that has the most, and then up to a power of two: so the
        targets of many styles have one shape, and share recordings. A direction of zeros in which nothing but
        the noise varies changes no distance: what it adds to the variances of both sides is what its
        root takes off.
        """
        most = 1 << (max(len(target.variances) for target in targets) - 1).bit_length()
        noises = torch.stack([target.noise for target in targets])
        variances = noises[:, None].repeat(1, most)
        directions = noises.new_zeros(len(targets), len(targets[0].mean), most)
        for index, target in enumerate(targets):
            variances[index, : len(target.variances)] = target.variances
            directions[index, :, : len(target.variances)] = target.directions
        means, powers = (torch.stack([getattr(target, name) for target in targets]) for name in ("mean", "power"))
        return GaussianTarget(means, directions, variances, noises, powers)

    def distances(self, maps: Sequence[Tensor], targets: Sequence[GaussianTarget]) -> Tensor:
        """See `statistics.Stackable`."""
        rows = [losses.rows_of_each(features) for features in maps]
        measured = [Moments(*_Moments.apply(one, None)) for one in rows]  # type: ignore[no-untyped-call]
        return torch.stack(_distances(measured, targets))


def _distances(measured: Sequence[Moments], targets: Sequence[GaussianTarget]) -> list[Tensor]:
    """Each of one, or of several along the first dimension of all that is given.

    Added up in float64, as its terms cancel: what they differ by may be a hundredth of them.
    """
    covariances = [one.second - one.mean[..., :, None] * one.mean[..., None, :] for one in measured]
    blocks = [_in_directions(*pair) for pair in zip(covariances, targets, strict=True)]
    roots = traces_of_roots(blocks, [target.noise**2 for target in targets])
    return [_distance(*parts) for parts in zip(measured, covariances, roots, targets, strict=True)]


def _in_directions(covariance: Tensor, target: GaussianTarget) -> Tensor:
    """S^1/2 C S^1/2 in the eigenvectors of S in which it varies, with the noise of both."""
    deviations = target.variances.sqrt()
    noise = torch.diag_embed(target.noise[..., None].expand_as(deviations))
    block = target.directions.mT @ covariance @ target.directions + noise
    return deviations[..., :, None] * block * deviations[..., None, :]


def _distance(measured: Moments, covariance: Tensor, root: Tensor, target: GaussianTarget) -> Tensor:
    own = covariance.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    noises = target.noise.double() * target.variances.shape[-1]
    between_means = (measured.mean - target.mean).square().sum(-1)
    distance: Tensor = between_means + own + noises + target.variances.double().sum(-1) - 2 * root
    return (distance / target.power).float()


class _Moments(torch.autograd.Function):
    """Mean of w^1/2 x and of x x^T over the rows x of (..., N, C), in float32; the backward is one operation.

    `roots` are w^1/2, (N,), for rows (N, C), or None for 1: the weights are in the rows already, once under a root.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, roots: Tensor | None) -> tuple[Tensor, Tensor]:
        context.save_for_backward(rows, roots)
        total = products.sum_of_rows(rows) if roots is None else products.sum_of_rows(rows * roots[:, None])
        return total / rows.shape[-2], products.sum_of_outer_products(rows) / rows.shape[-2]

    @staticmethod
    @once_differentiable
    def backward(context: Any, mean: Tensor, second: Tensor) -> tuple[Tensor, None]:
        rows, roots = context.saved_tensors
        pull, shift = (second + second.mT) / rows.shape[-2], mean / rows.shape[-2]
        if roots is None:
            return products.mapped(rows, pull, shift), None
        shift = torch.outer(roots, shift)
        return torch.addmm(shift.to(rows.dtype), rows, pull.to(rows.dtype)), None


class Samples(NamedTuple):
    """Feature vectors seen from each of D directions, (D, N), and the share (N,) of the whole that each is."""

    projections: Tensor
    masses: Tensor


class QuantileTarget(NamedTuple):
    """The quantiles (D, K) at (k + 1/2) / K of projections on D directions, and their mean square, a scalar."""

    quantiles: Tensor
    power: Tensor


class Sliced:
    """The squared sliced Wasserstein-2 distance: the mean over directions of that between projections.

    Heitz, Vanhoey, Chambon and Belcour, "A sliced Wasserstein loss for neural texture synthesis"
    (arXiv 2006.07229): in one dimension it is the mean squared difference of sorted values. They
    draw new directions for every iteration; here there are as many as channels too, a random
    orthonormal basis, but it follows from `seed` alone and stays for the whole run. So the loss is a
    function of the image: the curvature that L-BFGS has seen stays true, the losses of different
    iterations compare, and a resumed run has nothing to remember.

    Several styles are pooled: the quantiles are those of all their positions together.
    """

    additive = False
    picks_positions = True

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bases: dict[int, Tensor] = {}

    def measure(self, features: Tensor, weights: Tensor | None = None) -> Samples:
        rows = losses.rows_of(features).float()
        if weights is None:
            weights = rows.new_ones(len(rows))
        else:
            rows, weights = rows[weights > 0], weights[weights > 0]
        return Samples(self._basis(rows.shape[1], rows.device) @ rows.T, weights / weights.sum())

    def blend(self, measured: Sequence[Samples], shares: Sequence[float]) -> QuantileTarget:
        pairs = [(one, share) for one, share in zip(measured, shares, strict=True) if share > 0]
        masses = torch.cat([one.masses * share for one, share in pairs])
        count = max(one.projections.shape[1] for one, _ in pairs)
        quantiles = []
        for rows in _blocks(len(pairs[0][0].projections), len(masses)):
            values, order = torch.cat([one.projections[rows] for one, _ in pairs], 1).sort(1)
            quantiles.append(_evenly_spaced(_levels(masses, order), values, count))
        joined = torch.cat(quantiles)
        return QuantileTarget(joined, joined.square().mean().clamp(min=SMALLEST_POWER))

    def distance(self, measured: Samples, target: QuantileTarget) -> Tensor:
        values, order = measured.projections.sort(1)
        with torch.no_grad():
            blocks = _blocks(*order.shape)
            wanted = torch.cat(
                [_quantiles_at(_levels(measured.masses, order[rows]), target.quantiles[rows]) for rows in blocks]
            )
        squares = (values - wanted).square() * measured.masses[order]
        return squares.sum(1).mean() / target.power

    def _basis(self, channels: int, device: torch.device) -> Tensor:
        """(channels, channels), orthonormal, evenly distributed over all rotations."""
        if channels not in self._bases:
            generator = torch.Generator().manual_seed(self._seed)
            basis, upper = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))
            self._bases[channels] = (basis * upper.diagonal().sign()).T.float().to(device)
        return self._bases[channels]


def _blocks(directions: int, positions: int) -> list[slice]:
    """The directions, some at a time: as many as have about `BLOCK` projections of so many positions, or one."""
    step = max(1, BLOCK // positions)
    return [slice(first, first + step) for first in range(0, directions, step)]


def _levels(masses: Tensor, order: Tensor) -> Tensor:
    """The middle of each value's part of the cumulative distribution, (D, N) float64, when sorted by `order`."""
    sorted_masses = masses.double()[order]
    return sorted_masses.cumsum(1) - sorted_masses / 2


def _evenly_spaced(levels: Tensor, values: Tensor, count: int) -> Tensor:
    """The values (D, N) of a quantile function known at `levels` (D, N), at (k + 1/2) / count: (D, count).

    It is linear between the levels, and constant outside them.
    """
    wanted = (torch.arange(count, dtype=levels.dtype, device=levels.device) + 0.5) / count
    right = torch.searchsorted(levels, wanted.expand(len(levels), -1).contiguous()).clamp(max=levels.shape[1] - 1)
    left = (right - 1).clamp(min=0)
    start = levels.gather(1, left)
    part = (wanted - start) / (levels.gather(1, right) - start).clamp(min=torch.finfo(levels.dtype).tiny)
    return torch.lerp(values.gather(1, left), values.gather(1, right), part.clamp(0.0, 1.0).float())


def _quantiles_at(levels: Tensor, quantiles: Tensor) -> Tensor:
    """The quantile function (D, K), linear between its points, at `levels` (D, N)."""
    count = quantiles.shape[1]
    position = (levels * count - 0.5).clamp(0.0, count - 1.0)
    left = position.long()
    right = (left + 1).clamp(max=count - 1)
    return torch.lerp(quantiles.gather(1, left), quantiles.gather(1, right), (position - left).float())
