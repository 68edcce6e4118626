"""Fixtures for the client's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nst_command import nst as nst
from nst_command import png
from scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A content and a style."""
    content, style = tmp_path / "content.png", tmp_path / "style.png"
    content.write_bytes(png(3))
    style.write_bytes(png(4))
    return content, style
