"""What a model server leaves to others, by what they tell of themselves."""

from dataclasses import dataclass

import pytest

from nst.internal.v1.job_record_pb2 import Announcement
from nst_server.model_server import others as others_module
from nst_server.model_server.others import Others

MODELS = ["vgg16-caffe", "vgg19-torchvision"]


@dataclass
class Engine:
    """What is told of one."""

    memory_budget: int
    device_name: str = "CPU"

    def available_models(self) -> list[str]:
        return MODELS


@pytest.fixture
def servers(monkeypatch):
    """A small and a large one, which know of each other."""
    servers = {name: Others(Engine(budget), None, name) for name, budget in (("small", 2**28), ("large", 2**30))}

    async def announcements(backbone: None, patience: None) -> list[Announcement]:
        return [await server.announcement({}) for server in servers.values()]

    monkeypatch.setattr(others_module, "announcements", announcements)
    return servers


async def test_what_two_servers_cannot_read_they_do_not_leave_to_one_another_for_ever(servers):
    """Both have a file, and neither can read it."""
    assert await servers["small"].leave_model(MODELS[0])
    assert (await servers["small"].announcement({})).models == MODELS[1:]
    assert not await servers["large"].leave_model(MODELS[0])
    assert MODELS[0] in (await servers["large"].announcement({})).models, (
        "a job of it may come, and is told what is wrong"
    )


async def test_a_job_that_is_too_large_is_left_to_who_has_more_memory(servers):
    assert await servers["small"].leave_job("job", MODELS[0])
    assert servers["small"].left == {"job"}
    assert not (await servers["small"].announcement({})).left, "which concerns nobody else"
    assert not await servers["large"].leave_job("job", MODELS[0])
    assert not servers["large"].left


async def test_what_one_cannot_read_and_the_other_cannot_hold_does_not_go_round_for_ever(servers):
    assert await servers["large"].leave_model(MODELS[0])
    assert not await servers["small"].leave_job("job", MODELS[0])
    assert await servers["small"].leave_job("other job", MODELS[1])


async def test_what_is_left_comes_back_after_a_while(servers, monkeypatch):
    monkeypatch.setattr(others_module, "LEFT_SECONDS", 0.0)
    assert await servers["small"].leave_job("job", MODELS[0])
    assert not servers["small"].left
