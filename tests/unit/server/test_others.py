"""What a model server leaves to others, by what they tell of themselves."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

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
    assert await servers["small"].leave_large("job", MODELS[0], faces=False)
    assert servers["small"].left == {"job"}
    assert not (await servers["small"].announcement({})).left, "which concerns nobody else"
    assert not await servers["large"].leave_large("job", MODELS[0], faces=False)
    assert not servers["large"].left


async def test_what_one_cannot_read_and_the_other_cannot_hold_does_not_go_round_for_ever(servers):
    assert await servers["large"].leave_model(MODELS[0])
    assert not await servers["small"].leave_large("job", MODELS[0], faces=False)
    assert await servers["small"].leave_large("other job", MODELS[1], faces=False)


async def test_a_job_with_faces_is_left_to_who_can_find_them(servers, monkeypatch):
    told = {"small": True, "large": False}
    announced = {name: await server.announcement({}) for name, server in servers.items()}
    for name, finds_faces in told.items():
        announced[name].finds_faces = finds_faces

    async def announcements(backbone: None, patience: None) -> list[Announcement]:
        return list(announced.values())

    monkeypatch.setattr(others_module, "announcements", announcements)
    assert await servers["large"].leave_faces("job", MODELS[0])
    assert servers["large"].left == {"job"}
    # Too large for that one, it is not left to one that would leave it there again.
    assert not await servers["small"].leave_large("job", MODELS[0], faces=True)
    assert await servers["small"].leave_large("plain job", MODELS[0], faces=False)
    announced["small"].left.append(MODELS[0])
    assert not await servers["large"].leave_faces("other job", MODELS[0])


@pytest.mark.parametrize("installed", [True, False])
async def test_it_tells_whether_it_can_find_faces(servers, monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__spec__=object()) if installed else None)
    assert (await servers["small"].announcement({})).finds_faces == installed


async def test_what_is_left_comes_back_after_a_while(servers, monkeypatch):
    monkeypatch.setattr(others_module, "LEFT_SECONDS", 0.0)
    assert await servers["small"].leave_large("job", MODELS[0], faces=False)
    assert not servers["small"].left
