"""What becomes of a job that fails on one model server and may do better on another."""

from dataclasses import dataclass, field

import pytest

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_engine import BudgetError, DetectorError, OptionError, WeightsError
from nst_running import running_job

MODEL = "vgg16-caffe"


@dataclass
class Lease:
    """Notes how it is let go."""

    record: JobRecord
    job_id: str = "job"
    suspected: bool = False
    said: list[str] = field(default_factory=list)

    async def hand_back(self, reason: str, *, alone: bool = False) -> None:
        self.said.append(f"alone: {reason}" if alone else reason)

    async def fail(self, error: job_pb2.JobError) -> None:
        self.said.append(error.reason)


@dataclass
class Others:
    """Such that can do what this server cannot, or none."""

    there: bool
    asked: list[tuple[object, ...]] = field(default_factory=list)

    async def leave_model(self, model: str) -> bool:
        self.asked.append((model,))
        return self.there

    async def leave_large(self, job_id: str, model: str, *, faces: bool) -> bool:
        self.asked.append((job_id, model, faces))
        return self.there

    async def leave_faces(self, job_id: str, model: str) -> bool:
        self.asked.append((job_id, model))
        return self.there


CASES = {
    "weights": (WeightsError("none"), f"that has the weights of {MODEL}", "NO_WEIGHTS", (MODEL,)),
    "faces": (DetectorError("faces", "no"), "that can find faces", "BAD_OPTION", ("job", MODEL)),
    "budget": (BudgetError("size", "no"), "with a larger memory budget", "BAD_OPTION", ("job", MODEL, True)),
}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("case", CASES)
async def test_it_is_left_to_who_can_do_it_if_there_is_somebody(case: str, there: bool):
    error, sets_apart, reason, asked = CASES[case]
    lease, others = Lease(JobRecord(lease={"alone": True})), Others(there)
    lease.record.spec.options.model, lease.record.spec.options.faces = MODEL, True
    await running_job(lease, others=others)._leave_after(error)
    assert lease.said == ([f"is left to a model server {sets_apart}"] if there else [reason])
    assert others.asked == [asked]


async def test_who_runs_out_of_memory_is_tried_again_alone_first():
    lease, others = Lease(JobRecord()), Others(there=True)
    await running_job(lease, others=others)._leave_after(MemoryError())
    assert lease.said == ["alone: ran out of memory; is tried again alone and in smaller tiles"]
    assert not others.asked


@pytest.mark.parametrize(
    ("error", "reason"), [(OptionError("size", "no"), "BAD_OPTION"), (MemoryError(), "OUT_OF_MEMORY")]
)
async def test_what_nobody_does_better_fails_at_once(error: Exception, reason: str):
    lease, others = Lease(JobRecord(lease={"alone": True})), Others(there=True)
    await running_job(lease, others=others)._leave_after(error)
    assert (lease.said, others.asked) == ([reason], [])
