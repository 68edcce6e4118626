"""Steering a job at 256 px: every change counts from the iteration after the one in hand.

The bound is one of iteration numbers. When a change is stored, the history tells of iteration n, and
iteration n + 1 is being computed: n + 2 is the first that can obey.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median

import psutil
import pytest
from gateway_support import cancel, run_tiny, tiny_spec, update
from stylize_stream import Stream, stylize

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2, options_pb2
from nst_calls import SHALLOW_MESSAGES, Calls, calls, inline, job_spec, metric, until
from nst_processes import Server, running_server
from nst_server.jobs.backbone import connect
from nst_server.jobs.records import Records

RUNNING, PAUSED, CANCELLED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED, job_pb2.JOB_STATE_CANCELLED
SIZE = {"size": 256, "scales": 1, "iterations": 300, **SHALLOW_MESSAGES}
Progress = job_pb2.Progress
# What is sent, and how the first progress that obeys differs from the one before it.
Change = tuple[dict[str, object], Callable[[Progress, Progress], bool]]
BALANCED: dict[str, Change] = {
    "no strength": ({"strength": 0.0}, lambda old, new: old.losses["style"] > 0 == new.losses["style"]),
    "all strength": ({"strength": 1.0}, lambda old, new: old.losses["content"] > 0 == new.losses["content"]),
}
RAW: dict[str, Change] = {
    "shares": ({"style_shares": [0.0, 1.0]}, lambda old, new: new.losses["style"] > 1.1 * old.losses["style"]),
    "content layers": (
        {"content_layers": {"relu2_1": 1000.0}},
        lambda old, new: new.losses["content"] > 100 * old.losses["content"],
    ),
    "style layers": (
        {"style_layers": {"relu2_1": 1000.0}},
        lambda old, new: new.losses["style"] > 20 * old.losses["style"],
    ),
    "weights": (
        {"content_weight": 0.0, "tv_weight": 0.0},
        lambda old, new: all(old.losses[name] > 0 == new.losses[name] for name in ("content", "tv")),
    ),
    "more iterations": ({"iterations": 400}, lambda old, new: (old.iterations, new.iterations) == (300, 400)),
    "fewer iterations": ({"iterations": 200}, lambda old, new: (old.iterations, new.iterations) == (400, 200)),
    "fewer than are done": ({"iterations": 1}, lambda old, new: new.iteration == new.iterations),
}  # fmt: skip
JOBS = {"balanced": ({}, BALANCED), "raw": ({"style_weight": 1.0, "content_weight": 1.0}, RAW)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tells of every iteration, and gives the system back what ended jobs have freed at the next one."""
    settings = {"NST_PROGRESS_SECONDS": "0", "NST_MEMORY_LIMIT_BYTES": "1"}
    with running_server(tmp_path_factory.mktemp("steering"), **settings) as server:
        yield server


@pytest.fixture
def live(own: Server) -> Iterator[Calls]:
    with calls(own.address) as call:
        yield call


@pytest.fixture
def other(own: Server) -> Iterator[Calls]:
    """Another client of the same server."""
    with calls(own.address) as call:
        yield call


@pytest.fixture(scope="module")
def spec(content_path: Path, style_path: Path) -> job_pb2.JobSpec:
    """Two styles, of which the content's own picture is one."""
    spec = job_spec(content_path, content_path, **SIZE)
    spec.styles.add(image=inline(style_path))
    return spec


def variant(spec: job_pb2.JobSpec, **options: float) -> job_pb2.JobSpec:
    changed = job_pb2.JobSpec()
    changed.CopyFrom(spec)
    for name, value in options.items():
        setattr(changed.options, name, value)
    return changed


def begin(stream: Stream, spec: job_pb2.JobSpec) -> tuple[Iterator[job_pb2.JobEvent], job_pb2.JobEvent]:
    """The events of a new job from its second iteration on, and that of this one."""
    stream.start(spec)
    events = iter(stream)
    return events, until(events, lambda event: event.progress.iteration == 2)[-1]


def stored(call: Calls, job_id: str, after: int) -> job_pb2.Job:
    """The job as it stands when a change that was sent over its stream is stored."""
    job = call.get(job_id)
    while job.control_version <= after:
        job = call.get(job_id)
    return job


def obeys(job: job_pb2.Job) -> Callable[[job_pb2.JobEvent], bool]:
    """Whether an event is progress that obeys the change whose answer the job is."""
    return lambda event: event.progress.control_version >= job.control_version


@pytest.mark.parametrize("kind", JOBS)
def test_a_change_counts_from_the_iteration_after_the_one_in_hand(live, other, spec, kind):
    """Over either call, in turns."""
    options, changes = JOBS[kind]
    with stylize(live) as stream:
        events, last = begin(stream, variant(spec, **options))
        for (name, (change, shows)), over in zip(changes.items(), cycle(("UpdateJob", "Stylize")), strict=False):
            if over == "UpdateJob":
                job = update(other, last.job_id, **change)
            else:
                stream.send(update=job_pb2.JobUpdate(**change))
                job = stored(other, last.job_id, last.progress.control_version)
            assert job.control_version > last.progress.control_version, name
            told = [last, *until(events, obeys(job))]
            numbers = [event.progress.iteration for event in told]
            assert numbers == list(range(numbers[0], numbers[0] + len(told))), name
            assert numbers[-1] <= job.progress.iteration + 2, name
            assert shows(told[-2].progress, told[-1].progress), name
            last = told[-1]


