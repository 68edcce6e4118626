"""Losses and gradients at pictures: of one objective, or of several by one pass through the network and back."""

import math
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nst_engine import losses
from nst_engine.recording import RECORDED_PIXELS
from nst_engine.style_loss import StackedStyleLoss

if TYPE_CHECKING:
    from nst_engine.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """The weighted losses and their sum at one image, and its gradient.

    The losses are "content", "style", "tv", "box" and, where a subject is protected, "detail".
    `finite` tells whether the total and the squared norm of the gradient are numbers in float32: what
    an optimiser needs.
    """

    losses: dict[str, float]
    total: float
    gradient: Tensor
    finite: bool


def evaluated(objectives: Sequence["Objective"], images: Sequence[Tensor]) -> list[Evaluation]:
    """Each objective at an image of its own, (1, 3, H, W), all seen in windows of one size and by one network."""
    # In this order whoever comes first, as another one would be another recording.
    places = sorted(range(len(objectives)), key=lambda place: objectives[place].revision)
    objectives = [objectives[place] for place in places]
    numbers, *gradients = _computed(objectives, [images[place].detach() for place in places])
    left = iter(numbers.tolist())  # in one transfer, as each waits for the device
    found = {
        place: _evaluation(objective.loss_names, left, gradient)
        for place, objective, gradient in zip(places, objectives, gradients, strict=True)
    }
    return [found[place] for place in range(len(found))]


def _computed(objectives: Sequence["Objective"], images: Sequence[Tensor]) -> Sequence[Tensor]:
    """What `Together` returns, where it pays by a recording."""
    pixels = sum(objective.window.pixels for objective in objectives)
    recordings = objectives[0].recordings
    recordable = recordings.pool.records and pixels <= RECORDED_PIXELS
    if recordable and all(objective.waits_for_nothing for objective in objectives):
        return recordings.call(objectives, partial(Together, objectives, stacked=True), images)
    return Together(objectives, stacked=False)(*images)


def _evaluation(names: Sequence[str], numbers: Iterator[float], gradient: Tensor) -> Evaluation:
    """The next losses, total and squared norm of the gradient, as what they are."""
    values = dict(zip(names, islice(numbers, len(names)), strict=True))
    total, slope = next(numbers), next(numbers)
    return Evaluation(values, total, gradient, math.isfinite(total + slope))


class Together:
    """What `evaluated` computes, as a function of the images that waits for nothing. It keeps no objective alive."""

    def __init__(self, objectives: Sequence["Objective"], *, stacked: bool) -> None:
        """Unless those that can be are stacked, each is computed as if alone, to the bit, and no targets are copied."""
        self._objectives = [weakref.ref(objective) for objective in objectives]
        groups = stackable(objectives) if stacked else []
        self._stacks = [Stack(objectives, places) for places in groups]
        self._seen_as = objectives[0].seen_as

    @property
    def shape(self) -> Hashable | None:
        """See `recording.Owned`. What is not stacked depends on more than tensors."""
        stacked = sum(len(stack.places) for stack in self._stacks)
        if len(self._stacks) > 1 or stacked < len(self._objectives):
            return None
        return self._seen_as, self._stacks[0].shape

    def take_over(self, other: "Together") -> None:
        """See `recording.Owned`."""
        (own,), (taken,) = self._stacks, other._stacks
        torch._foreach_copy_(taken.tensors, own.tensors)
        self._stacks = other._stacks

    def __call__(self, *images: Tensor) -> list[Tensor]:
        """The losses, the total and the gradient's squared norm of each in one row, and then the gradients."""
        leaves = [image.detach().requires_grad_(True) for image in images]
        terms = self._terms(leaves)
        totals = [each.sum() for each in terms]
        gradients = torch.autograd.grad(totals, leaves)
        rows = [
            torch.cat((each, torch.stack((total, losses.square_sum(gradient)))))
            for each, total, gradient in zip(terms, totals, gradients, strict=True)
        ]
        return [torch.cat(rows).detach(), *gradients]

    def _terms(self, images: Sequence[Tensor]) -> list[Tensor]:
        """By objective its weighted losses, in the order of their names."""
        objectives = [_alive(reference()) for reference in self._objectives]
        seen = [objective.seen(image) for objective, image in zip(objectives, images, strict=True)]
        joined = seen[0] if len(seen) == 1 else torch.cat(seen)
        maps = objectives[0].features(joined)
        found: dict[int, Tensor] = {}
        for stack in self._stacks:
            found |= zip(stack.places, stack(joined, maps).unbind(1), strict=True)
        # Split, and not indexed: the gradients of all parts then are gathered at once. One alone need not be copied.
        parts = {tap: torch.split(features, 1) if len(images) > 1 else (features,) for tap, features in maps.items()}
        for place, image in enumerate(images):
            if place not in found:
                own = {tap: split[place] for tap, split in parts.items()}
                found[place] = torch.stack(tuple(objectives[place].terms(image, own).values()))
        return [found[place] for place in range(len(images))]


class Stack:
    """Objectives of one `Objective.stack_key`, all of whose losses are computed at once.

    Where it takes as long to launch an operation as to carry it out, as on a GPU with small pictures, this is what
    makes a batch faster than its sessions one by one. The rounding is another than that of each alone.
    """

    def __init__(self, objectives: Sequence["Objective"], places: Sequence[int]) -> None:
        """Of those in these places of `objectives`."""
        self.places = places
        members = [objectives[place] for place in places]
        self._weights = torch.stack([member.loss_weights for member in members], 1)
        # There already: what is recorded cannot wait for indices from the CPU.
        self._own = None if len(members) == len(objectives) else torch.tensor(places, device=self._weights.device)
        self._style = StackedStyleLoss([member.style_loss for member in members])
        self._targets = {
            tap: torch.cat([member.content_targets[tap] for member in members]) for tap in members[0].content_weights
        }
        self._shares = {
            tap: self._weights.new_tensor([member.content_weights[tap] for member in members]) for tap in self._targets
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All that the losses depend on besides the images, in an order that is that of every stack of its shape."""
        return [self._weights, *self._targets.values(), *self._shares.values(), *self._style.tensors]

    @property
    def shape(self) -> Hashable:
        """What stacks have in common that differ in nothing but what is in their tensors."""
        sizes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors)
        return len(self.places), tuple(self._targets), self._style.kind, sizes

    def __call__(self, images: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """The weighted losses, (4, N), of the members' own of these images and their maps."""
        if self._own is not None:
            images = images.index_select(0, self._own)
            maps = {tap: features.index_select(0, self._own) for tap, features in maps.items()}
        content = torch.zeros_like(self._weights[0])
        for tap, target in self._targets.items():
            error = torch.vmap(losses.mean_squared_error)(maps[tap], target)
            content = content + self._shares[tap] * error
        singles = images[:, None]
        tv, box = (torch.vmap(loss)(singles) for loss in (losses.total_variation, losses.box_penalty))
        return torch.stack((content, self._style(maps), tv, box)) * self._weights


def stackable(objectives: Sequence["Objective"]) -> list[list[int]]:
    """The places of those that go into one `Stack`, by stacks."""
    groups: dict[Hashable, list[int]] = {}
    for place, objective in enumerate(objectives):
        groups.setdefault(objective.stack_key, []).append(place)
    groups.pop(None, None)
    return list(groups.values())


def _alive(objective: "Objective | None") -> "Objective":
    assert objective is not None
    return objective
