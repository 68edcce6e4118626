"""The objective of a picture whose maps do not fit into memory at once, tile by tile."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from nst_engine import hardware, losses, mosaic
from nst_engine.backbone import Backbone
from nst_engine.distributed import Processes
from nst_engine.evaluation import Evaluation
from nst_engine.mosaic import computed, owned, owned_within, positions, share_of
from nst_engine.objective import Objective
from nst_engine.options import BudgetError, OptionError, StylizeOptions
from nst_engine.schedule import named_taps
from nst_engine.statistics import make_statistic
from nst_engine.tiling import MIB, Tile

# The gradient of a scalar in each of the tensors that a statistic measures at a tap.
Slopes = tuple[Tensor, ...]
# Height and width of a picture in pixels.
Size = tuple[int, int]
# The computed part of an image, and its maps by tap, from which there is a way back to it.
Forward = tuple[Tensor, dict[str, Tensor]]


class Pull(NamedTuple):
    """How the style loss of a region pulls: the gradient in what is measured, by tap, and where it is measured."""

    slopes: Mapping[str, Slopes]
    weights: mosaic.Weights


def in_tiles(backbone: Backbone, size: Size, options: StylizeOptions, memory_budget: int) -> bool:
    """Whether a picture is worked on tile by tile: its maps exceed the budget in bytes, or processes share it.

    Raises:
        BudgetError: not even the smallest tile fits.
    """
    tiles = backbone.tiles(*size, named_taps(options), options.pooling, memory_budget)
    return len(tiles) > 1 or backbone.processes.size > 1


def check_memory(
    backbone: Backbone,
    content: Size,
    styles: Sequence[Size],
    options: StylizeOptions,
    memory_budget: int,
) -> None:
    """Makes sure that pictures of these sizes can be worked on, if need be in tiles.

    Raises:
        BudgetError: not even the smallest tile fits; or a picture needs tiles, and the style statistic is no mean over
            positions.
        OptionError: likewise, and processes share the picture.
    """
    for size in (content, *styles):
        if in_tiles(backbone, size, options, memory_budget) and not make_statistic(options).additive:
            raise too_large_as_a_whole(backbone, size, memory_budget)


def too_large_as_a_whole(backbone: Backbone, size: Size, memory_budget: int) -> OptionError:
    """That a picture cannot be worked on as the style statistic needs it, and why."""
    processes, (height, width) = backbone.processes.size, size
    if processes > 1:
        kind, cause, cure = OptionError, f"{processes} processes share it", "choose another, or use one process"
    else:
        kind = BudgetError
        cause = f"those of {width}x{height} do not fit into the memory budget of {memory_budget / MIB:.0f} MiB"
        cure = "choose another, set a smaller size, or raise the engine's memory_budget"
    return kind("style_statistic", f"needs the maps of a picture as a whole, and {cause}: {cure}")


class TiledObjective(Objective):
    """An `Objective` that holds the maps of one tile at a time. What it computes is the same, rounding aside.

    Where several processes share the picture, each has the objective and works on tiles of its own.

    Two passes, after Galerne et al. (arXiv 2212.13459). The style loss is a function of an additive
    statistic, a mean over positions: the first pass, without gradients, adds it up. The gradient of
    the loss at the mean is then known, and the loss is replaced by the linear function of the
    statistic that has this gradient. That one is a sum over tiles, as all the other terms are, and so
    is its gradient, which the second pass adds up.

    Statistics that are no such mean are not for it: `check_memory` refuses them. The detail of a subject
    is compared in the picture itself, without the network, and so all at once.
    """

    def evaluate(self, image: Tensor) -> Evaluation:
        """See `Objective`."""
        image = image.detach()
        # The maps of a process's only tile are kept for the second pass; those of several would not fit.
        only = self._forward(image, self._own_tiles[0]) if len(self._own_tiles) == 1 else None
        style, pulls = self._style_pulls(image, self._style_weight, only)
        gradient = torch.zeros_like(image)
        sums = [torch.stack((*image.new_zeros(3), self._add_detail_gradient(gradient, image)))]
        for tile in self._own_tiles:
            content = image.new_zeros(())
            if tile in self._own_targets or self._styled(tile, pulls):
                forward = only or self._forward(image, tile)
                content = self._add_feature_gradient(
                    gradient, forward, tile, pulls, self._content_weight, self._position_weights
                )
            tv, box = self._add_pixel_gradient(gradient, image, tile)
            sums.append(torch.stack((content, tv, box, image.new_zeros(()))))
        (added,) = self._processes.summed([torch.stack(sums).double().sum(0)])
        (gradient,) = self._processes.summed([gradient])
        found = dict(zip(("content", "tv", "box", "detail"), added.tolist(), strict=True), style=style)
        terms = {name: found[name] for name in self.loss_names}
        total = sum(terms.values())
        return Evaluation(terms, total, gradient, math.isfinite(total + losses.square_sum(gradient).item()))

    @property
    def nbytes(self) -> int:
        """See `Objective`."""
        return super().nbytes + sum(part.nbytes for maps in self._own_targets.values() for part in maps.values())

    @property
    def _processes(self) -> Processes:
        return self._backbone.processes

    @cached_property
    def _tiles(self) -> Sequence[Tile]:
        return self._tiles_of(self._content)

    @property
    def _own_tiles(self) -> Sequence[Tile]:
        return self._processes.own(self._tiles)

    def _content_targets(self, content: Tensor) -> dict[str, Tensor]:
        """None of the whole: each process keeps those of its own tiles."""
        strides = self._strides(self._content_weights)
        self._own_targets = mosaic.owned_maps(self._target_features, content, self._own_tiles, strides)
        sizes = mosaic.map_sizes(content, self._strides(self.style_loss.taps))
        self._region_weights = {one: mosaic.weights_in(one.mask, sizes) for one in self.style_loss.regions}
        return {}

    def _content_sizes(self) -> Mapping[str, Sequence[int]]:
        strides = self._strides(self._content_weights)
        return {tap: mosaic.map_size(self._content, stride) for tap, stride in strides.items()}

    def _gradients(self, image: Tensor) -> Iterator[Tensor]:
        yield self._feature_gradient(image, 1.0, [])
        yield self._feature_gradient(image, 0.0, self._style_pulls(image, 1.0)[1])

    def _feature_gradient(self, image: Tensor, content_weight: float, pulls: Sequence[Pull]) -> Tensor:
        gradient = torch.zeros_like(image)
        for tile in self._own_tiles:
            if (content_weight and tile in self._own_targets) or self._styled(tile, pulls):
                self._add_feature_gradient(gradient, self._forward(image, tile), tile, pulls, content_weight, {})
        return self._processes.summed([gradient])[0]

    def _styled(self, tile: Tile, pulls: Sequence[Pull]) -> bool:
        """Whether style has a gradient at the tile's own positions: around a hole there is none."""
        return any(mosaic.counts(tile, [pull.weights], self._strides(pull.slopes)) for pull in pulls)

    def _forward(self, image: Tensor, tile: Tile) -> Forward:
        part = computed(image, tile).detach().requires_grad_(True)
        return part, self.features(part)

    def _style_pulls(self, image: Tensor, weight: float, only: Forward | None = None) -> tuple[float, list[Pull]]:
        """The first pass: the weighted style loss, and how it pulls, by regions.

        `only` has the maps of this process's one tile, if they are there already.
        """
        loss = self.style_loss
        if not loss.taps_in_use:
            return 0.0, []
        features = self.features if only is None else lambda _: only[1]
        weights = [self._region_weights[region] for region in loss.aimed_at]
        measured = self._mean_statistics(features, image, self._tiles, loss.taps_in_use, weights)
        parts = [part.requires_grad_(True) for by_tap in measured for found in by_tap.values() for part in found]
        value = loss.distance(measured, image) * weight
        value, *flat = self._processes.agreed([value.detach(), *torch.autograd.grad(value, parts)])
        rest = iter(flat)
        slopes = [{tap: tuple(islice(rest, len(found))) for tap, found in by_tap.items()} for by_tap in measured]
        return value.item(), [Pull(*pull) for pull in zip(slopes, weights, strict=True)]

    def _add_feature_gradient(
        self,
        gradient: Tensor,
        forward: Forward,
        tile: Tile,
        pulls: Sequence[Pull],
        content_weight: float,
        position_weights: mosaic.Weights,
    ) -> Tensor:
        """The second pass at one tile: adds to `gradient`, and returns the tile's share of the weighted content loss.

        The backward pass goes from tap to tap, so that maps are freed on the way.
        """
        part, maps = forward
        content = gradient.new_zeros(())
        flow: Tensor | None = None
        while maps:
            tap, features = maps.popitem()
            pull = torch.zeros_like(features)
            own, own_pull = (owned_within(part, tile, self._stride(tap)) for part in (features.detach(), pull))
            content = content + self._add_content_pull(own_pull, own, tap, tile, content_weight, position_weights)
            self._add_style_pull(own_pull, own, tap, tile, pulls)
            flow = pull if flow is None else flow.add_(pull)
            source = next(reversed(maps.values()), part)
            (flow,) = torch.autograd.grad(features, source, flow)
            if len(self._own_tiles) > 1:
                # What a scale keeps from one iteration to the next is worth more than the page faults this costs.
                hardware.release_freed_memory()
        if flow is not None:
            computed(gradient, tile).add_(flow)
        return content

    def _add_content_pull(
        self, pull: Tensor, own: Tensor, tap: str, tile: Tile, content_weight: float, position_weights: mosaic.Weights
    ) -> Tensor:
        """Adds the gradient at the tile's own positions of the map at a tap; returns their share of the loss."""
        target = self._own_targets.get(tile, {}).get(tap)
        if target is None:
            return own.new_zeros((), dtype=torch.float32)
        difference = own.float() - target.float()
        numbers = target.shape[1] * positions(self._content, self._stride(tap))
        weight: float | Tensor = content_weight * self._content_weights[tap] / numbers
        if tap in position_weights:
            weight = weight * owned(position_weights[tap], tile, self._stride(tap))
        pull += 2 * weight * difference
        return (weight * difference.square()).sum()

    def _add_style_pull(self, pull: Tensor, own: Tensor, tap: str, tile: Tile, pulls: Sequence[Pull]) -> None:
        """Adds the gradient at the tile's own positions of the map at a tap, from each region."""
        share = share_of(own, self._content, self._stride(tap))
        for slopes, weights in pulls:
            if tap in slopes:
                part = own.detach().requires_grad_(True)
                found = mosaic.measured(self.style_loss.statistic, part, tile, self._stride(tap), weights.get(tap))
                pull += torch.autograd.grad(tuple(found), part, [slope * share for slope in slopes[tap]])[0]

    def _add_detail_gradient(self, gradient: Tensor, image: Tensor) -> Tensor:
        """Adds the gradient of the weighted detail loss, which it returns; in the first process alone."""
        if self._protection is None or self._processes.rank > 0:
            return image.new_zeros(())
        part = image.detach().requires_grad_(True)
        loss = self._protection.detail_loss(part) * self._detail_weight
        gradient += torch.autograd.grad(loss, part)[0]
        return loss.detach()

    def _stride(self, tap: str) -> int:
        return self._backbone.network.stride(tap)

    def _add_pixel_gradient(self, gradient: Tensor, image: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Adds the gradients of the tile's shares of total variation and box penalty; returns the weighted shares.

        A tile owns the differences between its own pixels and the next, below and to the right.
        """
        rows, columns = tile.rows, tile.columns
        region = (..., slice(rows.start, rows.stop + 1), slice(columns.start, columns.stop + 1))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        part = image[region].detach().requires_grad_(True)
        variation = losses.vertical_variation(part[..., :width]) + losses.horizontal_variation(part[..., :height, :])
        tv = variation * self._tv_weight
        box = losses.box_penalty(part[..., :height, :width]) * self._box_weight
        (added,) = torch.autograd.grad(tv + box, part)
        gradient[region].add_(added)
        return tv.detach(), box.detach()