@pytest.mark.parametrize("over", ["UpdateJob", "Stylize"])
def test_a_job_is_held_and_let_go_on_within_an_iteration(live, other, spec, over):
    with stylize(live) as stream:
        events, last = begin(stream, spec)

        def ask(*, paused: bool, version: int) -> job_pb2.Job:
            if over == "UpdateJob":
                return update(other, last.job_id, paused=paused)
            stream.send(update=job_pb2.JobUpdate(paused=paused))
            return stored(other, last.job_id, version - 1)

        held = ask(paused=True, version=1)
        seen = [last, *until(events, lambda event: event.job_state == PAUSED)]
        done = max(event.progress.iteration for event in seen)
        assert done <= held.progress.iteration + 2
        resumed = ask(paused=False, version=2)
        assert (held.control_version, resumed.control_version) == (1, 2)
        going_on = until(events, lambda event: event.HasField("progress"))
        assert [event.state.from_iteration for event in going_on if event.state.state == RUNNING] == [done]
        assert (going_on[-1].progress.iteration, going_on[-1].progress.control_version) == (done + 1, 2)


def unwanted(server: Server, other: Calls, spec: job_pb2.JobSpec, end: str) -> job_pb2.Job:
    """A job that is cancelled, or abandoned by a connection that goes away, as it stands when that is stored."""
    with calls(server.address) as lost:
        stream = Stream(lost)
        _, last = begin(stream, spec)
        job = cancel(other, last.job_id) if end == "cancelled" else None
    stream.close()
    return job or stored(other, last.job_id, 0)


@pytest.mark.parametrize("end", ["cancelled", "abandoned"])
def test_a_job_that_is_not_wanted_stops_computing(own, other, spec, end):
    address = own.status["model_metrics_address"]
    counted = metric(address, "nst_engine_iterations_total")
    job = unwanted(own, other, spec, end)
    *told, ended = other.watch(job.job_id)
    assert ended.state.state == CANCELLED
    assert max(event.progress.iteration for event in told) <= job.progress.iteration + 2
    assert run_tiny(other).result.iterations == 3
    computed = metric(address, "nst_engine_iterations_total") - counted - 3
    assert 2 <= computed <= job.progress.iteration + 2


def test_a_job_that_is_not_wanted_frees_its_memory(own, other, spec):
    """What each end leaves behind, by the median, once the first has warmed all up."""
    large = variant(spec, size=384)
    del large.styles[1]
    for layers in (large.options.content_layers, large.options.style_layers):
        layers.CopyFrom(options_pb2.LayerWeights(weights={"relu1_1": 1.0}))  # where maps are large and soon computed
    held = 2 * 64 * 384 * 256  # the content's features, in bfloat16 or float32
    process = psutil.Process(own.status["pids"]["model-server"])
    grown: dict[str, list[int]] = {"cancelled": [], "abandoned": []}
    before = process.memory_info().rss
    for end in ("cancelled", *3 * tuple(grown)):
        _ = list(other.watch(unwanted(own, other, large, end).job_id))
        assert run_tiny(other).job_state == job_pb2.JOB_STATE_SUCCEEDED
        after = process.memory_info().rss
        grown[end].append(after - before)
        before = after
    del grown["cancelled"][0]
    assert all(median(sizes) < held / 2 for sizes in grown.values()), grown


def test_the_last_of_several_changes_counts_and_none_is_lost(live, other, spec):
    changes = [{"strength": 0.9}, {"tv_weight": 0.0}, {"iterations": 350}, {"style_shares": [1.0, 0.0]}]
    changes += [{"strength": 0.1 * tenth} for tenth in range(5, -1, -1)]
    with stylize(live) as stream:
        events, last = begin(stream, spec)
        versions = [update(other, last.job_id, **change).control_version for change in changes]
        assert versions == list(range(1, len(changes) + 1))
        first = until(events, lambda event: event.progress.control_version == versions[-1])[-1].progress
        assert first.iterations == 350
        assert first.losses["style"] == first.losses["tv"] == 0


def test_a_change_is_obeyed_though_its_nudge_is_lost(own, live):
    """Iterations that follow each other quickly leave the job's task no silence in which to look."""
    job_id = live.create(tiny_spec(iterations=5000))
    events = live.watch(job_id)
    until(events, lambda event: event.HasField("progress"))

    def change(record: JobRecord) -> None:
        record.control.cancel = True
        record.control.version += 1

    async def write() -> None:
        async with connect(own.status["nats"], "test", None) as backbone:
            await Records(backbone, patience=5).update(job_id, change)

    asyncio.run(write())
    *_, last = events
    assert last.state.state == CANCELLED
