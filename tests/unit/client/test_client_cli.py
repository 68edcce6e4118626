"""The `nst` command: what it sends, prints, saves and exits with."""

import hashlib
from pathlib import Path

import grpc
import pytest
from nst_command import Nst, png
from scripted_server import (
    JOB_ID,
    ScriptedServer,
    abort,
    out_of_time_event,
    preview_event,
    progress_event,
    result_event,
    result_messages,
    state_event,
)

from nst.v1 import job_pb2, options_pb2

PREVIEW, RESULT = png(1), png(2)


def publish_history(server: ScriptedServer) -> None:
    server.publish(
        state_event(job_pb2.JOB_STATE_QUEUED),
        state_event(job_pb2.JOB_STATE_RUNNING),
        progress_event(1),
        preview_event(5, PREVIEW),
        result_event(RESULT),
    )


def test_stylize_saves_exactly_what_the_server_delivers(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    server.result = result_messages(RESULT)
    ended = nst("stylize", *pictures, "-o", tmp_path / "out.png", "--server", server.address)
    assert ended.code == 0
    assert ended.out == ""
    assert "result: 4x3" in ended.err
    assert server.received["WatchJob"][0].omit_pictures  # nobody looks at previews
    assert (tmp_path / "out.png").read_bytes() == RESULT
    assert set(server.uploads.values()) == {picture.read_bytes() for picture in pictures}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["content.png", "out.png", "style.png"]


def test_stylize_sends_the_options(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    content, style = pictures
    options = ["--size", 64, "--iterations", 7, "--strength", 0.75, "--seed", 3, "--preview-interval", 2]
    options += ["--option", "optimizer=adam", "--option", "content_layers=relu4_2=5,relu3_1=1"]
    options += ["--option", "parametrization=fourier"]
    ended = nst(
        "stylize", content, style, content, "-o", tmp_path / "o.webp", "--json", "--server", server.address, *options
    )
    assert ended.code == 0
    spec = server.received["CreateJob"][0].spec
    assert spec.options == options_pb2.StylizeOptions(
        size=64,
        iterations=7,
        strength=0.75,
        seed=3,
        optimizer=options_pb2.OPTIMIZER_ADAM,
        parametrization=options_pb2.PARAMETRIZATION_FOURIER,
        content_layers=options_pb2.LayerWeights(weights={"relu4_2": 5.0, "relu3_1": 1.0}),
    )
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (style, content)]
    assert [style.image.reference.sha256 for style in spec.styles] == digests
    assert spec.preview == job_pb2.PreviewOptions(interval=2)


@pytest.mark.parametrize(("suffix", "codec"), [(".png", 1), (".jpg", 2), (".JPEG", 2), (".webp", 3)])
def test_the_suffix_chooses_the_codec(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path, suffix: str, codec: int
) -> None:
    publish_history(server)
    nst("stylize", *pictures, "-o", tmp_path / f"out{suffix}", "--json", "--server", server.address)
    assert server.received["CreateJob"][0].spec.result_format.encoded.codec == codec
    assert (tmp_path / f"out{suffix}").read_bytes() == RESULT


def test_the_quality_is_that_of_a_file_that_has_one(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    arguments = ("stylize", *pictures, "--quality", "95", "--server", server.address, "-o")
    refused = nst(*arguments, tmp_path / "out.png")
    assert (refused.code, "--quality" in refused.err, server.received) == (2, True, {})
    nst(*arguments, tmp_path / "out.webp")
    assert server.received["CreateJob"][0].spec.result_format.encoded.quality == 95


def test_stylize_starts_from_a_picture(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    (tmp_path / "initial.png").write_bytes(png(5))
    target = ("-o", tmp_path / "o.png", "--server", server.address)
    assert nst("stylize", *pictures, "--init-image", tmp_path / "initial.png", *target).code == 0
    spec = server.received["CreateJob"][0].spec
    assert server.uploads[spec.initial.reference.sha256] == png(5)


def test_styles_are_placed_by_number(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    content, style = pictures
    for number in (5, 6, 7):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    masks = ["--region", f"2={tmp_path / '5.png'}", "--source-region", f"1={tmp_path / '6.png'}"]
    masks += ["--region", f"1={tmp_path / '7.png'}", "--weight", "2=0.25", "--style-scale", "1=0.5"]
    ended = nst("stylize", content, style, content, *masks, "-o", tmp_path / "o.png", "--server", server.address)
    assert ended.code == 0
    first, second = server.received["CreateJob"][0].spec.styles
    assert server.uploads[first.region.reference.sha256] == png(7)
    assert server.uploads[first.source_region.reference.sha256] == png(6)
    assert server.uploads[second.region.reference.sha256] == png(5)
    assert not second.HasField("source_region")
    assert (first.HasField("weight"), second.weight) == (False, 0.25)
    assert (first.scale, second.HasField("scale")) == (0.5, False)


def test_stylize_protects_a_subject(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    (tmp_path / "mask.png").write_bytes(png(6))
    target = ("-o", tmp_path / "o.png", "--server", server.address)
    assert nst("stylize", *pictures, "--subject", tmp_path / "mask.png", "--faces", *target).code == 0
    spec = server.received["CreateJob"][0].spec
    assert server.uploads[spec.subject.reference.sha256] == png(6)
    assert spec.options == options_pb2.StylizeOptions(faces=True)


def test_stylize_fills_a_hole(nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    """With styles and without; without either there is nothing to do."""
    publish_history(server)
    content, style = pictures
    (tmp_path / "mask.png").write_bytes(png(6))
    target = ("-o", tmp_path / "o.png", "--server", server.address)
    for styles in ((), (style,)):
        assert nst("stylize", content, *styles, "--hole", tmp_path / "mask.png", *target).code == 0
        spec = server.received["CreateJob"][-1].spec
        assert server.uploads[spec.hole.reference.sha256] == png(6)
        assert len(spec.styles) == len(styles)
    ended = nst("stylize", content, *target)
    assert ended.code == 2
    assert "--hole" in ended.err


def test_options_that_are_not_given_stay_unset(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_history(server)
    nst("stylize", *pictures, "-o", tmp_path / "o.png", "--json", "--server", server.address)
    spec = server.received["CreateJob"][0].spec
    assert spec.options == options_pb2.StylizeOptions()
    assert spec.preview == job_pb2.PreviewOptions()


def test_json_lines(nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    publish_history(server)
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--json", "--server", server.address)
    events = ended.lines
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["event"] for event in events] == ["state", "state", "progress", "preview", "result"]
    assert all(event["job_id"] == JOB_ID for event in events)
    assert [event["job_state"] for event in events[:2]] == ["JOB_STATE_QUEUED", "JOB_STATE_RUNNING"]
    assert events[1]["state"] == "JOB_STATE_RUNNING"
    progress = job_pb2.Progress.DESCRIPTOR.fields_by_name.keys()
    assert events[2].keys() == {"sequence", "event", "job_id", "time", "attempt", "job_state", *progress}
    assert (events[2]["iteration"], events[2]["losses"]) == (1, {"content": 10.0, "style": 90.0})
    for event, data in ((events[3], PREVIEW), (events[4], RESULT)):
        assert event["bytes"] == len(data)
        assert event["sha256"] == hashlib.sha256(data).hexdigest()
    assert events[3]["iteration"] == 5
    assert (events[4]["run_seconds"], events[4]["stop_reason"]) == (1.5, "iterations")


def test_an_early_end_is_explained(nst: Nst, server: ScriptedServer) -> None:
    server.publish(result_event(b"", job_pb2.STOP_REASON_IMPROVEMENT))
    ended = nst("jobs", "watch", JOB_ID, "--server", server.address)
    assert "10 iterations in 1.5 s; the loss stood still" in ended.err


def test_iterations_that_were_undone_are_told(nst: Nst, server: ScriptedServer) -> None:
    progress, result = progress_event(1), result_event(b"", job_pb2.STOP_REASON_DIVERGENCE)
    progress.progress.undone = result.result.progress.undone = 7
    server.publish(progress, result)
    said = nst("jobs", "watch", JOB_ID, "--server", server.address).err
    assert "10 iterations (7 undone) in 1.5 s; every further step diverged" in said
    events = nst("jobs", "watch", JOB_ID, "--json", "--server", server.address).lines
    assert events[0]["undone"] == 7
    assert (events[1]["stop_reason"], events[1]["progress"]["undone"]) == ("divergence", 7)


def test_json_has_no_nan(nst: Nst, server: ScriptedServer) -> None:
    event = progress_event(1)
    event.progress.seconds_left = float("inf")
    event.progress.total_loss = float("nan")
    server.publish(event, result_event(b""))
    (progress, _) = nst("jobs", "watch", JOB_ID, "--json", "--server", server.address).lines
    assert (progress["seconds_left"], progress["total_loss"]) == (None, None)


def test_a_result_too_big_for_its_event_is_told_by_its_bytes(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.publish(result_event(None))
    server.result = result_messages(RESULT)
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--json", "--server", server.address)
    (event,) = ended.lines
    assert (event["bytes"], event["sha256"]) == (len(RESULT), hashlib.sha256(RESULT).hexdigest())
    assert (tmp_path / "o.png").read_bytes() == RESULT


def test_a_failed_job_exits_with_1(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    error = job_pb2.JobError(code=8, reason="OUT_OF_MEMORY", message="use a smaller size")
    server.publish(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_FAILED, error=error))
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--json", "--server", server.address)
    assert ended.code == 1
    (event,) = ended.lines
    assert (event["event"], event["code"], event["reason"]) == ("error", 8, "OUT_OF_MEMORY")
    assert event["message"] == "use a smaller size"
    assert "use a smaller size" in ended.err
    assert not (tmp_path / "o.png").exists()


def test_a_job_that_somebody_cancels_exits_with_1(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_CANCELLED, "by an operator"))
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--server", server.address)
    assert ended.code == 1
    assert "by an operator" in ended.err


def test_a_refusal_exits_with_1_and_says_why(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.breaks["CreateJob"].append(abort(grpc.StatusCode.INVALID_ARGUMENT, "size: must be from 16 to 2048"))
    ended = nst("stylize", *pictures, "-o", tmp_path / "o.png", "--json", "--size", 1, "--server", server.address)
    assert (ended.code, ended.out) == (1, "")
    assert "size: must be from 16 to 2048" in ended.err


def test_no_server_there_exits_with_1_and_names_the_address(nst: Nst) -> None:
    with ScriptedServer() as gone:
        address = gone.address
    ended = nst("info", "--server", address)
    assert ended.code == 1
    assert address in ended.err


def test_the_server_may_come_from_the_environment(
    nst: Nst, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_SERVER", server.address)
    assert "server version scripted" in nst("info").out


USAGE = {
    "no style": (["CONTENT", "-o", "OUT"], "STYLE"),
    "no output": (["CONTENT", "STYLE"], "--output"),
    "suffix": (["CONTENT", "STYLE", "-o", "out.gif"], "must be one of .png"),
    "folder": (["CONTENT", "STYLE", "-o", "/none/out.png"], "/none does not exist"),
    "missing picture": (["none.png", "STYLE", "-o", "OUT"], "none.png"),
    "unknown option": (["CONTENT", "STYLE", "-o", "OUT", "--option", "sise=3"], "sise: no such option"),
    "option without value": (["CONTENT", "STYLE", "-o", "OUT", "--option", "size"], "write NAME=VALUE"),
    "option given twice": (["CONTENT", "STYLE", "-o", "OUT", "--size", "3", "--option", "size=4"], "given twice"),
    "no text": (["CONTENT", "STYLE", "-o", "OUT", "--option", "model=\udcff"], "is not UTF-8"),
    "no number": (["CONTENT", "STYLE", "-o", "OUT", "--size", "big"], "size: must be a whole number"),
    "out of range": (["CONTENT", "STYLE", "-o", "OUT", "--size=-1"], "size: -1 is out of range"),
    "unknown choice": (["CONTENT", "STYLE", "-o", "OUT", "--option", "init=dream"], "must be one of content, noise"),
    "mask of no style": (["CONTENT", "STYLE", "-o", "OUT", "--region", "2=STYLE"], "with N from 1 to 1, not '2=STYLE'"),
    "mask without style": (["CONTENT", "STYLE", "-o", "OUT", "--source-region", "m.png"], "write N=MASK"),
    "missing mask": (["CONTENT", "STYLE", "-o", "OUT", "--region", "1=none.png"], "none.png"),
    "two masks": (
        ["CONTENT", "STYLE", "-o", "OUT", "--region", f"1={__file__}", "--region", f"1={__file__}"],
        "style 1 is given twice",
    ),
    "weight of no style": (["CONTENT", "STYLE", "-o", "OUT", "--weight", "2=1"], "write N=W with N from 1 to 1"),
    "no weight": (["CONTENT", "STYLE", "-o", "OUT", "--weight", "1=0"], "Invalid value for --weight: 0.0 is not in"),
    "NaN for a weight": (["CONTENT", "STYLE", "-o", "OUT", "--weight", "1=nan"], "--weight: nan is no finite number"),
    "infinite weight": (["CONTENT", "STYLE", "-o", "OUT", "--weight", "1=inf"], "--weight: inf is no finite number"),
    "NaN for a scale": (["CONTENT", "STYLE", "-o", "OUT", "--style-scale", "1=nan"], "nan is no finite number"),
    "no time": (["CONTENT", "STYLE", "-o", "OUT", "--time-limit", "0"], "'--time-limit'"),
    "NaN for a time": (["CONTENT", "STYLE", "-o", "OUT", "--time-limit", "nan"], "'--time-limit'"),
    "infinite time": (["CONTENT", "STYLE", "-o", "OUT", "--time-limit", "inf"], "'--time-limit'"),
    "too long a time": (["CONTENT", "STYLE", "-o", "OUT", "--time-limit", "1e10"], "'--time-limit'"),
    "interval": (["CONTENT", "STYLE", "-o", "OUT", "--preview-interval", "5000000000"], "'--preview-interval'"),
    "empty picture": (["EMPTY", "STYLE", "-o", "OUT"], "is empty"),
}


@pytest.mark.parametrize(("arguments", "text"), USAGE.values(), ids=USAGE)
def test_wrong_usage_exits_with_2(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path, arguments: list[str], text: str
) -> None:
    (tmp_path / "empty.png").touch()
    names = {"CONTENT": pictures[0], "STYLE": pictures[1], "OUT": tmp_path / "o.png", "EMPTY": tmp_path / "empty.png"}
    ended = nst("stylize", "--server", server.address, *(names.get(argument, argument) for argument in arguments))
    assert ended.code == 2
    assert text in " ".join(ended.err.split())
    assert not server.received


@pytest.mark.parametrize(
    ("arguments", "number"),
    [([], job_pb2.PRIORITY_UNSPECIFIED), (["--priority", "batch"], job_pb2.PRIORITY_BATCH)],
)
def test_a_job_may_be_one_that_nobody_waits_for(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path, arguments: list[str], number: int
) -> None:
    server.publish(result_event(RESULT))
    server.result = result_messages(RESULT)
    assert nst("stylize", *pictures, "-o", tmp_path / "out.png", "--server", server.address, *arguments).code == 0
    assert server.received["CreateJob"][0].spec.priority == number


def test_out_of_time_saves_the_best_picture_and_fails(
    nst: Nst, server: ScriptedServer, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    server.publish(progress_event(7), out_of_time_event(iterations=7))
    server.result = result_messages(RESULT)
    out = tmp_path / "out.png"
    ended = nst("stylize", *pictures, "-o", out, "--json", "--time-limit", 2.5, "--server", server.address)
    assert ended.code == 1
    assert out.read_bytes() == RESULT
    assert f"{out} is the best picture so far" in ended.err
    assert "the time limit passed" in ended.err
    assert server.received["CreateJob"][0].spec.time_limit.ToNanoseconds() == 2_500_000_000
    last = ended.lines[-1]
    assert (last["event"], last["code"], last["reason"]) == ("error", 4, "DEADLINE_EXCEEDED")
    assert last["partial"]["iterations"] == 7
    assert last["partial"]["reference"] == {"sha256": "c" * 64, "width": 4, "height": 3}
