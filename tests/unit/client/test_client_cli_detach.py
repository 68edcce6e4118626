"""`nst stylize --detach` makes a job and leaves it to the server."""

from pathlib import Path

import pytest
from nst_command import Nst
from scripted_server import JOB_ID, ScriptedServer, result_event

from nst.v1 import image_pb2


def test_the_id_is_printed_and_nothing_is_followed(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path]
) -> None:
    command = ("stylize", *pictures, "--detach", "--server", server.address)
    plain, lines = nst(*command), nst(*command, "--json")
    assert (plain.code, plain.out, plain.err) == (0, f"{JOB_ID}\n", "")
    assert (lines.code, lines.lines) == (0, [{"job_id": JOB_ID}])
    assert set(server.received) == {"UploadImage", "CreateJob"}
    # As with an -o for a .png: who comes back with one and the same --request-id asks for the same job.
    assert server.received["CreateJob"][0].spec.result_format.encoded == image_pb2.EncodedFormat(codec=1)


def test_the_output_only_says_what_the_result_is_to_be(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    before = list(tmp_path.iterdir())
    output = ("-o", tmp_path / "out.jpg", "--quality", 90)
    assert nst("stylize", *pictures, *output, "--detach", "--server", server.address).code == 0
    form = server.received["CreateJob"][0].spec.result_format.encoded
    assert (form.codec, form.quality) == (image_pb2.CODEC_JPEG, 90)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--previews", "previews", "--server", "SERVER"], "--previews needs somebody who follows the job"),
        (["--quality", 90, "--server", "SERVER"], "--quality: is that of an --output, which is not given"),
        ([], "which server? Give --server HOST:PORT"),
    ],
)
def test_what_makes_no_sense_without_following_is_a_usage_error(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], arguments: list[object], words: str
) -> None:
    given = [server.address if argument == "SERVER" else argument for argument in arguments]
    ended = nst("stylize", *pictures, "--detach", *given)
    assert ended.code == 2
    assert words in " ".join(ended.err.split())
    assert not server.received


@pytest.mark.parametrize("how", [["--detach"], ["-o", "OUT"]])
def test_a_request_may_have_a_name(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path, how: list[str]
) -> None:
    server.publish(result_event(b"a result"))
    given = [tmp_path / "out.png" if argument == "OUT" else argument for argument in how]
    assert nst("stylize", *pictures, *given, "--request-id", "mine", "--server", server.address).code == 0
    assert server.received["CreateJob"][0].request_id == "mine"
