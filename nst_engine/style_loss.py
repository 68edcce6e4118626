"""The style side of the objective: what is kept of the styles, and the loss against it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nst_engine.statistics import Statistic


class StyleLoss:
    """The weighted sum, over taps, of the distances between the image's statistics and the styles'.

    Args:
        statistic: what is compared.
        layer_weights: by tap; those of 0 count for nothing.
        styles: the maps of each style by tap, taken one style at a time.
    """

    def __init__(
        self, statistic: Statistic[Any, Any], layer_weights: Mapping[str, float], styles: Iterable[Mapping[str, Tensor]]
    ) -> None:
        self._statistic = statistic
        self._weights = {tap: weight for tap, weight in layer_weights.items() if weight > 0}
        self._measured = [{tap: statistic.measure(maps[tap]) for tap in self._weights} for maps in styles]
        self._targets: dict[str, Any] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [kept for kept_by_tap in (*self._measured, self._targets) for kept in kept_by_tap.values()]
        return sum(tensor.nbytes for tensors in held for tensor in tensors)

    def blend(self, shares: Sequence[float]) -> None:
        """Aims at the styles by `shares`, which are at least 0 and not all 0."""
        parts = [share / sum(shares) for share in shares]
        self._targets = {
            tap: self._statistic.blend([measured[tap] for measured in self._measured], parts) for tap in self._weights
        }

    def __call__(self, maps: Mapping[str, Tensor], image: Tensor) -> Tensor:
        """The loss of an image with these maps by tap."""
        loss = image.new_zeros(())
        for tap, target in self._targets.items():
            measured = self._statistic.measure(maps[tap])
            loss = loss + self._weights[tap] * self._statistic.distance(measured, target)
        return loss
