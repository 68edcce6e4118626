"""The cache of weights and the files it is filled from."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import pytest
import torch
from reference import VGG16, VGG19
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_files import (
    TORCHVISION_VGG16,
    TORCHVISION_VGG19,
    FileServer,
    conv_shapes,
    served,
    sha256,
    spread_weights,
    torchvision_file,
)

from nst_engine import weights
from nst_engine.networks import NETWORKS
from nst_engine.weight_sources import SOURCES, TorchvisionSource
from nst_engine.weights import WeightsError

NAME = "vgg16-torchvision"
NETWORK = NETWORKS[NAME]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return spread_weights(conv_shapes(VGG16), seed=16)


@pytest.fixture(scope="module")
def pth(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchvision_file(tmp_path_factory.mktemp("weights") / "vgg16.pth", tensors, TORCHVISION_VGG16)


@pytest.fixture
def server(pth: Path) -> Iterator[FileServer]:
    with served(pth) as place:
        yield place


@pytest.fixture
def source(server: FileServer, pth: Path, monkeypatch: pytest.MonkeyPatch) -> TorchvisionSource:
    """torchvision's source, pointed at the loopback server, as the registered one of `NAME`."""
    source = TorchvisionSource("VGG16_Weights", sha256(pth), server.url)
    monkeypatch.setitem(SOURCES, NAME, source)
    return source


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.usefixtures("source")
def test_weights_are_fetched_once_and_then_read_from_the_cache(
    server: FileServer, tensors: dict[str, Tensor], tmp_path: Path
):
    cache = tmp_path / "not" / "there yet"
    assert not weights.is_cached(NAME, cache)
    assert same(weights.load(NAME, cache), tensors)
    assert weights.is_cached(NAME, cache)
    assert same(weights.load(NAME, cache), tensors)
    assert len(server.requests) == 1
    assert [file.name for file in cache.iterdir()] == [f"{NAME}.safetensors"]


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("damage", ["a bit", "the end", "everything", "the digest"])
def test_a_damaged_cache_is_noticed_and_fetched_again(
    server: FileServer, tensors: dict[str, Tensor], tmp_path: Path, damage: str
):
    file = weights.fetch(NAME, tmp_path)
    whole = file.read_bytes()
    match damage:
        case "a bit":
            file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        case "the end":
            file.write_bytes(whole[: len(whole) // 2])
        case "everything":
            file.write_bytes(b"")
        case "the digest":
            save_file(load_file(file), file)
    assert same(weights.load(NAME, tmp_path), tensors)
    assert len(server.requests) == 2
    assert same(load_file(file), tensors)


def test_what_has_another_digest_is_refused(server: FileServer, tmp_path: Path):
    source = TorchvisionSource("VGG16_Weights", "0" * 64, server.url)
    with pytest.raises(WeightsError, match="invalid hash value") as caught:
        weights.fetch(NAME, tmp_path, source)
    assert server.url in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there_lists_the_ways_to_get_weights(server: FileServer, pth: Path, tmp_path: Path):
    source = TorchvisionSource("VGG16_Weights", sha256(pth), f"{server.url}.gone")
    with pytest.raises(WeightsError) as caught:
        weights.fetch(NAME, tmp_path, source)
    for way in ("404", f"nst weights pull {NAME}", "--from FILE", "NST_CACHE", f"{NAME}.safetensors"):
        assert way in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("imported", [False, True])
def test_a_cache_that_cannot_be_written_is_named(pth: Path, tmp_path: Path, imported: bool):
    cache = tmp_path / "file"
    cache.touch()
    with pytest.raises(WeightsError, match=r"file cannot be written .*NST_CACHE"):
        weights.import_file(NAME, pth, cache) if imported else weights.fetch(NAME, cache)


def test_the_pinned_digests_are_those_in_the_names_of_torchvision():
    """torchvision's file names end with the first digits of the hash."""
    from nst_engine.torchvision_import import weights_url

    for name, enum in ((NAME, "VGG16_Weights"), ("vgg19-torchvision", "VGG19_Weights")):
        prefix = re.fullmatch(r"https://\S+-([0-9a-f]{8})\.pth", weights_url(enum))
        assert prefix is not None
        assert SOURCES[name].sha256.startswith(prefix[1])


def test_two_processes_may_fetch_at_once(server: FileServer, pth: Path, tensors: dict[str, Tensor], tmp_path: Path):
    server.together = Barrier(2)
    program = f"""
import sys
from pathlib import Path
from nst_engine.weight_sources import TorchvisionSource
from nst_engine.weights import fetch
fetch({NAME!r}, Path(sys.argv[1]), TorchvisionSource("VGG16_Weights", {sha256(pth)!r}, {server.url!r}))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages
    assert len(server.requests) == 2
    assert same(weights.load(NAME, tmp_path), tensors)
    assert [file.name for file in tmp_path.iterdir()] == [f"{NAME}.safetensors"]


def test_a_local_pth_file_is_imported(pth: Path, tensors: dict[str, Tensor], tmp_path: Path):
    assert weights.import_file(NAME, pth, tmp_path) == weights.locate(NAME, tmp_path)
    assert same(weights.load(NAME, tmp_path), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_local_safetensors_file_is_read_as_float32(tensors: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype):
    file = tmp_path / "mine.safetensors"
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, file)
    expected = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
    assert same(weights.read_file(file, NETWORK), expected)


def test_a_file_that_is_written_over_changes_nothing_that_was_read(tensors: dict[str, Tensor], tmp_path: Path):
    file = tmp_path / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    read = weights.read_file(file, NETWORK)
    file.write_bytes(bytes(file.stat().st_size))
    assert same(read, tensors)


def test_a_wrong_shape_is_named(tensors: dict[str, Tensor], tmp_path: Path):
    file = tmp_path / "odd.pth"
    torch.save({**tensors, "conv3_1.weight": torch.zeros(256, 128, 5, 5)}, file)
    with pytest.raises(WeightsError) as caught:
        weights.import_file(NAME, file, tmp_path / "cache")
    for part in (str(file), "conv3_1.weight", "(256, 128, 5, 5)", "(256, 128, 3, 3)", NAME):
        assert part in str(caught.value)
    assert not weights.is_cached(NAME, tmp_path / "cache")


@pytest.mark.parametrize("prefix", ["conv2_2", "features.7"])
def test_a_missing_tensor_is_named(tensors: dict[str, Tensor], tmp_path: Path, prefix: str):
    file = torchvision_file(tmp_path / "short.pth", tensors, TORCHVISION_VGG16)
    stored = torch.load(file, weights_only=True) if prefix.startswith("features") else dict(tensors)
    del stored[f"{prefix}.bias"]
    torch.save(stored, file)
    with pytest.raises(WeightsError, match=r"conv2_2.bias is missing; .* needs \(128,\)"):
        weights.read_file(file, NETWORK)


def test_the_weights_of_another_network_are_refused(tmp_path: Path):
    nineteen = spread_weights(conv_shapes(VGG19), seed=3)
    file = torchvision_file(tmp_path / "vgg19.pth", nineteen, TORCHVISION_VGG19)
    with pytest.raises(WeightsError, match=r"conv4_1\.weight is of shape"):
        weights.read_file(file, NETWORK)


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "noise.pth", "noise.safetensors", "list.pth"])
def test_what_is_no_weights_file_is_refused_by_name(tmp_path: Path, name: str):
    file = tmp_path / name
    if name.startswith("noise"):
        file.write_bytes(b"this is no file of weights, whatever its name says")
    elif name.startswith("list"):
        torch.save([torch.zeros(3)], file)
    with pytest.raises(WeightsError, match=re.escape(str(file))):
        weights.read_file(file, NETWORK)


def test_the_cache_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "own"))
    assert weights.locate(NAME) == tmp_path / "own" / f"{NAME}.safetensors"
    assert weights.locate(NAME, tmp_path) == tmp_path / f"{NAME}.safetensors"
    monkeypatch.delenv("NST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_directory() == tmp_path / ".cache" / "nst"
