"""`--previews` saves what comes on the way, and says what does not."""

from pathlib import Path

import pytest
from nst_command import Nst
from scripted_server import ScriptedServer, preview_event, result_event

from nst.v1 import job_pb2

PREVIEW, RESULT = b"a preview", b"a result"


def test_previews_are_saved_by_iteration(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.publish(preview_event(5, PREVIEW), result_event(RESULT))
    folder = tmp_path / "a" / "previews"
    nst("stylize", *pictures, "-o", tmp_path / "o.png", "--previews", folder, "--server", server.address)
    assert [path.name for path in folder.iterdir()] == ["0005.png"]
    assert (folder / "0005.png").read_bytes() == PREVIEW
    assert not server.received["WatchJob"][0].omit_pictures


@pytest.mark.parametrize("folder", ["/proc", "/proc/previews", "n" * 256])
def test_where_no_previews_can_be_saved_is_known_before_any_work(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path, folder: str
) -> None:
    server.publish(preview_event(5, PREVIEW), result_event(RESULT))
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--previews", folder, "--server", server.address)
    assert ended.code == 2
    assert "--previews" in ended.err
    assert not server.received


def test_previews_that_come_without_their_pictures_are_told_of(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    dropped = job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, preview=job_pb2.Preview(iteration=7))
    server.publish(preview_event(5, PREVIEW), dropped, result_event(RESULT))
    folder = tmp_path / "previews"
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--previews", folder, "--server", server.address)
    assert ended.code == 0
    assert [path.name for path in folder.iterdir()] == ["0005.png"]
    assert "did not come in time: 1" in ended.err
    quiet = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--server", server.address)
    assert "in time" not in quiet.err


def test_no_preview_takes_the_place_of_a_picture_to_work_from(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.publish(result_event(RESULT))
    earlier = pictures[0].rename(tmp_path / "0010.png")
    command = ["stylize", earlier, pictures[1], "-o", tmp_path / "o.png", "--server", server.address, "--previews"]
    refused = nst(*command, tmp_path)
    assert (refused.code, server.received) == (2, {})
    assert "--previews" in refused.err
    earlier.rename(pictures[0])
    command[1] = pictures[0]
    assert nst(*command, tmp_path).code == 0


def test_a_job_that_was_left_to_the_server_gives_its_previews_to_who_watches(
    nst: Nst, server: ScriptedServer, tmp_path: Path
) -> None:
    dropped = job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, preview=job_pb2.Preview(iteration=7))
    server.publish(preview_event(5, PREVIEW), dropped, result_event(RESULT))
    watch = ["jobs", "watch", "abc", "--server", server.address, "--previews"]
    ended = nst(*watch, tmp_path / "previews")
    assert (tmp_path / "previews" / "0005.png").read_bytes() == PREVIEW
    assert (ended.code, len(list((tmp_path / "previews").iterdir()))) == (0, 1)
    assert "did not come in time: 1" in ended.err
    assert nst(*watch, "/proc/previews").code == 2
