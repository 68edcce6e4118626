"""The layer plans, and the weights files of torchvision's VGG-19."""

from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from engine_runs import Pixels, as_image
from reference import VGG19, Trunk, relative_error
from torch import Tensor
from weight_files import TORCHVISION_VGG19, conv_shapes, spread_weights, torchvision_file

from nst_engine import Engine, Style, StylizeOptions, WeightsError, hardware, weights
from nst_engine.backbone import Backbone
from nst_engine.networks import NETWORKS

VGG19_TAPS = [
    *("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"),
    *("conv2_1", "relu2_1", "conv2_2", "relu2_2", "pool2"),
    *("conv3_1", "relu3_1", "conv3_2", "relu3_2", "conv3_3", "relu3_3", "conv3_4", "relu3_4", "pool3"),
    *("conv4_1", "relu4_1", "conv4_2", "relu4_2", "conv4_3", "relu4_3", "conv4_4", "relu4_4", "pool4"),
    *("conv5_1", "relu5_1", "conv5_2", "relu5_2", "conv5_3", "relu5_3", "conv5_4", "relu5_4", "pool5"),
]


@pytest.fixture(scope="module")
def vgg19_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = spread_weights(conv_shapes(VGG19), seed=19)
    return torchvision_file(tmp_path_factory.mktemp("weights") / "vgg19.pth", tensors, TORCHVISION_VGG19)


def test_vgg19_has_the_usual_taps():
    assert list(NETWORKS["vgg19-torchvision"].taps) == VGG19_TAPS
    assert NETWORKS["vgg19-torchvision"].convs == conv_shapes(VGG19)


def test_vgg16_has_one_convolution_less_in_each_deep_block():
    sixteen = [tap for tap in VGG19_TAPS if not tap.endswith(("3_4", "4_4", "5_4"))]
    assert list(NETWORKS["vgg16-caffe"].taps) == list(NETWORKS["vgg16-torchvision"].taps) == sixteen


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_vgg19_from_a_local_file_computes_what_the_reference_does(vgg19_file: Path, photo: Pixels, pooling: str):
    network = NETWORKS["vgg19-torchvision"]
    tensors = weights.read_file(vgg19_file, network)
    backbone = Backbone(network, tensors, torch.device("cpu"), torch.float32)
    image = as_image(photo)[:, :, :48, :35]
    maps = backbone.features(image, VGG19_TAPS, pooling)
    imagenet = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    truth = Trunk(tensors, VGG19, (0, 1, 2), pooling=pooling, **imagenet).maps(image)
    assert list(maps) == VGG19_TAPS
    assert maps["pool5"].shape == (1, 512, 1, 1)
    assert maps["conv3_4"].shape == (1, 256, 12, 8)
    for tap in VGG19_TAPS:
        assert truth[tap].norm() > 0
        assert relative_error(maps[tap], truth[tap]) < 1e-4, tap


def test_an_engine_takes_a_local_file_for_a_model(
    engine: Engine, vgg19_file: Path, photo: Pixels, texture: Pixels, tmp_path: Path
):
    local = Engine("cpu", weights={"vgg19-torchvision": vgg19_file}, cache_dir=tmp_path)
    assert local.available_models() == ["vgg19-torchvision"]
    options = StylizeOptions(model="vgg19-torchvision", size=48, iterations=2, scales=1, precision="float32")
    session = local.start(photo, [Style(texture)], options)
    losses = [session.advance().total_loss for _ in range(2)]
    assert session.finished
    assert losses[1] < losses[0]
    assert list(tmp_path.iterdir()) == []
    assert "vgg16-caffe" in engine.available_models()


def test_what_has_been_prepared_in_another_thread_is_not_read_again(
    vgg19_file: Path, photo: Pixels, texture: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link = tmp_path / vgg19_file.name
    link.symlink_to(vgg19_file)
    local = Engine("cpu", weights={"vgg19-torchvision": link}, cache_dir=tmp_path)
    options = StylizeOptions(model="vgg19-torchvision", size=48, iterations=1, scales=1, precision="float32")
    preparing = Thread(target=local.prepare, args=[options])
    preparing.start()
    preparing.join()
    link.unlink()
    local.prepare(options)
    assert local.start(photo, [Style(texture)], options).advance().iteration == 1
    local.prepare(replace(options, padding="zeros"))
    monkeypatch.setattr(hardware, "has_gnu_threads", lambda: True)  # else there may be no other arithmetic
    with pytest.raises(WeightsError):
        local.prepare(replace(options, precision="auto"))


def test_paddings_share_the_layers(photo: Pixels, texture: Pixels, monkeypatch: pytest.MonkeyPatch):
    options = StylizeOptions(size=48, iterations=1, scales=1, precision="float32")
    zeros = replace(options, padding="zeros")
    local = Engine("cpu")
    apart = local.start(photo, [Style(texture)], zeros).advance().total_loss
    both = Engine("cpu")
    first = both.start(photo, [Style(texture)], options)
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("read again"))
    assert both.start(photo, [Style(texture)], zeros).advance().total_loss == apart != first.advance().total_loss


@pytest.mark.parametrize(
    ("taps", "side"),
    [(["relu1_2"], 1), (["pool1"], 2), (["relu2_1"], 2), (["relu5_1", "conv1_1"], 16), (["pool5"], 32)],
)
def test_the_minimum_side_leaves_one_position(taps: list[str], side: int):
    assert NETWORKS["vgg16-caffe"].minimum_side(taps) == side


def test_padding_is_of_the_pictures_edge_alone(real_weights: dict[str, Tensor], photo: Pixels):
    """Zeros at the first convolution: the network's mean colour around the picture."""
    image = as_image(photo)
    network = NETWORKS["vgg16-caffe"]
    zeros = Backbone(network, real_weights, torch.device("cpu"), torch.float32, "zeros")
    mean = torch.tensor(network.mean).flip(0)[None, :, None, None]
    framed = torch.nn.functional.pad(image - mean, (1, 1, 1, 1)) + mean
    wide = Backbone(network, real_weights, torch.device("cpu"), torch.float32).features(framed, ["conv1_1"])
    assert torch.allclose(zeros.features(image, ["conv1_1"])["conv1_1"], wide["conv1_1"][..., 1:-1, 1:-1], atol=1e-3)
