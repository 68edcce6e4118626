"""What is minimised at one scale: content + style + total variation + box penalty."""

import itertools
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from nst_engine import losses, mosaic
from nst_engine.backbone import Backbone
from nst_engine.balance import balance_of, noisy
from nst_engine.distributed import digest
from nst_engine.evaluation import Evaluation, evaluated
from nst_engine.masks import Region, StyleMasks
from nst_engine.options import StylizeOptions
from nst_engine.protection import Protection
from nst_engine.recording import Recordings
from nst_engine.schedule import named_taps, taps_in_use
from nst_engine.statistics import make_statistic, statistic_key
from nst_engine.style_cache import StyleCache
from nst_engine.style_loss import StyleLoss
from nst_engine.tiling import Tile
from nst_engine.window import window

# The detail of a subject is weighed against content at the content under so much noise, 0-255 units.
DETAIL_NOISE = 100.0
LOSSES = ("content", "style", "tv", "box")

_revisions = itertools.count()


class Objective:
    """The losses of one job at one working size, against targets computed once.

    Args:
        backbone: the feature network.
        content: (1, 3, H, W) at the working size, 0-255.
        styles: (1, 3, h, w) each, at the working scale.
        options: layers, weights and pooling.
        shares: one per style, at least 0, at least one above 0; normalised here.
        masks: one per style; None is everywhere for all.
        subject: (1, 1, H, W), 0-1: what `options.protection` protects; None is nothing.
        memory_budget: bytes for the maps of one style picture; those of a larger one are computed in tiles.
        cache: where the measured styles are kept for others; None keeps nothing.

    Attributes:
        revision: another one whenever its losses are others, and never that of another objective.
        window: what the network sees of an image.

    Raises:
        OptionError: not even the smallest tile of a style fits.
    """

    def __init__(
        self,
        backbone: Backbone,
        content: Tensor,
        styles: Sequence[Tensor],
        options: StylizeOptions,
        shares: Sequence[float],
        masks: Sequence[StyleMasks] | None = None,
        subject: Tensor | None = None,
        *,
        memory_budget: int = sys.maxsize,
        cache: StyleCache | None = None,
    ) -> None:
        self._backbone = backbone
        self._content = content
        self._pooling = options.pooling
        self._taps = named_taps(options)
        self._content_weights = self._by_tap(options.content_layers)
        masks = masks or [StyleMasks()] * len(styles)
        self._memory_budget = memory_budget
        self.window = window(backbone, content.shape[2:], options, masks)
        self._region_weights: dict[Region, dict[str, Tensor]] = {}
        self.style_loss = StyleLoss(make_statistic(options), self._by_tap(options.style_layers), masks)
        with torch.no_grad():
            self._content_maps = self._content_targets(content)
            for style, one in zip(styles, masks, strict=True):
                self.style_loss.add(self._cached(style, one.source_region, options, cache or StyleCache(0)))
        self._statistic = options.chosen_statistic
        self._position_weights: dict[str, Tensor] = {}
        self._protection: Protection | None = None
        if subject is not None:
            self._protection = Protection(content, subject, options.protection)
            self._position_weights = {
                tap: self._protection.content_weights(size) for tap, size in self._content_sizes().items()
            }
        self._steered: tuple[Any, ...] = ()
        self.steer(options, shares)

    def steer(self, options: StylizeOptions, shares: Sequence[float]) -> None:
        """Takes the weights of losses and layers from `options` and blends the style targets by `shares`.

        Layers are named at the start; those of weight 0 count for nothing. A change of layers or shares changes
        how hard a side pulls, and the balance by strength is struck anew: the objective is the one that
        would be made with these, as it is when a run resumes. What fails, for want of memory say, changes nothing.
        """
        before = {**vars(self), "style_loss": copy(self.style_loss)}
        try:
            self._steer(options, shares)
        except BaseException:
            vars(self).update(before)
            raise
        finally:
            self.revision = next(_revisions)

    def _steer(self, options: StylizeOptions, shares: Sequence[float]) -> None:
        steered = tuple(shares), options.content_layers, options.style_layers
        if steered != self._steered:
            self._steered = steered
            self._taps_in_use = taps_in_use(options)
            self._content_weights = self._by_tap(options.content_layers)
            self.style_loss.reweigh(self._by_tap(options.style_layers))
            self.style_loss.blend(shares)
            self._balance = (1.0, 1.0) if options.strength is None else self._measure_balance()
            self._detail_share = 0.0 if self._protection is None else self._measure_detail_share(options.protection)
        self._tv_weight, self._box_weight = options.tv_weight, options.box_weight
        if options.strength is None:
            self._content_weight = 1.0 if options.content_weight is None else options.content_weight
            self._style_weight = 1.0 if options.style_weight is None else options.style_weight
        else:
            content_unit, style_unit = self._balance
            self._content_weight = (1 - options.strength) * content_unit
            self._style_weight = options.strength * style_unit

    @property
    def recordings(self) -> Recordings:
        """Those of its network."""
        return self._backbone.recordings

    @property
    def loss_names(self) -> Sequence[str]:
        """Of the losses, in the order of `terms`."""
        return LOSSES if self._protection is None else (*LOSSES, "detail")

    @property
    def loss_weights(self) -> Tensor:
        """What `LOSSES` are multiplied by, (4,)."""
        weights = self._content_weight, self._style_weight, self._tv_weight, self._box_weight
        return self._content.new_tensor(weights)

    @property
    def content_weights(self) -> Mapping[str, float]:
        """By tap, of those that count."""
        return {tap: weight for tap, weight in self._content_weights.items() if weight > 0}

    @property
    def content_targets(self) -> Mapping[str, Tensor]:
        """The content's maps by tap."""
        return self._content_maps

    @property
    def stack_key(self) -> Hashable | None:
        """Objectives of equal keys can be evaluated by one `evaluation.Stack`; None goes into none."""
        style = self.style_loss.stack_key
        return None if self._protection is not None or style is None else (style, tuple(self.content_weights))

    @property
    def seen_as(self) -> Hashable:
        """What objectives have in common whose images go through the network in the same way."""
        return tuple(self._taps_in_use), self._pooling, self.window.size

    @property
    def waits_for_nothing(self) -> bool:
        """Whether an evaluation launches all that it does without a look at what has been computed."""
        return self.style_loss.waits_for_nothing

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._content.device

    @property
    def nbytes(self) -> int:
        """Bytes held by the targets."""
        held = [self._content, *self._content_maps.values()]
        held += self._position_weights.values()
        held += [weights for by_tap in self._region_weights.values() for weights in by_tap.values()]
        own = sum(tensor.nbytes for tensor in held) + self.style_loss.nbytes
        return own + (self._protection.nbytes if self._protection else 0)

    def evaluate(self, image: Tensor) -> Evaluation:
        """The losses at `image` (1, 3, H, W), and the gradient of their sum."""
        (evaluation,) = evaluated([self], [image])
        return evaluation

    def seen(self, image: Tensor) -> Tensor:
        """The window on an image, (1, 3, H, W)."""
        return mosaic.computed(image, self.window)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The maps that count, by tap, of what is seen of images, (N, 3, h, w)."""
        return self._backbone.features(images, self._taps_in_use, self._pooling)

    def terms(self, image: Tensor, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses of `image` (1, 3, H, W) with these maps by tap, scalars differentiable in it."""
        terms = {
            "content": self._content_loss(maps, self._position_weights) * self._content_weight,
            "style": self._style_distance(maps, image) * self._style_weight,
            "tv": losses.total_variation(image) * self._tv_weight,
            "box": losses.box_penalty(image) * self._box_weight,
        }
        if self._protection is not None:
            terms["detail"] = self._protection.detail_loss(image) * self._detail_weight
        return terms

    @property
    def _detail_weight(self) -> float:
        return self._content_weight * self._detail_share

    def _content_loss(self, maps: Mapping[str, Tensor], position_weights: Mapping[str, Tensor]) -> Tensor:
        """The unweighted content loss; at the taps in `position_weights`, positions count by these."""
        content = self._content.new_zeros(())
        for tap, weight in self.content_weights.items():
            error = losses.mean_squared_error(maps[tap], self._content_maps[tap], position_weights.get(tap))
            content = content + weight * error
        return content

    def _style_distance(self, maps: Mapping[str, Tensor], image: Tensor) -> Tensor:
        """The unweighted style loss of an image with these maps."""
        loss = self.style_loss
        measured = [loss.measure(maps, loss.taps_in_use, self._weights_in(region, maps)) for region in loss.aimed_at]
        return loss.distance(measured, image)

    def _weights_in(self, region: Region, maps: Mapping[str, Tensor]) -> mosaic.Weights:
        """How much each position of maps counts for a region: worked out for the first of them."""
        known = self._region_weights.setdefault(region, {})
        sizes = {tap: maps[tap].shape[2:] for tap in self.style_loss.taps_in_use if tap not in known}
        if self.window.size == self._content.shape[2:]:
            known |= mosaic.weights_in(region.mask, sizes)
        else:
            strides = self._strides(sizes)
            everywhere = mosaic.weights_in(region.mask, mosaic.map_sizes(self._content, strides))
            known |= mosaic.weights_seen(everywhere, self.window, strides)
        return known

    def _measure_balance(self) -> tuple[float, float]:
        """The weights that bring the gradients to the levels of the network's `Balance`.

        That of style to its level over the regions where it goes: elsewhere it is 0. That of content
        as if nothing were protected.
        """
        balance = balance_of(self._backbone.network)
        content, style = map(_strength, self._gradients(balance.image(self._content)))
        style_level = balance.style_levels[self._statistic] * self.style_loss.coverage**0.5
        return _ratio(balance.content_level, content), _ratio(style_level, style)

    def _gradients(self, image: Tensor) -> Iterator[Tensor]:
        """Of the unweighted content loss, as if nothing were protected, then of style's, for who asks for it too."""
        maps = self.features(self.seen(image))
        yield _gradient(self._content_loss(maps, {}), image)
        yield _gradient(self._style_distance(maps, image), image)

    def _measure_detail_share(self, protection: float) -> float:
        """The weight of the detail loss, as a share of that of content: so it follows it, balanced or raw."""
        everywhere = Protection(self._content, torch.ones_like(self._content[:, :1]), protection)
        image = noisy(self._content, DETAIL_NOISE)
        level = everywhere.detail_level * _strength(next(self._gradients(image)))
        return _ratio(level, _strength(_gradient(everywhere.detail_loss(image), image)))

    def _by_tap(self, layers: Mapping[str, float]) -> dict[str, float]:
        """The weights in the order of the network."""
        return {tap: layers[tap] for tap in self._taps if tap in layers}

    def _target_features(self, picture: Tensor) -> dict[str, Tensor]:
        """The maps that count or may come to."""
        return self._backbone.features(picture, self._taps, self._pooling)

    def _tiles_of(self, picture: Tensor) -> tuple[Tile, ...]:
        height, width = picture.shape[2:]
        return self._backbone.tiles(height, width, self._taps, self._pooling, self._memory_budget)

    def _content_targets(self, content: Tensor) -> dict[str, Tensor]:
        maps = self._target_features(content) if self._content_weights else {}
        return {tap: maps[tap] for tap in self._content_weights}

    def _content_sizes(self) -> Mapping[str, Sequence[int]]:
        """Height and width of the content's maps, by tap."""
        return {tap: maps.shape[2:] for tap, maps in self._content_maps.items()}

    def _cached(self, style: Tensor, mask: Tensor | None, options: StylizeOptions, cache: StyleCache) -> dict[str, Any]:
        """What `_measured` gives, which is the same wherever the key is."""
        tiles = self._tiles_of(style)
        if self._backbone.processes.size > 1:  # they measure together, and not all might have it
            return self._measured(style, mask, tiles)
        taps = tuple(self._taps), tuple(self.style_loss.taps)
        key = self._backbone, taps, self._pooling, tiles, statistic_key(options), digest(style), digest(mask)
        return cache.get(key, lambda: self._measured(style, mask, tiles))

    def _measured(self, style: Tensor, mask: Tensor | None, tiles: Sequence[Tile]) -> dict[str, Any]:
        """The style statistic of a part of a picture, or of all of it, by tap."""
        taps = self.style_loss.taps
        if len(tiles) > 1:
            weights = mosaic.weights_in(mask, mosaic.map_sizes(style, self._strides(taps)))
            (measured,) = self._mean_statistics(self._target_features, style, tiles, taps, [weights])
            return measured
        maps = self._target_features(style)
        return self.style_loss.measure(maps, taps, mosaic.weights_in(mask, {tap: maps[tap].shape[2:] for tap in taps}))

    def _mean_statistics(
        self,
        features: mosaic.Features,
        picture: Tensor,
        tiles: Sequence[Tile],
        taps: Collection[str],
        regions: Sequence[mosaic.Weights],
    ) -> list[dict[str, Any]]:
        statistic, processes = self.style_loss.statistic, self._backbone.processes
        return mosaic.mean_statistics(features, picture, tiles, self._strides(taps), regions, statistic, processes)

    def _strides(self, taps: Collection[str]) -> dict[str, int]:
        return {tap: self._backbone.network.stride(tap) for tap in taps}


def _gradient(term: Tensor, image: Tensor) -> Tensor:
    """0 for a constant."""
    return torch.autograd.grad(term, image, retain_graph=True)[0] if term.requires_grad else torch.zeros_like(image)


def _strength(gradient: Tensor) -> float:
    return losses.root_mean_square(gradient).item()


def _ratio(level: float, size: float) -> float:
    return level / size if size > 0 else 0.0
