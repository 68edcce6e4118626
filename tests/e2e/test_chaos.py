"""Short runs of tests/load: processes die, stop and are restarted under jobs, or are not there, and nothing is lost."""

from itertools import product
from pathlib import Path

import chaos
import drain
import idle
import pytest


async def test_a_little_chaos_loses_nothing_and_does_nothing_twice(tmp_path: Path):
    little = chaos.Chaos(seed=125, jobs=8, faults=4, pause=1.5, freeze_seconds=5.0, largest=64, longest=20)
    table = await chaos.run(little, tmp_path)
    table.show()
    assert not table.broken
    # Whoever changes what a seed gives has to find one that gives all of these; nats-server is killed elsewhere.
    harmed = {(fault["action"], fault["target"].rstrip("-0123456789")) for fault in table.details["faults"]}
    servers = product(("kill", "freeze"), ("gateway", "model-server"))
    assert harmed.issuperset(servers)


async def test_a_rolling_restart_loses_nothing_and_no_client_notices(tmp_path: Path):
    little = drain.Drain(seed=2, jobs=6, pause=0.5, largest=64, longest=20, model_servers=1)
    table = await drain.run(little, tmp_path)
    table.show()
    assert not table.broken


async def test_jobs_that_wait_are_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idle, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(idle, "JOBS", 6)
    monkeypatch.setattr(idle, "WATCHERS", 2)
    table = await idle.run(0.02, tmp_path)
    table.show()
    assert not table.broken
