"""The style side of the objective: what is kept of the styles, and the loss against it."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nst_engine.masks import Region, StyleMasks, distinct_regions
from nst_engine.mosaic import Weights
from nst_engine.statistics import Stackable, Statistic


@dataclass(frozen=True)
class _Aim:
    """What a region is to look like: targets by tap, and the region's share of the content's area."""

    region: Region
    area: float
    targets: Mapping[str, Any]


class StyleLoss:
    """How far the image's statistics are from the styles', summed over taps and regions.

    Each distinct region has a loss of its own: it is measured over the region's own area, against
    the styles that go there, blended by their shares among each other. It counts by the region's
    share of the content's area, so a pixel is pulled as hard as if the region were the whole.

    Args:
        statistic: what is compared.
        layer_weights: by tap; those of 0 count for nothing, as long as `reweigh` leaves them at it.
        masks: of each style; the styles themselves follow by `add`, in the same order.
    """

    def __init__(
        self,
        statistic: Statistic[Any, Any],
        layer_weights: Mapping[str, float],
        masks: Sequence[StyleMasks],
    ) -> None:
        self.statistic = statistic
        self._weights = layer_weights
        self._measured: list[Mapping[str, Any]] = []
        self.regions = distinct_regions(masks)
        self._aims: list[_Aim] = []

    @property
    def taps(self) -> Collection[str]:
        """Those that have a target."""
        return self._weights.keys()

    @property
    def taps_in_use(self) -> Collection[str]:
        """Those that count."""
        return [tap for tap, weight in self._weights.items() if weight > 0]

    def reweigh(self, layer_weights: Mapping[str, float]) -> None:
        """Takes other weights of the same taps."""
        self._weights = layer_weights

    def measure(self, maps: Mapping[str, Tensor], taps: Collection[str], weights: Weights) -> dict[str, Any]:
        """The statistic at `taps` of a picture with these maps, whose positions count by `weights`."""
        flat = {tap: weight.flatten() for tap, weight in weights.items()}
        return {tap: self.statistic.measure(maps[tap], flat.get(tap)) for tap in taps}

    def add(self, measured: Mapping[str, Any]) -> None:
        """Takes the next style, as measured over its source region."""
        self._measured.append(measured)

    @property
    def aimed_at(self) -> Sequence[Region]:
        """Of the regions, those to which a style goes that has a share."""
        return [aim.region for aim in self._aims]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [kept for by_tap in self._measured for kept in by_tap.values()]
        held += [target for aim in self._aims for target in aim.targets.values()]
        return sum(tensor.nbytes for tensors in held for tensor in tensors)

    @property
    def coverage(self) -> float:
        """The share of the content's area that style goes to, at most 1; regions are taken not to overlap."""
        return min(1.0, sum(aim.area for aim in self._aims))

    def blend(self, shares: Sequence[float]) -> None:
        """Aims at the styles by `shares`, which are at least 0; a region whose styles all have 0 is left alone."""
        self._aims = [
            _Aim(region, region.area, self._blended(region, shares))
            for region in self.regions
            if any(shares[index] for index in region.styles)
        ]

    @property
    def waits_for_nothing(self) -> bool:
        """Whether all is launched without a look at what has been computed, as where a mask picks positions."""
        return not self.statistic.picks_positions or all(region.mask is None for region in self.regions)

    @property
    def stack_key(self) -> Hashable | None:
        """Losses of equal keys go together into a `StackedStyleLoss`; None goes into none."""
        whole = len(self._aims) == 1 and self._aims[0].region.mask is None
        if not whole or not self.taps_in_use or not isinstance(self.statistic, Stackable):
            return None
        return type(self.statistic), tuple(self.taps_in_use)

    def distance(self, measured: Sequence[Mapping[str, Any]], image: Tensor) -> Tensor:
        """The loss of an image of which this has been measured, in each region that is aimed at."""
        loss = image.new_zeros(())
        for aim, by_tap in zip(self._aims, measured, strict=True):
            for tap, measure in by_tap.items():
                loss = loss + aim.area * self._weights[tap] * self.statistic.distance(measure, aim.targets[tap])
        return loss

    def _blended(self, region: Region, shares: Sequence[float]) -> dict[str, Any]:
        total = sum(shares[index] for index in region.styles)
        parts = [shares[index] / total for index in region.styles]
        return {
            tap: self.statistic.blend([self._measured[index][tap] for index in region.styles], parts)
            for tap in self._weights
        }


class StackedStyleLoss:
    """Losses of one `stack_key`, which is not None, as one. What is launched is a fraction of what they take singly."""

    def __init__(self, losses: Sequence[StyleLoss]) -> None:
        first = losses[0]
        assert isinstance(first.statistic, Stackable)
        self._statistic = first.statistic
        self._targets = {
            tap: first.statistic.stack([loss._aims[0].targets[tap] for loss in losses]) for tap in first.taps_in_use
        }
        weights = [[loss._weights[tap] for loss in losses] for tap in self._targets]
        self._weights = torch.tensor(weights, device=next(iter(self._targets.values()))[0].device)

    @property
    def tensors(self) -> list[Tensor]:
        """All that the losses depend on besides the maps."""
        return [self._weights, *(tensor for target in self._targets.values() for tensor in target)]

    @property
    def kind(self) -> Hashable:
        """What those have in common that differ in nothing but their tensors."""
        return type(self._statistic), tuple(self._targets)

    def __call__(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The losses (N,) of images with maps (N, C, h, w) by tap."""
        distances = self._statistic.distances([maps[tap] for tap in self._targets], [*self._targets.values()])
        return (self._weights * distances).sum(0)
