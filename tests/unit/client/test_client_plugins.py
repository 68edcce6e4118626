"""Commands from entry points: listed without being imported, and clear when they are broken."""

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nst_client.cli import nst

COMMANDS = """\
import click

@click.command()
@click.option("--loud", is_flag=True)
def hello(loud):
    \"\"\"Say hello.\"\"\"
    click.echo("HELLO" if loud else "hello")

no_command = 3
"""
ENTRY_POINTS = """\
[nst.commands]
hello = plugin_under_test:hello
missing = plugin_under_test.not_there:command
number = plugin_under_test:no_command
info = plugin_under_test:no_command
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with commands, as pip would install it."""
    (tmp_path / "plugin_under_test.py").write_text(COMMANDS)
    metadata = tmp_path / "plugin_under_test-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-under-test\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_under_test", raising=False)
    importlib.invalidate_caches()


def test_listed_without_being_imported() -> None:
    shown = CliRunner().invoke(nst, ["--help"])
    assert "hello" in shown.output
    assert "missing" in shown.output
    assert "plugin_under_test" not in sys.modules


def test_called() -> None:
    assert CliRunner().invoke(nst, ["hello", "--loud"]).output == "HELLO\n"
    assert "Say hello." in CliRunner().invoke(nst, ["hello", "--help"]).output


@pytest.mark.parametrize(("name", "text"), [("missing", "cannot be loaded"), ("number", "is no command")])
def test_broken_ones_say_so(name: str, text: str) -> None:
    ended = CliRunner().invoke(nst, [name])
    assert ended.exit_code == 1
    assert f"the command {name} " in ended.output
    assert text in ended.output
    assert isinstance(ended.exception, SystemExit)


def test_an_entry_point_cannot_take_the_place_of_an_own_command() -> None:
    assert "what the server is" in CliRunner().invoke(nst, ["info", "--help"]).output


def test_an_unknown_command_is_usage() -> None:
    assert CliRunner().invoke(nst, ["paint"]).exit_code == 2
