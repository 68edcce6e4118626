"""StylizeOptions between the wire and the engine's dataclass, field by field of the same name."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from nst.v1 import job_pb2, options_pb2
from nst_engine.options import OptionError, StylizeOptions, from_fields


def options_from_proto(message: options_pb2.StylizeOptions) -> StylizeOptions:
    """The engine's options; unset fields take their defaults.

    Raises:
        OptionError: a value is not allowed; `field` is the proto field's name.
    """
    return from_fields({field.name: _value(field, value) for field, value in message.ListFields()})


def options_to_proto(options: StylizeOptions) -> options_pb2.StylizeOptions:
    """The wire form, with every field set that has a value."""
    message = options_pb2.StylizeOptions()
    for field in message.DESCRIPTOR.fields:
        value = getattr(options, field.name)
        if value is None:
            continue
        if field.message_type is not None:
            getattr(message, field.name).SetInParent()
            getattr(message, field.name).weights.update(value)
        elif field.enum_type is not None:
            setattr(
                message, field.name, field.enum_type.values_by_name[_prefix(field.enum_type) + value.upper()].number
            )
        else:
            setattr(message, field.name, value)
    return message


def steering_from_proto(update: job_pb2.JobUpdate) -> dict[str, Any]:
    """What an update sets of the arguments of `Session.update`."""
    given = {field.name: value for field, value in update.ListFields() if field.name not in ("paused", "priority")}
    for name in ("content_layers", "style_layers"):
        if name in given:
            given[name] = _layers(given[name])
    if "style_shares" in given:
        given["style_shares"] = list(update.style_shares)
    return given


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _layers(value.weights)
    if field.enum_type is None:
        return value
    known = field.enum_type.values_by_number
    if value not in known or value == 0:
        names = ", ".join(entry.name for number, entry in known.items() if number)
        raise OptionError(field.name, f"must be one of {names}, not {value}")
    return known[value].name.removeprefix(_prefix(field.enum_type)).lower()


def _layers(weights: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(weights.items()))


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def style_scale(style: job_pb2.Style) -> float:
    """1 where it is unset, as also in a job of before there were any."""
    return style.scale if style.HasField("scale") else 1.0
