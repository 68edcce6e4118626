"""The engine's options are the contract's, each with the same values to choose from."""

from dataclasses import fields

import pytest
from google.protobuf.descriptor import FieldDescriptor

from nst.v1.options_pb2 import StylizeOptions as Message
from nst_engine.options import StylizeOptions
from nst_server.options import options_from_proto, options_to_proto

CHOICES = [field for field in Message.DESCRIPTOR.fields if field.enum_type is not None]


def test_every_option_is_in_the_contract_and_no_other():
    assert {field.name for field in Message.DESCRIPTOR.fields} == {field.name for field in fields(StylizeOptions)}


@pytest.mark.parametrize("field", CHOICES, ids=lambda field: field.name)
def test_every_choice_is_in_the_contract_and_no_other(field: FieldDescriptor):
    (option,) = (option for option in fields(StylizeOptions) if option.name == field.name)
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    named = {value.name.removeprefix(prefix).lower() for value in field.enum_type.values if value.number}
    assert named == set(option.metadata["choices"])


def test_the_defaults_survive_the_wire():
    assert options_from_proto(options_to_proto(StylizeOptions())) == StylizeOptions()
