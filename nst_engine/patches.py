"""Filling a hole with the patches of what is around it: where structure goes on, and what it is made of."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_engine import pictures
from nst_engine.masks import area_resized

# Side of a patch in pixels, and the long sides of the coarsest and of the finest level that patches
# are sought at: the search costs by the square of the area.
PATCH = 7
COARSEST, FINEST = 64, 256
# Rounds of search and vote at each level.
ROUNDS = 2
# The share of a patch that must be known for it to be matched while the hole is closed.
SUPPORT = 0.5
# How far, in long sides, the surroundings of a patch that was used are taken for sources too: those
# used in a rough texture are the smoothest ones.
SPREAD = 0.06
# Entries in one block of the table of distances.
BLOCK = 2**24


def fill_from_patches(image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """The picture with its hole filled by patches from outside it, and where these come from.

    At the coarsest level with room for a patch outside it, the hole is closed from its edge inwards, by
    the patches that best go on from what is known. From there on, coarse to fine and in turns, each
    patch that meets the hole seeks the nearest of those that do not, and each pixel in the hole becomes
    the mean of what the patches over it have found (Wexler, Shechtman and Irani, "Space-time completion
    of video", PAMI 29, 2007, without its weights). Such means keep structure and lose roughness.

    Args:
        image: (1, 3, H, W), 0-255, with smooth colours in the hole.
        hole: (1, 1, H, W), above 0 in it and 0 somewhere.

    Returns:
        The picture, and (1, 1, H, W) how much each pixel is a source, at least 0, 0 in the hole. A
        picture without such a level is returned as it is, with all that is outside for its source.
    """
    size = image.shape[2], image.shape[3]
    known = (hole == 0).to(image.dtype)
    found: tuple[Tensor, Tensor] | None = None
    for level in _levels(*size):
        given = pictures.resize(image, level)
        gap = area_resized(hole, given.shape[2:]) > 0
        start = _closed(given, gap) if found is None else torch.where(gap, pictures.resize(found[0], level), given)
        # A thin hole that covers every patch of a coarse level leaves room at a finer one.
        found = _vote(start, gap) or found
    if found is None:
        return image, known
    filled, sources = found
    filled = torch.where(hole > 0, pictures.resize(filled, size), image)
    return filled, area_resized(_spread(sources), size) * known


def _levels(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes to work at, coarsest first; none for a picture in which patches have no room."""
    long, levels = min(FINEST, max(height, width)), []
    while long >= COARSEST and round(min(height, width) * long / max(height, width)) >= 2 * PATCH:
        levels.append(pictures.fitted_size(height, width, long, 1))
        long //= 2
    return levels[::-1]


def _closed(image: Tensor, gap: Tensor) -> Tensor:
    """The picture with the gap closed ring by ring; as it is where every patch meets the gap."""
    size = image.shape[2:]
    sources = F.unfold(image, PATCH)[0].T[F.unfold(gap.to(image.dtype), PATCH)[0].amax(0) == 0]
    while gap.any() and len(sources):
        known = F.unfold(1 - gap.to(image.dtype), PATCH)[0]
        share = torch.where(known.amin(0) > 0, 0.0, known.mean(0))
        front = share >= min(SUPPORT, float(share.max()))
        weights = known.T[front].repeat(1, 3)
        patches = F.unfold(image, PATCH)[0]
        nearest = _nearest(patches.T[front], sources, weights)
        patches = torch.zeros_like(patches)
        patches[:, front] = sources[nearest].T
        votes = _folded(front.to(image.dtype), size)
        reached = gap & (votes > 0)
        image = torch.where(reached, F.fold(patches[None], size, PATCH) / votes.clamp(min=1), image)
        gap = gap & ~reached
    return image


def _vote(image: Tensor, gap: Tensor) -> tuple[Tensor, Tensor] | None:
    """The picture after its rounds, and how often each pixel was used; None where every patch meets the gap."""
    size = image.shape[2:]
    meets = F.unfold(gap.to(image.dtype), PATCH)[0].amax(0) > 0
    sources = F.unfold(image, PATCH)[0].T[~meets]
    if not len(sources):
        return None
    votes = _folded(meets.to(image.dtype), size).clamp(min=1)
    nearest = meets.new_zeros(0, dtype=torch.long)
    everything = sources.new_ones(1, sources.shape[1])
    for _ in range(ROUNDS):
        patches = F.unfold(image, PATCH)[0]
        nearest = _nearest(patches.T[meets], sources, everything)
        patches = torch.zeros_like(patches)
        patches[:, meets] = sources[nearest].T
        image = torch.where(gap, F.fold(patches[None], size, PATCH) / votes, image)
    uses = torch.zeros_like(meets, dtype=image.dtype)
    uses[~meets] = torch.bincount(nearest, minlength=len(sources)).to(image.dtype)
    return image, _folded(uses, size)


def _nearest(patches: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """For each row of (M, D) the index of the nearest row of (N, D), its entries counting by (M, D) or (1, D)."""
    squares = sources.square().T
    rows = max(1, BLOCK // len(sources))
    found = []
    for start in range(0, len(patches), rows):
        block = slice(start, start + rows)
        counts = weights[block] if len(weights) > 1 else weights
        distances = torch.addmm(counts @ squares, counts * patches[block], sources.T, alpha=-2)
        found.append(distances.argmin(1))
    return torch.cat(found)


def _folded(values: Tensor, size: torch.Size) -> Tensor:
    """(1, 1, H, W): each pixel has the sum of the values, one per patch, of the patches over it."""
    return F.fold(values.expand(1, PATCH**2, -1).contiguous(), size, PATCH)


def _spread(sources: Tensor) -> Tensor:
    """Means over squares."""
    reach = max(1, round(SPREAD * max(sources.shape[2:])))
    return F.avg_pool2d(sources, 2 * reach + 1, stride=1, padding=reach)
