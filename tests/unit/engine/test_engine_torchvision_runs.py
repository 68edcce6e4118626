"""Whole runs on ResNet-50 and DenseNet-121, from a file of seeded weights to a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import Pixels, finish, stepped, steps
from torchvision_modules import DENSENET, RESNET, torchvision_file

from nst_engine import Engine, OptionError, Style, StylizeOptions, checkpoint
from nst_engine.tiling import whole

# To the third stage and no deeper: the fourth is most of the weights and none of the point.
LAYERS = {
    RESNET: {"content_layers": {"layer2.0": 1.0}, "style_layers": {"relu": 1.0, "layer1.0": 1.0, "layer2.0": 1.0}},
    DENSENET: {
        "content_layers": {"transition1": 1.0},
        "style_layers": {"relu0": 1.0, "denseblock1": 1.0},
    },
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine that has both, and nothing else."""
    folder = tmp_path_factory.mktemp("weights")
    files = {name: torchvision_file(folder / f"{name}.pth", name) for name in (RESNET, DENSENET)}
    return Engine("cpu", threads=1, weights=files, cache_dir=folder)


def options(name: str, **changes: object) -> StylizeOptions:
    fixed = {"model": name, "size": 64, "scales": 1, "iterations": 6, "precision": "float32", **LAYERS[name]}
    return StylizeOptions(**{**fixed, **changes})


@pytest.mark.parametrize("name", [RESNET, DENSENET])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_job_lowers_the_loss_and_ends(networks: Engine, photo: Pixels, texture: Pixels, name: str, precision: str):
    session = networks.start(photo, [Style(texture)], options(name, precision=precision))
    losses = [report.total_loss for report in finish(networks, session)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    picture = session.image()
    assert picture.shape == (43, 64, 3)
    assert picture.std() > 10


def test_a_resumed_run_ends_in_the_same_bits(networks: Engine, photo: Pixels, texture: Pixels):
    session = networks.start(photo, [Style(texture)], options(RESNET))
    steps(networks, session, 3)
    halfway = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    finish(networks, session)
    resumed = networks.resume(halfway, photo, [Style(texture)])
    finish(networks, resumed)
    assert torch.equal(resumed.state_dict().tensors["image"], session.state_dict().tensors["image"])


@pytest.mark.parametrize("name", [RESNET, DENSENET])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_together_is_alone(networks: Engine, photo: Pixels, texture: Pixels, name: str, precision: str):
    """To the bit, also where maps are so small that torch convolves one picture in another way than several."""
    chosen = options(name, size=48, iterations=2, precision=precision)
    alone, *batch = [networks.start(photo, [Style(texture)], chosen) for _ in range(4)]
    assert len({session.batch_key for session in batch}) == 1
    finish(networks, alone)
    for _ in range(2):
        stepped(networks, batch)
    for session in batch:
        assert torch.equal(session.state_dict().tensors["image"], alone.state_dict().tensors["image"])


@pytest.mark.parametrize("statistic", ["moments", "sliced"])
def test_other_statistics_take_smoothed_maps(networks: Engine, photo: Pixels, texture: Pixels, statistic: str):
    session = networks.start(photo, [Style(texture)], options(DENSENET, style_statistic=statistic, iterations=2))
    reports = finish(networks, session)
    assert np.isfinite([value for report in reports for value in report.losses.values()]).all()
    assert reports[-1].total_loss < reports[0].total_loss


def test_a_hole_is_filled_by_a_look_at_the_whole(networks: Engine, photo: Pixels):
    """As a map is smoothed over all of it."""
    hole = np.zeros(photo.shape[:2], np.uint8)
    hole[:8, :8] = 255
    session = networks.start(photo, [], options(RESNET, iterations=2), hole=hole)
    assert session._stage.objective.window == whole(43, 64)
    first, last = finish(networks, session)
    assert last.losses["style"] < first.losses["style"]


@pytest.mark.parametrize("name", [RESNET, DENSENET])
def test_the_defaults_of_a_network_run(networks: Engine, photo: Pixels, texture: Pixels, name: str):
    session = networks.start(photo, [Style(texture)], StylizeOptions(model=name, size=64, iterations=2, scales=1))
    first, last = finish(networks, session)
    assert session.options.chosen_statistic == "gram"
    assert last.total_loss < first.total_loss


def test_a_content_that_is_too_thin_is_refused(networks: Engine, texture: Pixels):
    strip = np.zeros((20, 200, 3), np.uint8)
    with pytest.raises(OptionError) as caught:
        networks.start(strip, [Style(texture)], StylizeOptions(model=RESNET, size=200))
    assert caught.value.field == "size"
    assert "need 32" in caught.value.message


def test_a_job_over_the_memory_budget_is_refused(networks: Engine, photo: Pixels, texture: Pixels, tmp_path: Path):
    file = torchvision_file(tmp_path / "resnet.pth", RESNET)
    small = Engine("cpu", threads=1, weights={RESNET: file}, memory_budget=2**20)
    with pytest.raises(OptionError) as caught:
        small.start(photo, [Style(texture)], options(RESNET))
    assert caught.value.field == "size"
    for words in (
        "64x43 picture take ",
        RESNET,
        "memory budget of 1 MiB",
        "cannot work in tiles",
        "set a smaller size",
    ):
        assert words in caught.value.message
