"""`nst weights`, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from reference import VGG16
from weight_files import TORCHVISION_VGG16, conv_shapes, sha256, spread_weights, torchvision_file

from nst_engine import weights
from nst_engine.networks import NETWORKS
from nst_engine.weight_sources import SOURCES, TorchvisionSource
from nst_engine.weights_cli import weights as command

NAME = "vgg16-torchvision"


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    return torchvision_file(tmp_path / "vgg16.pth", spread_weights(conv_shapes(VGG16), 1), TORCHVISION_VGG16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_the_installed_command_pulls_from_a_file(cache: Path, pth: Path):
    nst = Path(sys.executable).parent / "nst"
    arguments = ["weights", "pull", NAME, "--from", str(pth)]
    completed = subprocess.run([nst, *arguments], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert str(cache / f"{NAME}.safetensors") in completed.stdout
    assert NETWORKS[NAME].credit in completed.stdout
    expected = spread_weights(conv_shapes(VGG16), 1)
    loaded = weights.load(NAME)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


def test_the_list_says_what_is_here_and_on_what_terms(cache: Path, pth: Path):
    assert "[here]" not in invoke("list").output
    weights.import_file(NAME, pth)
    output = invoke("list").output
    assert f"{NAME}  [here]" in output
    assert "vgg16-caffe  [not fetched]" in output
    assert str(cache) in output
    for network in NETWORKS.values():
        assert network.credit in output
        assert SOURCES[network.name].sha256 in output


@pytest.mark.usefixtures("cache")
def test_a_pull_that_fails_says_how_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = TorchvisionSource("VGG16_Weights", "0" * 64, (tmp_path / "gone.pth").as_uri())
    monkeypatch.setitem(SOURCES, NAME, gone)
    result = invoke("pull", NAME)
    assert result.exit_code == 1
    assert "could not be fetched" in result.output
    assert f"nst weights pull {NAME} --from FILE" in result.output


@pytest.mark.usefixtures("cache")
def test_a_pull_fetches_what_is_named(pth: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SOURCES, NAME, TorchvisionSource("VGG16_Weights", sha256(pth), pth.as_uri()))
    result = invoke("pull", NAME)
    assert result.exit_code == 0, result.output
    assert weights.is_cached(NAME)


@pytest.mark.usefixtures("cache")
def test_wrong_calls_are_refused(pth: Path, tmp_path: Path):
    for arguments, message in (
        (("pull", "--from", str(pth)), "exactly one NAME"),
        (("pull", "vgg11"), "vgg16-caffe"),
        (("pull", NAME, "--from", str(tmp_path / "absent")), "does not exist"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert message in result.output
    result = invoke("pull", "vgg19-torchvision", "--from", str(pth))
    assert result.exit_code == 1
    assert "conv3_4.weight is of shape" in result.output
