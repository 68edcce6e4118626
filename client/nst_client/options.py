"""Options by name: from Python values or text into `StylizeOptions`, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from nst.v1 import options_pb2
from nst_client.formats import alike

OptionValue = int | float | bool | str | Mapping[str, float]

_FIELDS: Mapping[str, FieldDescriptor] = options_pb2.StylizeOptions.DESCRIPTOR.fields_by_name
_KINDS = {
    FieldDescriptor.CPPTYPE_UINT32: "a whole number",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
}
OPTION_NAMES = tuple(_FIELDS)


def build_options(values: Mapping[str, OptionValue | None]) -> options_pb2.StylizeOptions:
    """The message that sets these options; None leaves one unset, which is the server's default.

    Choices are given by their short names in small letters ("lbfgs"), layers as weights by tap.
    Ranges are the server's business.

    Raises:
        TypeError, ValueError: an option is unknown or its value of the wrong kind; the text names it.
    """
    message = options_pb2.StylizeOptions()
    for name, value in values.items():
        if value is not None:
            _set(message, _field(name), value)
    return message


def parse_option(name: str, text: str) -> OptionValue:
    """The value of an option written as text: 0.5, lbfgs, true, or relu4_2=5,relu3_1=1 for layers.

    Raises:
        ValueError: the option is unknown or the text is not such a value; the message names it.
    """
    field = _field(name)
    if field.message_type is not None:
        return _parse_layers(name, text)
    if field.enum_type is not None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _parse_flag(name, text)
    return _parse_number(name, text, float if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE else int)


def options_dict(message: options_pb2.StylizeOptions) -> dict[str, OptionValue]:
    """The options that are set, as `build_options` takes them."""
    values: dict[str, OptionValue] = {}
    for field, value in message.ListFields():
        if field.message_type is not None:
            values[field.name] = dict(value.weights)
        elif field.enum_type is not None:
            values[field.name] = short_names(field.enum_type).get(value, str(value))
        else:
            values[field.name] = value
    return values


def option_choices(name: str) -> list[str]:
    """The names of an option's choices; none for one that is a number, text or layers. Raises ValueError."""
    enum = _field(name).enum_type
    return list(short_names(enum).values()) if enum else []


def short_names(enum: EnumDescriptor) -> dict[int, str]:
    """An enum's values by number, without the prefix that protobuf style asks for: 1 to "lbfgs"."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values if value.number}


def enum_number(name: str, enum: EnumDescriptor, choice: object) -> int:
    """The number of an enum's value given by its short name. Raises ValueError listing the choices."""
    numbers = {short: number for number, short in short_names(enum).items()}
    if not isinstance(choice, str) or choice not in numbers:
        raise ValueError(f"{name}: must be one of {', '.join(numbers)}, not {choice!r}")
    return numbers[choice]


def set_scalar(message: Message, field: str, value: object, name: str) -> None:
    """Set a number, a flag or text of a message. Raises TypeError or ValueError; the text starts with `name`."""
    cpp_type = message.DESCRIPTOR.fields_by_name[field].cpp_type
    wrong = TypeError(f"{name}: must be {_KINDS[cpp_type]}, not {value!r}")
    if isinstance(value, bool) and cpp_type != FieldDescriptor.CPPTYPE_BOOL:  # protobuf takes one for a double
        raise wrong
    try:
        setattr(message, field, value)
    except TypeError:
        raise wrong from None
    except ValueError:
        raise ValueError(f"{name}: {value!r} is out of range") from None


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A TypeError or ValueError of the block, with a text that starts with `name`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise alike(error, f"{name}: {error}") from None


def _field(name: str) -> FieldDescriptor:
    if name not in _FIELDS:
        raise ValueError(f"{name}: no such option; there are {', '.join(_FIELDS)}")
    return _FIELDS[name]


def _set(message: options_pb2.StylizeOptions, field: FieldDescriptor, value: OptionValue) -> None:
    if field.message_type is not None:
        if not isinstance(value, Mapping):
            raise TypeError(f"{field.name}: must be weights by tap, such as {{'relu4_2': 1.0}}, not {value!r}")
        layers: options_pb2.LayerWeights = getattr(message, field.name)
        layers.SetInParent()
        for tap, weight in value.items():
            if not isinstance(tap, str):
                raise TypeError(f"{field.name}: taps must be text, not {tap!r}")
            if not isinstance(weight, Real):
                raise TypeError(f"{field.name}.{tap}: must be a number, not {weight!r}")
            layers.weights[tap] = float(weight)
    elif field.enum_type is not None:
        setattr(message, field.name, enum_number(field.name, field.enum_type, value))
    else:
        set_scalar(message, field.name, value, field.name)


def _parse_layers(name: str, text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        tap, equals, weight = part.strip().partition("=")
        if not (tap and equals):
            raise ValueError(
                f"{name}: write layers as TAP=WEIGHT,TAP=WEIGHT, such as relu4_2=5,relu3_1=1, not {text!r}"
            )
        if tap in weights:
            raise ValueError(f"{name}: {tap} is given twice")
        weights[tap] = float(_parse_number(f"{name}.{tap}", weight, float))
    return weights


def _parse_flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{name}: must be true or false, not {text!r}")
    return text == "true"


def _parse_number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: must be a {'whole number' if kind is int else 'number'}, not {text!r}") from None
