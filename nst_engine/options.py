"""Every option of a stylisation, its default and its allowed values.

This is the one source of defaults: the protos leave fields unset, the CLI asks the server, and the
server reads this file. It imports no torch, so that the gateway can validate with it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from nst_engine.networks import NETWORKS


class OptionError(ValueError):
    """An option is not allowed. `field` names it; the message says what would be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class BudgetError(OptionError):
    """What is asked for does not fit into the engine's memory budget: a larger one may hold it."""


class DetectorError(OptionError):
    """Finding faces needs a package that is not installed here: where it is, they may be found."""


def _number(default: Any, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _models_own() -> Any:
    return field(default=None)


# What a weight may be, and a style's scale: its long side relative to the picture's.
WEIGHTS = (0.0, 1e12)
STYLE_SCALES = (0.1, 2.0)


@dataclass(frozen=True)
class StylizeOptions:
    """How to stylise. Construction validates, and raises `OptionError` naming the field.

    Attributes:
        size: long side of the result in pixels.
        model: a name in `networks.NETWORKS`.
        strength: how much style, 0 to 1; the loss weights behind it are balanced per job. None
            uses `content_weight` and `style_weight` as they are.
        content_weight, style_weight: raw loss weights (None means 1), only with `strength=None`.
        tv_weight: weight of the total variation, sum of absolute differences in 0-255 units.
        box_weight: weight of the summed squared excess of pixels outside 0-255.
        content_layers, style_layers: weights by tap; None takes those of the model's `Network`. One of weight 0
            counts for nothing, but has a target, so that a run can be steered to give it weight.
        style_statistic: what of the features at a style layer is matched: the "gram" matrix; the
            "moments", which are mean and covariance, as normal distributions by their Wasserstein-2
            distance; or the whole distribution, by the "sliced" Wasserstein distance. The last two are
            relative to the style and mostly below 1. "auto" is "moments" where `strength` balances the
            weights of a VGG, and "gram", which published raw weights and smoothed maps are meant for,
            otherwise.
        iterations: at most, over every scale.
        scales: number of scales, coarse to fine, each twice the one before.
        min_improvement: ends a scale whose total loss fell by no more than this share over its
            last `window` iterations; 0 never does.
        content_threshold: ends the run when, at the last scale, an iteration takes the weighted
            content loss across this value, in either direction; None never does.
        parametrization: what is optimised: the "pixels"; their "fourier" coefficients, weighted so that
            low frequencies move first; or the weights of a small convolutional "network" that paints
            over the picture a scale starts from, and so not with `init` "noise".
        optimizer: "lbfgs", "adam", "adagrad" or "gradient_descent".
        learning_rate: None means the optimiser's own default for the parametrisation.
        history_size: correction pairs that L-BFGS keeps.
        momentum: share of its velocity that gradient descent carries into the next iteration.
        weight_decay: of gradient descent, the pull towards mid-grey: this times the deviation from
            127.5 is added to the gradient. With "network" it is the weights that are pulled to 0, and
            so the picture to what the scale starts from.
        init: what to start from: the "content"; "noise", seeded by `seed`; the content "recolored" to
            the mean and covariance of the styles' colours, or besides "textured" with the styles' fine
            detail where it has less of its own; or an "image" that is given.
        seed: of the noise start, of the directions of the "sliced" statistic, and of the first weights of
            the "network".
        color: whose colours the result has: the "style"'s; with "keep_luminance" the content's hue and
            chroma under the result's own lightness; with "match" those of a style that is first
            recoloured to the mean and covariance of the content's colours. This, "recolored" and "textured"
            go region by region where styles have regions.
        protection: how firmly the subject is kept, by more content weight and by its detail, 0 (not at
            all) to 1; the subject is what a mask marks, or the faces. It is relative to the content's
            weight, and thus weakens as `strength` nears 1.
        faces: whether to find faces in the content and take them for the subject.
        pooling: "max" or "average".
        padding: what the first convolution sees beyond the picture's edge: "replicate", more of the
            same; "zeros", the network's mean colour. "auto" is "replicate" with a `strength`, and
            "zeros", which makes the losses those of other implementations, without.
        precision: "auto", "float32" or "bfloat16", of the feature network alone. "auto" and "bfloat16" are the fastest
            that the device has: float32 on a CPU without AVX512-BF16 and AMX, or a GPU before Ampere. On a CPU a VGG
            then spares multiplications, for more rounding, where it pays; with "float32" it does not. On an NVIDIA GPU
            torch convolves float32 in TF32, unless `torch.backends.cudnn.allow_tf32` is off.
    """

    size: int = _number(512, 16, 8192)
    model: str = _choice("vgg16-caffe", *NETWORKS)
    strength: float | None = _number(0.5, 0.0, 1.0)
    content_weight: float | None = _number(None, *WEIGHTS)
    style_weight: float | None = _number(None, *WEIGHTS)
    tv_weight: float = _number(1e-3, 0.0, 1e6)
    box_weight: float = _number(0.1, 0.0, 1e6)
    content_layers: Mapping[str, float] = _models_own()
    style_layers: Mapping[str, float] = _models_own()
    style_statistic: str = _choice("auto", "auto", "gram", "moments", "sliced")
    iterations: int = _number(100, 1, 10_000)
    scales: int = _number(2, 1, 6)
    min_improvement: float = _number(0.0, 0.0, 1.0)
    window: int = _number(10, 1, 1000)
    content_threshold: float | None = _number(None, 0.0, 1e12)
    parametrization: str = _choice("pixels", "pixels", "fourier", "network")
    optimizer: str = _choice("lbfgs", "lbfgs", "adam", "adagrad", "gradient_descent")
    learning_rate: float | None = _number(None, 1e-6, 1e3)
    history_size: int = _number(10, 1, 100)
    momentum: float = _number(0.9, 0.0, 0.999)
    weight_decay: float = _number(0.0, 0.0, 1.0)
    init: str = _choice("content", "content", "noise", "recolored", "textured", "image")
    seed: int = _number(0, 0, 2**63 - 1)
    color: str = _choice("style", "style", "keep_luminance", "match")
    protection: float = _number(0.5, 0.0, 1.0)
    faces: bool = False
    pooling: str = _choice("max", "max", "average")
    padding: str = _choice("auto", "auto", "replicate", "zeros")
    precision: str = _choice("auto", "auto", "float32", "bfloat16")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value is None and option.type == float | None:
                continue
            if "range" in option.metadata:
                kind = int if option.type is int else float
                object.__setattr__(self, option.name, checked(option.name, value, option.metadata["range"], kind))
            elif "choices" in option.metadata:
                _check_choice(option.name, value, option.metadata["choices"])
            elif option.type is bool and not isinstance(value, bool):
                raise OptionError(option.name, f"must be true or false, not {value!r}")
        for name in ("content_layers", "style_layers"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, dict(getattr(NETWORKS[self.model], name)))
            self._check_layers(name)
        self._check_weights()

    @property
    def chosen_statistic(self) -> str:
        """`style_statistic`, with "auto" resolved."""
        return self._chosen(self.style_statistic, balanced=NETWORKS[self.model].statistic, raw="gram")

    @property
    def chosen_padding(self) -> str:
        """`padding`, with "auto" resolved."""
        return self._chosen(self.padding, balanced="replicate", raw="zeros")

    def _chosen(self, choice: str, *, balanced: str, raw: str) -> str:
        if choice != "auto":
            return choice
        return raw if self.strength is None else balanced

    def _check_layers(self, name: str) -> None:
        taps, layers = NETWORKS[self.model].taps, getattr(self, name)
        _check_by_tap(name, layers)
        for tap in layers:
            if tap not in taps:
                raise OptionError(f"{name}.{tap}", f"{self.model} has no such tap; it has {', '.join(taps)}")
        weights = {tap: checked(f"{name}.{tap}", weight, WEIGHTS) for tap, weight in layers.items()}
        object.__setattr__(self, name, weights)

    def _check_weights(self) -> None:
        raw = [name for name in ("content_weight", "style_weight") if getattr(self, name) is not None]
        if self.strength is not None and raw:
            raise OptionError(
                "strength",
                f"cannot be combined with {' and '.join(raw)}: set strength, or raw weights, not both",
            )
        if self.parametrization == "network" and self.init == "noise":
            raise OptionError(
                "parametrization",
                "a network paints over what it starts from, and noise would show through: "
                "choose another init, or the pixels",
            )
        if not any(self.content_layers.values()) and not any(self.style_layers.values()):
            raise OptionError("style_layers", "no layer has a weight above 0: there is nothing to optimise")


def from_fields(given: Mapping[str, Any]) -> StylizeOptions:
    """Options from the fields a caller has set; the others take their defaults.

    Raw weights without a strength turn balancing off.

    Raises:
        OptionError: a field is unknown or its value is not allowed.
    """
    known = {option.name for option in dataclasses.fields(StylizeOptions)}
    for name in given:
        if name not in known:
            raise OptionError(name, f"unknown option; known are {', '.join(sorted(known))}")
    values = dict(given)
    if "strength" not in values and ("content_weight" in values or "style_weight" in values):
        values["strength"] = None
    return StylizeOptions(**values)


def steered(options: StylizeOptions, changes: Mapping[str, Any]) -> StylizeOptions:
    """The options of a run with some of them changed on the way.

    Args:
        options: as they are.
        changes: new values by name. Layers are changed as a whole: a tap that is left out weighs 0, and
            stays named in the options, so that it can have a weight again.

    Raises:
        OptionError: a value is not allowed; raw weights are changed of a run that is balanced by strength, or
            the other way round; or layers at a tap that the options do not name, or with no weight above 0.
    """
    balanced = options.strength is not None
    for name in ("content_weight", "style_weight") if balanced else ():
        if name in changes:
            raise OptionError(name, "this run is balanced by strength: change strength instead")
    if not balanced and "strength" in changes:
        raise OptionError("strength", "this run has raw weights: change content_weight and style_weight instead")
    layers = {name: changes[name] for name in ("content_layers", "style_layers") if name in changes}
    for name, weights in layers.items():
        named = getattr(options, name)
        _check_by_tap(name, weights)
        for tap in weights:
            if tap not in named:
                taps = ", ".join(named) or "none"
                raise OptionError(f"{name}.{tap}", f"this run has no target at this tap, and makes no new ones: {taps}")
        layers[name] = {tap: weights.get(tap, 0.0) for tap in named}
    changed = dataclasses.replace(options, **{**changes, **layers})
    for name in layers:
        if not any(getattr(changed, name).values()):
            raise OptionError(name, "at least one weight must be above 0")
    return changed


def ranges() -> dict[str, tuple[float, float]]:
    """The allowed range of every numeric option."""
    return {
        option.name: option.metadata["range"]
        for option in dataclasses.fields(StylizeOptions)
        if "range" in option.metadata
    }


def checked(name: str, value: Any, allowed: tuple[float, float], kind: type = float) -> Any:
    """A number of the range, be it Python's or NumPy's, as one of this kind, `int` or `float`.

    Raises:
        OptionError: it is none, or out of range; `field` is `name`.
    """
    low, high = allowed
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        raise OptionError(name, f"must be {'a whole' if kind is int else 'a'} number, not {value!r}")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not low <= number <= high:
        raise OptionError(name, f"must be from {low:g} to {high:g}, not {number}")
    return kind(number)


def checked_shares(shares: Sequence[float], styles: int) -> tuple[float, ...]:
    """The shares of so many styles.

    Raises:
        OptionError: there is not one for each, one is out of range, or none is above 0.
    """
    if len(shares) != styles:
        raise OptionError("style_shares", f"one share per style is needed: {styles}, not {len(shares)}")
    numbers = tuple(checked(f"style_shares[{index}]", share, WEIGHTS) for index, share in enumerate(shares))
    if not any(numbers):
        raise OptionError("style_shares", "at least one must be above 0")
    return numbers


def _check_by_tap(name: str, layers: object) -> None:
    if not isinstance(layers, Mapping):
        raise OptionError(name, f"must be weights by tap, as in {{'relu4_2': 1.0}}, not {layers!r}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(name, f"must be one of {', '.join(choices)}, not {value!r}")
