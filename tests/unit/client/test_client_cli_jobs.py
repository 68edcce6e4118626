"""`nst jobs` and `nst info`."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from nst_command import Nst
from scripted_server import (
    JOB_ID,
    ScriptedServer,
    out_of_time_event,
    preview_event,
    progress_event,
    result_event,
    result_messages,
    state_event,
)

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst_client import EncodedFormat, ImageRef, TensorFormat


def publish_history(server: ScriptedServer) -> None:
    server.publish(
        state_event(job_pb2.JOB_STATE_QUEUED),
        state_event(job_pb2.JOB_STATE_RUNNING),
        progress_event(1),
        preview_event(5, b"a preview"),
        result_event(b"a result"),
    )


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["get", "x"],
        ["cancel", "x"],
        ["delete", "x"],
        ["watch", "x"],
        ["pause", "x"],
        ["resume", "x"],
        ["steer", "x", "--strength", "1"],
    ],
)
def test_jobs_need_a_server(nst: Nst, command: list[str]) -> None:
    ended = nst("jobs", *command)
    assert ended.code == 2
    assert "--server HOST:PORT" in ended.err


@pytest.mark.parametrize("given", [["--tenant", "acme"], []])
def test_jobs_are_a_tenants(
    nst: Nst, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    if not given:
        monkeypatch.setenv("NST_TENANT", "acme")
    assert nst("jobs", "list", "--server", server.address, *given).code == 0
    assert server.metadata[0]["x-nst-tenant"] == "acme"


def test_what_is_no_name_of_a_tenant_is_a_usage_error(nst: Nst, server: ScriptedServer) -> None:
    ended = nst("jobs", "list", "--server", server.address, "--tenant", "a b")
    assert ended.code == 2
    assert "--tenant: must have 1 to 64 letters" in ended.err


def test_jobs_list_and_get(nst: Nst, server: ScriptedServer) -> None:
    server.jobs = [job_pb2.Job(job_id=f"job-{n}", state=job_pb2.JOB_STATE_RUNNING, tenant="acme") for n in range(3)]
    shown = nst("jobs", "list", "--state", "running", "--server", server.address)
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [[f"job-{n}", "running"] for n in range(3)]
    assert server.received["ListJobs"][0].states == [job_pb2.JOB_STATE_RUNNING]
    listed = nst("jobs", "list", "--json", "--server", server.address).lines
    assert [(job["job_id"], job["state"], job["tenant"]) for job in listed] == [
        (f"job-{n}", "JOB_STATE_RUNNING", "acme") for n in range(3)
    ]
    publish_history(server)
    (job,) = nst("jobs", "get", JOB_ID, "--json", "--server", server.address).lines
    assert (job["job_id"], job["state"], job["last_sequence"]) == (JOB_ID, "JOB_STATE_SUCCEEDED", 5)


def test_a_job_is_told_in_words(nst: Nst, server: ScriptedServer) -> None:
    def reference(digit: str) -> image_pb2.Image:
        return ImageRef(digit * 64).to_proto()

    styles: list[Any] = [
        {"image": reference("b"), "scale": 0.5, "region": reference("c"), "source_region": reference("d")},
        {"image": reference("e"), "weight": 2.5},
    ]
    spec = job_pb2.JobSpec(
        content=reference("a"),
        styles=styles,
        subject=reference("f"),
        options=options_pb2.StylizeOptions(
            size=64, faces=False, style_layers=options_pb2.LayerWeights(weights={"relu1_1": 1, "relu2_1": 0.5})
        ),
        result_format=EncodedFormat("jpeg", 90).to_proto(),
        preview={"format": TensorFormat("float16", "CHW").to_proto()},
        time_limit=Duration(seconds=90),
    )
    failed = out_of_time_event(iterations=7).error
    job = job_pb2.Job(job_id="told", spec=spec, state=job_pb2.JOB_STATE_FAILED, error=failed)
    job.progress.CopyFrom(progress_event(3).progress)
    job.create_time.FromSeconds(1_700_000_000)
    server.jobs = [job]
    shown = nst("jobs", "get", "told", "--server", server.address).out
    rows = dict(re.split("  +", line.strip(), maxsplit=1) for line in shown.splitlines())
    expected = {
        "job_id": "told",
        "state": "failed",
        "content": "a" * 64,
        "style 1": f"{'b' * 64}, weight 1, scale 0.5, region {'c' * 64}, source region {'d' * 64}",
        "style 2": f"{'e' * 64}, weight 2.5",
        "subject": "f" * 64,
        "option size": "64",
        "option faces": "false",
        "option style_layers": "relu1_1=1, relu2_1=0.5",
        "priority": "interactive",
        "create_time": "2023-11-14 22:13:20 UTC",
        "progress": "3/10  2.0 it/s 0:07 left  scale 1/1 4x3  loss 33.3: content 3.3 style 30",
        "error": f"DEADLINE_EXCEEDED: the time limit passed; the best picture so far, of 7 iterations, is {'c' * 64}",
        "time_limit": "90 s",
        "result_format": "jpeg 90",
        "preview_format": "float16 CHW",
    }
    assert {name: rows.get(name) for name in expected} == expected
    assert "hole" not in rows
    assert "2023-11-14 22:13:20 UTC" in nst("jobs", "list", "--server", server.address).out


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1", "TERM": "dumb"}])
def test_ids_and_digests_are_whole(
    nst: Nst, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, terminal: dict[str, str]
) -> None:
    for name, value in {"COLUMNS": "40", **terminal}.items():
        monkeypatch.setenv(name, value)
    job_id, digest, tenant = "2f183a4e" * 4, "c0ffee42" * 8, "t" * 64
    job = job_pb2.Job(job_id=job_id, state=job_pb2.JOB_STATE_RUNNING, tenant=tenant)
    job.spec.content.reference.sha256 = digest
    server.jobs = [job]
    listed = nst("jobs", "list", "--server", server.address).out
    assert job_id in listed
    assert tenant in listed
    assert digest in nst("jobs", "get", job_id, "--server", server.address).out


@pytest.mark.parametrize("name", ["[/red]x", "[bold]x", ":smile: x"])
def test_what_a_job_is_called_is_no_markup(nst: Nst, server: ScriptedServer, name: str) -> None:
    server.jobs = [job_pb2.Job(job_id="named", state=job_pb2.JOB_STATE_RUNNING, request_id=name, tenant=name)]
    assert name in nst("jobs", "list", "--server", server.address).out
    assert name in nst("jobs", "get", "named", "--server", server.address).out


def test_jobs_watch_begins_where_it_is_told(nst: Nst, server: ScriptedServer) -> None:
    publish_history(server)
    ended = nst("jobs", "watch", JOB_ID, "--after", 3, "--json", "--server", server.address)
    assert ended.code == 0
    assert [event["sequence"] for event in ended.lines] == [4, 5]
    assert server.watches == [3]


def test_jobs_watch_of_a_cancelled_job_exits_with_1(nst: Nst, server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_CANCELLED))
    assert nst("jobs", "watch", JOB_ID, "--after", 1, "--server", server.address).code == 1


def test_jobs_cancel_and_delete(nst: Nst, server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING))
    ended = nst("jobs", "cancel", JOB_ID, "--json", "--server", server.address)
    assert ended.lines[0]["state"] == "JOB_STATE_CANCELLED"
    assert nst("jobs", "delete", JOB_ID, "--server", server.address).code == 0
    assert server.received["DeleteJob"][0].job_id == JOB_ID


def test_jobs_steer_pause_and_resume(nst: Nst, server: ScriptedServer) -> None:
    server.publish(state_event(job_pb2.JOB_STATE_RUNNING))
    layers = ["--style-layer", "relu1_1=2", "--style-layer", "relu2_1=0.5", "--content-layer", "relu4_2=1"]
    steered = nst("jobs", "steer", JOB_ID, *layers, "--iterations", 70, "--json", "--server", server.address)
    assert nst("jobs", "steer", JOB_ID, "--priority", "batch", "--server", server.address).code == 0
    assert [job["control_version"] for job in steered.lines] == [1]
    weights = ["--strength", 0, "--tv-weight", 3, "--style-share", 1, "--style-share", 0]
    assert nst("jobs", "steer", JOB_ID, *weights, "--server", server.address).code == 0
    for command in ("pause", "resume"):
        assert nst("jobs", command, JOB_ID, "--server", server.address).code == 0
    assert [request.update for request in server.received["UpdateJob"]] == [
        job_pb2.JobUpdate(style_layers={"relu1_1": 2, "relu2_1": 0.5}, content_layers={"relu4_2": 1}, iterations=70),
        job_pb2.JobUpdate(priority=job_pb2.PRIORITY_BATCH),
        job_pb2.JobUpdate(strength=0, tv_weight=3, style_shares=[1, 0]),
        job_pb2.JobUpdate(paused=True),
        job_pb2.JobUpdate(paused=False),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give something to change"),
        (["--style-layer", "relu1_1"], "TAP=WEIGHT"),
        (["--style-layer", "relu1_1=1", "--style-layer", "relu1_1=2"], "style_layers: relu1_1 is given twice"),
        (["--content-layer", "relu4_2=much"], "content_layers.relu4_2: must be a number"),
        (["--content-layer", "\udcff=1"], "is not UTF-8"),
        (["--style-layer", "\udcff=1"], "is not UTF-8"),
        (["--iterations", 0], "--iterations"),
        (["--iterations", 5_000_000_000], "--iterations"),
    ],
)
def test_jobs_steer_says_what_is_wrong(nst: Nst, server: ScriptedServer, arguments: list[object], words: str) -> None:
    ended = nst("jobs", "steer", "x", *arguments, "--server", server.address)
    assert ended.code == 2
    assert words in ended.err
    assert not server.received


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["watch", JOB_ID, "--after", 2**64], "--after"),
        (["get", "\udcff"], "is not UTF-8"),
        (["get", JOB_ID, "--server", "\udcff:1"], "is not UTF-8"),
    ],
)
def test_what_cannot_be_sent_is_a_usage_error(
    nst: Nst, server: ScriptedServer, arguments: list[object], words: str
) -> None:
    ended = nst("jobs", arguments[0], "--server", server.address, *arguments[1:])
    assert ended.code == 2
    assert words in ended.err
    assert not server.received


def test_jobs_result_asks_for_the_suffixs_codec(nst: Nst, server: ScriptedServer, tmp_path: Path) -> None:
    publish_history(server)
    server.result = result_messages(b"a JPEG")
    ended = nst("jobs", "result", JOB_ID, "-o", tmp_path / "r.jpg", "--server", server.address)
    assert ended.code == 0
    assert (tmp_path / "r.jpg").read_bytes() == b"a JPEG"
    assert server.received["GetResult"][0].format.encoded == image_pb2.EncodedFormat(codec=image_pb2.CODEC_JPEG)
    nst("jobs", "result", JOB_ID, "-o", tmp_path / "r.jpg", "--quality", "70", "--server", server.address)
    assert server.received["GetResult"][1].format.encoded.quality == 70


def test_info_tells_what_the_server_says(nst: Nst, server: ScriptedServer) -> None:
    server.info.defaults.CopyFrom(
        options_pb2.StylizeOptions(size=345, faces=False, style_layers=options_pb2.LayerWeights(weights={"relu1_1": 2}))
    )
    server.info.ranges["size"].minimum = 16
    server.info.ranges["size"].maximum = 2048
    server.info.limits["max_image_bytes"] = 987654
    server.info.models.add(name="vgg-test", available=True, credit="someone")
    server.info.model_servers.add(name="worker-1", device="cpu")
    shown = nst("info", "--server", server.address).out
    for text in ("scripted", "345", "16 to 2048", "987654", "vgg-test", "worker-1", "relu1_1=2", "lbfgs, adam"):
        assert text in shown
    assert ["faces", "false"] in [line.split() for line in shown.splitlines()]  # as --option takes it
    (info,) = nst("info", "--json", "--server", server.address).lines
    assert info["defaults"] == {"size": 345, "faces": False, "style_layers": {"relu1_1": 2.0}}
    assert info["limits"] == {"max_image_bytes": 987654}


def test_tables_that_are_not_for_a_terminal_have_a_line_for_each_row(
    nst: Nst, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    credit = "the people who made it, and those who made what it was made from"
    server.info.models.add(name="vgg-test", credit=credit)
    info, job = (nst(*command, "--server", server.address).out for command in (["info"], ["jobs", "get", JOB_ID]))
    (model,) = [line for line in info.splitlines() if "vgg-test" in line]
    assert model.endswith(credit)
    assert re.search(rf"^ job_id +{JOB_ID}$", job, re.MULTILINE)


def test_help_repeats_no_default(nst: Nst) -> None:
    ended = nst("stylize", "--help")
    assert ended.code == 0
    assert "see `nst info`" in " ".join(ended.out.split())
    assert "default:" not in ended.out


def test_broken_ca_file_is_usage(nst: Nst, server: ScriptedServer, tmp_path: Path) -> None:
    assert nst("info", "--server", server.address, "--ca", tmp_path / "none.pem").code == 2
    assert nst("info", "--tls").code == 2
