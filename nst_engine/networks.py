"""The feature networks by name: layer plans and tap names, without torch.

The gateway validates taps against this, so nothing here may import torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CAFFE_CREDIT = (
    "VGG by the Visual Geometry Group, University of Oxford (Simonyan and Zisserman, arXiv 1409.1556), CC BY 4.0"
)
TORCHVISION_CREDIT = "VGG architecture by the Visual Geometry Group, Oxford; weights by torchvision, BSD-3-Clause"


@dataclass(frozen=True)
class Network:
    """A feature network and where its weights come from.

    `convs_per_block` is the layer plan: block b holds that many 3x3 convolutions, each followed by
    a ReLU, and ends with a 2x2 pooling. `channels_per_block` gives their width. The network wants
    its input as (pixel - mean) / std in 0-255 units, channels in the order `channel_order`, to
    which `mean` and `std` belong.
    """

    name: str
    description: str
    credit: str
    convs_per_block: tuple[int, ...]
    channel_order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels_per_block: tuple[int, ...] = (64, 128, 256, 512, 512)

    @property
    def taps(self) -> tuple[str, ...]:
        """Tap names from shallow to deep: conv1_1, relu1_1, ..., pool5."""
        names: list[str] = []
        for block, convs in enumerate(self.convs_per_block, start=1):
            for index in range(1, convs + 1):
                names += [f"conv{block}_{index}", f"relu{block}_{index}"]
            names.append(f"pool{block}")
        return tuple(names)

    @property
    def convs(self) -> dict[str, tuple[int, int]]:
        """Convolutions from shallow to deep: name to (channels in, channels out)."""
        shapes: dict[str, tuple[int, int]] = {}
        channels = 3
        for block, convs in enumerate(self.convs_per_block, start=1):
            for index in range(1, convs + 1):
                width = self.channels_per_block[block - 1]
                shapes[f"conv{block}_{index}"] = (channels, width)
                channels = width
        return shapes

    def stride(self, tap: str) -> int:
        """Pixels from one position at `tap` to the next: each pooling so far doubles it."""
        return int(2 ** (int(tap[4]) - (not tap.startswith("pool"))))

    def channels(self, tap: str) -> int:
        """Channels of the map at `tap`."""
        return self.channels_per_block[int(tap[4]) - 1]

    def minimum_side(self, taps: Iterable[str]) -> int:
        """The shortest side in pixels that leaves at least one position at each of `taps`."""
        return max((self.stride(tap) for tap in taps), default=1)

    def reach(self, taps: Iterable[str]) -> int:
        """How many pixels beyond the square it stands for a position at the deepest of `taps` sees, on each side.

        A convolution adds one position at its own stride; pooling adds none. The receptive field is
        2 * reach + stride: 132 px at relu5_1 of VGG-16, 156 of VGG-19.
        """
        last = max((self.taps.index(tap) for tap in taps), default=-1)
        return sum(self.stride(tap) for tap in self.taps[: last + 1] if tap.startswith("conv"))


VGG16_PLAN = (2, 2, 3, 3, 3)
VGG19_PLAN = (2, 2, 4, 4, 4)
CAFFE_INPUT = ("BGR", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
TORCHVISION_INPUT = ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            "vgg16-caffe",
            "VGG-16, the original Oxford weights: what the style transfer papers use",
            CAFFE_CREDIT,
            VGG16_PLAN,
            *CAFFE_INPUT,
        ),
        Network(
            "vgg16-torchvision",
            "VGG-16, torchvision IMAGENET1K_V1",
            TORCHVISION_CREDIT,
            VGG16_PLAN,
            *TORCHVISION_INPUT,
        ),
        Network(
            "vgg19-torchvision",
            "VGG-19, torchvision IMAGENET1K_V1",
            TORCHVISION_CREDIT,
            VGG19_PLAN,
            *TORCHVISION_INPUT,
        ),
    )
}
