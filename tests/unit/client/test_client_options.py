"""Options as text and as values."""

import re

import pytest

from nst.v1 import options_pb2
from nst_client.options import OPTION_NAMES, OptionValue, build_options, option_choices, options_dict, parse_option


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "256", 256),
        ("seed", "9223372036854775807", 2**63 - 1),
        ("strength", "0.25", 0.25),
        ("tv_weight", "1e-3", 1e-3),
        ("optimizer", "adam", "adam"),
        ("model", "vgg19", "vgg19"),
        ("faces", "true", True),
        ("faces", "false", False),
        ("content_layers", "relu4_2=5", {"relu4_2": 5.0}),
        ("style_layers", "relu1_1=1, relu2_1=.5", {"relu1_1": 1.0, "relu2_1": 0.5}),
    ],
)
def test_text_becomes_the_options_kind(name: str, text: str, value: OptionValue) -> None:
    parsed = parse_option(name, text)
    assert parsed == value
    assert type(parsed) is type(value)
    assert options_dict(build_options({name: parsed})) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("size", "2.5", "size: must be a whole number"),
        ("size", "", "size: must be a whole number"),
        ("strength", "much", "strength: must be a number"),
        ("faces", "yes", "faces: must be true or false, not 'yes'"),
        ("style_layers", "relu1_1", "style_layers: write layers as TAP=WEIGHT"),
        ("style_layers", "relu1_1=x", "style_layers.relu1_1: must be a number"),
        ("style_layers", "relu1_1=1, relu1_1=2", "style_layers: relu1_1 is given twice"),
        ("style_layers", "=1", "style_layers: write layers as TAP=WEIGHT"),
        ("colour", "red", "colour: no such option; there are size, model"),
    ],
)
def test_other_text_is_refused_by_name(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_option(name, text)


def test_every_option_of_the_contract_has_text() -> None:
    fields = options_pb2.StylizeOptions.DESCRIPTOR.fields
    assert tuple(field.name for field in fields) == OPTION_NAMES
    for field in fields:
        plain = "true" if field.cpp_type == field.CPPTYPE_BOOL else "1"
        text = "relu1_1=1" if field.message_type else (option_choices(field.name) or [plain])[0]
        message = build_options({field.name: parse_option(field.name, text)})
        assert message.HasField(field.name)  # type: ignore[arg-type]


def test_choices_are_those_of_the_contract() -> None:
    assert option_choices("precision") == ["auto", "float32", "bfloat16"]
    assert option_choices("pooling") == ["max", "average"]
    assert option_choices("size") == []


def test_none_and_empty_layers_differ() -> None:
    assert not build_options({"style_layers": None}).HasField("style_layers")
    assert build_options({"style_layers": {}}).HasField("style_layers")


def test_zero_is_set() -> None:
    assert build_options({"strength": 0.0}).HasField("strength")
