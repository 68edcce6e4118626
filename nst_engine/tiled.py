"""The objective of a picture whose maps do not fit into memory at once, tile by tile."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from nst_engine import hardware, losses, mosaic
from nst_engine.backbone import Backbone
from nst_engine.distributed import Processes
from nst_engine.evaluation import Evaluation
from nst_engine.inpainting import Hole
from nst_engine.masks import StyleMasks
from nst_engine.mosaic import computed, owned_within, positions, share_of
from nst_engine.objective import Objective
from nst_engine.options import OptionError, StylizeOptions
from nst_engine.schedule import named_taps
from nst_engine.statistics import make_statistic
from nst_engine.tiling import MIB, Tile

# The gradient of a scalar in each of the tensors that a statistic measures at a tap.
Slopes = tuple[Tensor, ...]
# Height and width of a picture in pixels.
Size = tuple[int, int]
# The computed part of an image, and its maps by tap, from which there is a way back to it.
Forward = tuple[Tensor, dict[str, Tensor]]


def in_tiles(backbone: Backbone, size: Size, options: StylizeOptions, memory_budget: int) -> bool:
    """Whether a picture is worked on tile by tile: its maps exceed the budget in bytes, or processes share it.

    Raises:
        OptionError: not even the smallest tile fits.
    """
    tiles = backbone.tiles(*size, named_taps(options), options.pooling, memory_budget)
    return len(tiles) > 1 or backbone.processes.size > 1


def check_memory(
    backbone: Backbone,
    content: Size,
    styles: Sequence[Size],
    options: StylizeOptions,
    masks: Sequence[StyleMasks],
    subject: Tensor | None = None,
    hole: Hole | None = None,
    *,
    memory_budget: int,
) -> None:
    """Makes sure that pictures of these sizes can be worked on, if need be in tiles.

    Raises:
        OptionError: not even the smallest tile fits; or a picture needs tiles, or is shared by processes,
            and something is asked of it that they cannot give: a statistic that is no mean over
            positions, or a mask, be it of a style, of the subject or of a hole.
    """
    processes = backbone.processes.size
    regions = {"hole": None if hole is None else hole.mask}
    regions |= {f"styles[{index}].region": one.region for index, one in enumerate(masks)}
    regions["faces" if options.faces else "subject"] = subject
    sources = [{f"styles[{index}].source_region": one.source_region} for index, one in enumerate(masks)]
    for size, given in zip((content, *styles), (regions, *sources), strict=True):
        whole = [field for field, mask in given.items() if mask is not None]
        if not make_statistic(options).additive:
            whole.append("style_statistic")
        if not in_tiles(backbone, size, options, memory_budget) or not whole:
            continue
        if processes > 1:
            cause, cure = f"{processes} processes share it", "go without it, or use one process"
        else:
            height, width = size
            cause = f"those of {width}x{height} do not fit into the memory budget of {memory_budget / MIB:.0f} MiB"
            cure = "go without it, set a smaller size, or raise the engine's memory_budget"
        raise OptionError(whole[0], f"needs the maps of a picture as a whole, and {cause}: {cure}")


class TiledObjective(Objective):
    """An `Objective` that holds the maps of one tile at a time. What it computes is the same, rounding aside.

    Where several processes share the picture, each has the objective and works on tiles of its own.

    Two passes, after Galerne et al. (arXiv 2212.13459). The style loss is a function of an additive
    statistic, a mean over positions: the first pass, without gradients, adds it up. The gradient of
    the loss at the mean is then known, and the loss is replaced by the linear function of the
    statistic that has this gradient. That one is a sum over tiles, as all the other terms are, and so
    is its gradient, which the second pass adds up.

    Statistics that are no such mean, and masks, are not for it: `check_memory` refuses them.
    """

    def evaluate(self, image: Tensor) -> Evaluation:
        """See `Objective`."""
        image = image.detach()
        # The maps of a process's only tile are kept for the second pass; those of several would not fit.
        only = self._forward(image, self._own_tiles[0]) if len(self._own_tiles) == 1 else None
        style, slopes = self._style_slopes(image, self._style_weight, only)
        gradient = torch.zeros_like(image)
        sums = [image.new_zeros(3)] if not self._own_tiles else []
        for tile in self._own_tiles:
            forward = only or self._forward(image, tile)
            content = self._add_feature_gradient(gradient, forward, tile, slopes, self._content_weight)
            sums.append(torch.stack((content, *self._add_pixel_gradient(gradient, image, tile))))
        (added,) = self._processes.summed([torch.stack(sums).double().sum(0)])
        (gradient,) = self._processes.summed([gradient])
        content, tv, box = added.tolist()
        terms = {"content": content, "style": style, "tv": tv, "box": box}
        total = sum(terms.values())
        return Evaluation(terms, total, gradient, math.isfinite(total + losses.square_sum(gradient).item()))

    @property
    def nbytes(self) -> int:
        """See `Objective`."""
        return super().nbytes + sum(part.nbytes for maps in self._own_targets.values() for part in maps.values())

    @property
    def _processes(self) -> Processes:
        return self._backbone.processes

    @property
    def _own_tiles(self) -> Sequence[Tile]:
        return self._processes.own(self._tiles)

    def _content_targets(self, content: Tensor) -> dict[str, Tensor]:
        """None of the whole: each process keeps those of its own tiles."""
        network = self._backbone.network
        strides = {tap: network.stride(tap) for tap in self._content_weights}
        self._own_targets = mosaic.owned_maps(self._target_features, content, self._own_tiles, strides)
        return {}

    def _gradient_sizes(self, image: Tensor) -> tuple[float, float]:
        _, slopes = self._style_slopes(image, 1.0)
        content, style = torch.zeros_like(image), torch.zeros_like(image)
        for tile in self._own_tiles:
            self._add_feature_gradient(content, self._forward(image, tile), tile, {}, 1.0)
            self._add_feature_gradient(style, self._forward(image, tile), tile, slopes, 0.0)
        content, style = self._processes.summed([content, style])
        return losses.root_mean_square(content).item(), losses.root_mean_square(style).item()

    def _forward(self, image: Tensor, tile: Tile) -> Forward:
        part = computed(image, tile).detach().requires_grad_(True)
        return part, self.features(part)

    def _style_slopes(
        self, image: Tensor, weight: float, only: Forward | None = None
    ) -> tuple[float, dict[str, Slopes]]:
        """The first pass: the weighted style loss, and by tap its gradient in what the statistic measures.

        `only` has the maps of this process's one tile, if they are there already.
        """
        loss = self.style_loss
        if not loss.taps_in_use:
            return 0.0, {}
        features = self.features if only is None else lambda _: only[1]
        measured = self._mean_statistics(features, image, self._tiles, loss.taps_in_use)
        parts = list(chain(*measured.values()))
        for tensor in parts:
            tensor.requires_grad_(True)
        value = loss.distance([measured], image) * weight
        value, *slopes = self._processes.agreed([value.detach(), *torch.autograd.grad(value, parts)])
        by_tap = iter(slopes)
        return value.item(), {tap: tuple(islice(by_tap, len(parts))) for tap, parts in measured.items()}

    def _add_feature_gradient(
        self, gradient: Tensor, forward: Forward, tile: Tile, slopes: Mapping[str, Slopes], content_weight: float
    ) -> Tensor:
        """The second pass at one tile: adds to `gradient`, and returns the tile's share of the weighted content loss.

        The backward pass goes from tap to tap, so that maps are freed on the way.
        """
        part, maps = forward
        content = gradient.new_zeros(())
        flow: Tensor | None = None
        while maps:
            tap, features = maps.popitem()
            share, pull = self._pull(tap, features.detach(), tile, slopes.get(tap), content_weight)
            content = content + share
            flow = pull if flow is None else flow.add_(pull)
            source = next(reversed(maps.values()), part)
            (flow,) = torch.autograd.grad(features, source, flow)
            if len(self._own_tiles) > 1:
                # What a scale keeps from one iteration to the next is worth more than the page faults this costs.
                hardware.release_freed_memory()
        if flow is not None:
            computed(gradient, tile).add_(flow)
        return content

    def _pull(
        self, tap: str, features: Tensor, tile: Tile, slopes: Slopes | None, content_weight: float
    ) -> tuple[Tensor, Tensor]:
        """What the tile's own positions of the map at a tap add to the content loss, and the gradient there."""
        pull = torch.zeros_like(features)
        stride = self._backbone.network.stride(tap)
        own, own_pull = owned_within(features, tile, stride), owned_within(pull, tile, stride)
        content = pull.new_zeros((), dtype=torch.float32)
        target = self._own_targets.get(tile, {}).get(tap)
        if target is not None:
            difference = own.float() - target.float()
            numbers = target.shape[1] * positions(self._content, stride)
            weight = content_weight * self._content_weights[tap] / numbers
            content = weight * difference.square().sum()
            own_pull += 2 * weight * difference
        if slopes is not None:
            own_pull += self._style_pull(own, slopes, share_of(own, self._content, stride))
        return content, pull

    def _style_pull(self, own: Tensor, slopes: Slopes, share: float) -> Tensor:
        """The gradient of the style loss at positions that are this share of all."""
        own = own.detach().requires_grad_(True)
        measured = self.style_loss.statistic.measure(own)
        (pull,) = torch.autograd.grad(tuple(measured), own, [slope * share for slope in slopes])
        return pull

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
