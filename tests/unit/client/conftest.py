"""Fixtures for the client's tests."""

from collections.abc import Iterator

import pytest
from nst_command import nst as nst
from scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted
