"""Options refuse what they must, by the field's name, without torch."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nst_engine.networks import NETWORKS
from nst_engine.options import OptionError, StylizeOptions, from_fields, ranges, steered

RAW = {"content_weight", "style_weight"}
CHOICES = {
    "model": [
        *("vgg16-caffe", "vgg16-torchvision", "vgg19-torchvision"),
        *("resnet50-torchvision", "densenet121-torchvision"),
    ],
    "style_statistic": ["auto", "gram", "moments", "sliced"],
    "padding": ["auto", "replicate", "zeros"],
    "parametrization": ["pixels", "fourier", "network"],
    "optimizer": ["lbfgs", "adam", "adagrad", "gradient_descent"],
    "init": ["content", "noise", "recolored", "textured", "image"],
    "color": ["style", "keep_luminance", "match"],
    "pooling": ["max", "average"],
    "precision": ["auto", "float32", "bfloat16"],
}
BORDERS = [(name, low, high) for name, (low, high) in ranges().items()]
WHOLE = {"size", "iterations", "scales", "history_size", "seed", "window"}


def given(name: str, value: Any) -> dict[str, Any]:
    """One field, with balancing off where it is a raw weight."""
    return {name: value, **({"strength": None} if name in RAW else {})}


def refusal(**values: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        StylizeOptions(**values)
    assert str(caught.value) == f"{caught.value.field}: {caught.value.message}"
    return caught.value


def test_every_number_has_a_range():
    numbers = {
        option.name for option in dataclasses.fields(StylizeOptions) if option.type in (int, float, float | None)
    }
    assert numbers == ranges().keys()


@pytest.mark.parametrize(("name", "low", "high"), BORDERS)
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(name: str, low: float, high: float):
    for end in (low, high):
        assert getattr(StylizeOptions(**given(name, end)), name) == end
    step = 1 if name in WHOLE else max(abs(low), 1e-9) * 1e-3
    for beyond in (low - step, high * 2, float("nan"), float("inf"), 10**400, "3", True, [1]):
        error = refusal(**given(name, beyond))
        assert error.field == name
    assert f"{low:g} to {high:g}" in refusal(**given(name, low - step)).message


def test_numbers_of_numpy_become_pythons():
    layers = {"relu4_2": np.float16(2)}
    options = StylizeOptions(size=np.int64(64), tv_weight=np.float32(0.5), strength=1, content_layers=layers)
    numbers = (options.size, options.tv_weight, options.strength, options.content_layers["relu4_2"])
    assert [(type(number), number) for number in numbers] == [(int, 64), (float, 0.5), (float, 1), (float, 2)]


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_whole_numbers_are_whole(name: str):
    error = refusal(**{name: 20.5})
    assert error.field == name
    assert "whole number" in error.message


def test_only_what_may_be_left_to_the_engine_may_be_none():
    optional = {"strength", "content_weight", "style_weight", "learning_rate", "content_threshold"}
    for name in ranges():
        if name in optional:
            assert getattr(StylizeOptions(**given(name, None)), name) is None
        else:
            assert refusal(**{name: None}).field == name


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_closed(name: str):
    for choice in CHOICES[name]:
        assert getattr(StylizeOptions(**{name: choice}), name) == choice
    for other in ("", CHOICES[name][0].upper(), None, 1):
        error = refusal(**{name: other})
        assert error.field == name
        assert all(choice in error.message for choice in CHOICES[name])


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_flags_are_true_or_false(value: Any):
    error = refusal(faces=value)
    assert error.field == "faces"
    assert "true or false" in error.message


@pytest.mark.parametrize("name", ["content_layers", "style_layers"])
def test_unknown_taps_are_answered_with_the_known_ones(name: str):
    error = refusal(**{name: {"relu4_2": 1.0, "relu6_1": 1.0}})
    assert error.field == f"{name}.relu6_1"
    assert ", ".join(NETWORKS["vgg16-caffe"].taps) in error.message


@pytest.mark.parametrize("name", ["content_layers", "style_layers"])
@pytest.mark.parametrize("value", [["relu4_2"], "relu4_2", 1.0])
def test_layers_are_weights_by_tap(name: str, value: Any):
    error = refusal(**{name: value})
    assert (error.field, "weights by tap" in error.message) == (name, True)
    with pytest.raises(OptionError, match="weights by tap"):
        steered(StylizeOptions(), {name: value})


def test_taps_belong_to_a_model():
    assert refusal(style_layers={"relu3_4": 1.0}).field == "style_layers.relu3_4"
    assert StylizeOptions(model="vgg19-torchvision", style_layers={"relu3_4": 1.0}).style_layers == {"relu3_4": 1.0}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_left_out_are_the_models_own(name: str):
    network, options = NETWORKS[name], from_fields({"model": name, "style_layers": None})
    assert options.content_layers == network.content_layers
    assert options.style_layers == network.style_layers
    assert {*options.content_layers, *options.style_layers} <= {*network.taps}
    given = StylizeOptions(model=name, style_layers={network.taps[0]: 2.0})
    assert given.style_layers == {network.taps[0]: 2.0}
    assert given.content_layers == network.content_layers


def test_the_defaults_of_a_network_cannot_be_changed_through_options():
    StylizeOptions().style_layers["relu1_1"] = 7.0  # type: ignore[index]
    assert StylizeOptions().style_layers == {f"relu{block}_1": 1.0 for block in range(1, 6)}
    assert StylizeOptions().content_layers == {"relu4_2": 1.0}


def test_taps_of_another_kind_of_network_are_refused():
    error = refusal(model="resnet50-torchvision", style_layers={"relu1_1": 1.0})
    assert error.field == "style_layers.relu1_1"
    assert "layer1.0, layer1.1" in error.message
    assert refusal(content_layers={"layer1.0": 1.0}).field == "content_layers.layer1.0"


@pytest.mark.parametrize("weight", [-1.0, 1e13, float("nan"), "1", None, True])
def test_layer_weights_have_a_range(weight: Any):
    assert refusal(style_layers={"relu1_1": weight}).field == "style_layers.relu1_1"


def test_something_must_be_optimised():
    assert refusal(content_layers={}, style_layers={"relu1_1": 0.0}).field == "style_layers"


@pytest.mark.parametrize(
    "raw", [{"content_weight": 1.0}, {"style_weight": 2.0}, {"content_weight": 0, "style_weight": 1}]
)
def test_strength_and_raw_weights_exclude_each_other(raw: dict[str, float]):
    error = refusal(**raw)
    assert error.field == "strength"
    assert all(name in error.message for name in raw)
    assert StylizeOptions(strength=None, **raw).strength is None


def test_options_cannot_be_changed():
    options = StylizeOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.size = 64  # type: ignore[misc]


def test_fields_left_out_take_the_defaults():
    assert from_fields({}) == StylizeOptions()
    assert from_fields({"size": 100}) == StylizeOptions(size=100)


def test_raw_weights_alone_turn_balancing_off():
    options = from_fields({"style_weight": 5.0})
    assert (options.strength, options.style_weight) == (None, 5.0)
    with pytest.raises(OptionError, match=r"^strength: "):
        from_fields({"style_weight": 5.0, "strength": 0.5})


def test_unknown_fields_are_answered_with_the_known_ones():
    with pytest.raises(OptionError, match=r"^sise: .*size") as caught:
        from_fields({"sise": 100})
    assert caught.value.field == "sise"


def test_options_and_networks_need_no_torch():
    """Not even torch's presence: its import is made to fail."""
    program = """
import sys
sys.modules["torch"] = None
from nst_engine.options import StylizeOptions, OptionError
from nst_engine.networks import NETWORKS
import nst_engine
print(nst_engine.StylizeOptions().size, len(NETWORKS), "nst_engine.engine" in sys.modules)
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert completed.stdout.split() == ["512", "5", "False"], completed.stderr


def test_the_package_offers_its_names_and_no_others():
    import nst_engine

    for name in ("Engine", "Style", "stylize", "StylizeOptions", "OptionError", "CheckpointError", "WeightsError"):
        assert name in dir(nst_engine)
        assert getattr(nst_engine, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = nst_engine.Engin


@pytest.mark.parametrize(("strength", "statistic", "padding"), [(0.5, "moments", "replicate"), (None, "gram", "zeros")])
def test_what_is_left_to_the_engine_follows_from_strength(strength: float | None, statistic: str, padding: str):
    options = StylizeOptions(strength=strength)
    assert (options.chosen_statistic, options.chosen_padding) == (statistic, padding)
    chosen = StylizeOptions(strength=strength, style_statistic="sliced", padding="zeros")
    assert (chosen.chosen_statistic, chosen.chosen_padding) == ("sliced", "zeros")
