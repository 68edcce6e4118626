"""No setting takes a number that would do something else than it says."""

import math
from dataclasses import fields

import pytest

from nst_server.config import GatewaySettings, ModelServerSettings, Settings, StoreSettings

KINDS = (StoreSettings, GatewaySettings, ModelServerSettings)
NUMBERS = [
    (kind, one.name, one.metadata["zero"]) for kind in KINDS for one in fields(kind) if not isinstance(one.default, str)
]
# What gRPC, a message, the engine or clients cannot have, and the nearest that they can.
OUT_OF_RANGE = {
    "max_message_bytes": (2**31, 2**31 - 1),
    "preview_interval": (2**32, 2**32 - 1),
    "max_size": (15, 16),
    "heartbeat_seconds": (21, 20),
}


@pytest.mark.parametrize(("kind", "name", "zero"), NUMBERS, ids=[name for _, name, _ in NUMBERS])
def test_numbers_that_mean_nothing_are_refused_by_name(kind: type[Settings], name: str, zero: bool):
    for value in (-1, math.nan, math.inf, *(() if zero else (0,))):
        with pytest.raises(ValueError, match=f"^{name}: must be"):
            kind(**{name: value})
    kind(**{name: OUT_OF_RANGE.get(name, (0, 1))[1]})
    if zero:
        kind(**{name: 0})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_numbers_that_would_break_every_call_are_refused_by_name(name: str):
    wrong, right = OUT_OF_RANGE[name]
    with pytest.raises(ValueError, match=f"^{name}: must be (from [0-9]+ to|at least) [0-9]+, not {wrong}$"):
        GatewaySettings(**{name: wrong})
    GatewaySettings(**{name: right})


def test_what_destroys_at_zero_may_not_be_zero():
    """The keeper makes room below a limit: of none it would leave nothing."""
    may_be_zero = {name for _, name, zero in NUMBERS if zero}
    assert not may_be_zero & {"max_event_bytes", "max_record_bytes", "max_picture_bytes", "retention_hours"}
    assert "max_tenant_requests_per_second" not in may_be_zero
