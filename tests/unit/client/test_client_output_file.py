"""Where a result can be saved is known before any work is done for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nst_command import Nst
from scripted_server import JOB_ID, ScriptedServer, result_event, result_messages

LONGEST_NAME = 255


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_itself(path: Path) -> Path:
    path.symlink_to(path)
    return path


UNWRITABLE: dict[str, Callable[[Path], Path]] = {
    "a folder": folder,
    "a pipe": pipe,
    "a link to itself": link_to_itself,
    "where nothing can be made": lambda path: Path("/proc/out.png"),
    "too long a name": lambda path: path.with_name(f"{'n' * LONGEST_NAME}.png"),
    "in too long a name": lambda path: path / ("n" * (LONGEST_NAME + 1)) / "out.png",
    "in no folder": lambda path: path / "out.png",
}


@pytest.mark.parametrize("make", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_written_is_a_usage_error(
    nst: Nst, server: ScriptedServer, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    server.publish(result_event(b"a result"))
    path = make(tmp_path / "out.png")
    before = list(tmp_path.iterdir())
    ended = nst("jobs", "result", JOB_ID, "-o", path, "--server", server.address)
    assert ended.code == 2
    assert "--output" in ended.err
    assert not server.received
    assert list(tmp_path.iterdir()) == before


INPUTS = ("content", "style", "--init-image", "--subject", "--hole", "--region", "--source-region")


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("linked", [False, True])
def test_a_picture_to_work_from_is_not_written_over(
    nst: Nst, server: ScriptedServer, tmp_path: Path, name: str, linked: bool
) -> None:
    server.publish(result_event(b"a result"))
    paths = {name: tmp_path / f"{name.strip('-')}.png" for name in INPUTS}
    for path in paths.values():
        path.write_bytes(path.name.encode())
    output = tmp_path / "link.png" if linked else paths[name]
    if linked:
        output.symlink_to(paths[name])
    masks = [word for name in INPUTS[2:5] for word in (name, paths[name])]
    masks += [word for name in INPUTS[5:] for word in (name, f"1={paths[name]}")]
    command = ["stylize", paths["content"], paths["style"], *masks, "--server", server.address, "-o"]
    ended = nst(*command, output)
    assert ended.code == 2
    assert f"--output: {output} is one of the pictures to work from" in " ".join(ended.err.split())
    assert not server.received
    assert paths[name].read_bytes() == paths[name].name.encode()
    assert nst(*command, tmp_path / "out.png").code == 0


@pytest.fixture
def save(nst: Nst, server: ScriptedServer) -> Callable[[Path], None]:
    """Saves a result as such a file."""
    server.publish(result_event(b"a result"))
    server.result = result_messages(b"a result")

    def saving(path: Path) -> None:
        assert nst("jobs", "result", JOB_ID, "-o", path, "--server", server.address).code == 0

    return saving


def test_a_name_may_be_as_long_as_names_can_be(save: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / ("n" * (LONGEST_NAME - 4) + ".png")
    save(path)
    assert path.read_bytes() == b"a result"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(save: Callable[[Path], None], tmp_path: Path, exists: bool) -> None:
    target, link = folder(tmp_path / "elsewhere") / "target.png", tmp_path / "link.png"
    if exists:
        target.write_bytes(b"an older result")
    link.symlink_to(os.path.relpath(target, tmp_path))
    save(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"a result"
    assert list(target.parent.iterdir()) == [target]
