"""The files of torchvision's ResNet-50 and DenseNet-121: fetched, checked, kept and read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision_modules import DENSENET, RESNET, kept, seeded_state, torchvision_file
from weight_files import FileServer, served, sha256

from nst_engine import weights
from nst_engine.networks import NETWORKS
from nst_engine.torchvision_import import weights_url
from nst_engine.weight_sources import SOURCES, TorchvisionSource
from nst_engine.weights import WeightsError

ENUMS = {RESNET: "ResNet50_Weights", DENSENET: "DenseNet121_Weights"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {name: torchvision_file(folder / f"{name}.pth", name) for name in ENUMS}


@pytest.fixture
def server(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[FileServer]:
    with served(files[request.param]) as place:
        yield place


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "server"), [(name, name) for name in ENUMS], indirect=["server"])
def test_a_file_is_fetched_checked_and_kept(
    name: str, server: FileServer, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SOURCES, name, TorchvisionSource(ENUMS[name], sha256(files[name]), server.url))
    expected = kept(seeded_state(name))
    assert same(weights.load(name, tmp_path), expected)
    assert same(weights.load(name, tmp_path), expected)
    assert len(server.requests) == 1
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}.safetensors"]


@pytest.mark.parametrize(("name", "server"), [(name, name) for name in ENUMS], indirect=["server"])
def test_what_has_another_digest_is_refused(name: str, server: FileServer, tmp_path: Path):
    """The registered digest is that of the real file."""
    source = TorchvisionSource(ENUMS[name], SOURCES[name].sha256, server.url)
    with pytest.raises(WeightsError, match="invalid hash value") as caught:
        weights.fetch(name, tmp_path, source)
    assert f"nst weights pull {name}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ENUMS)
def test_the_registered_source_is_torchvisions(name: str):
    """Its file names end with the first digits of the hash."""
    assert weights_url(ENUMS[name]).endswith(f"-{SOURCES[name].sha256[:8]}.pth")
    assert len(SOURCES[name].sha256) == 64
    assert ENUMS[name] in SOURCES[name].description


def test_a_missing_tensor_is_named(tmp_path: Path):
    state = seeded_state(RESNET)
    del state["layer2.1.bn2.running_var"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(
        WeightsError, match=r"layer2\.1\.bn2\.running_var is missing; resnet50-torchvision needs \(128,\)"
    ):
        weights.read_file(tmp_path / "short.pth", NETWORKS[RESNET])


@pytest.mark.parametrize(
    ("name", "other"),
    [(RESNET, DENSENET), (DENSENET, RESNET), ("vgg16-torchvision", RESNET), ("vgg16-torchvision", DENSENET)],
)
def test_the_weights_of_another_network_are_refused(name: str, other: str, files: dict[str, Path]):
    with pytest.raises(WeightsError, match=rf"is missing; {name} needs"):
        weights.read_file(files[other], NETWORKS[name])
