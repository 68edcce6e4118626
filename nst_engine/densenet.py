"""DenseNet-121 (Huang, Liu, van der Maaten and Weinberger, arXiv 1608.06993) by torchvision, without torch."""

from nst_engine.network import Tap, TorchvisionNetwork

# Each layer of a block adds 32 channels to what it is given; a transition halves channels and map.
LAYERS_PER_BLOCK = (6, 12, 24, 16)
GROWTH = 32
# A 7x7 convolution and a 3x3 maximum, each with a stride of 2.
STEM = (Tap("relu0", 64, 2, 3), Tap("pool0", 64, 4, 5))


def _blocks() -> tuple[Tap, ...]:
    """The dense blocks, with one 3x3 convolution in each layer, and the transitions between them."""
    blocks = []
    channels, stride, reach = STEM[-1].channels, STEM[-1].stride, STEM[-1].reach
    for block, count in enumerate(LAYERS_PER_BLOCK, start=1):
        if block > 1:
            channels, stride = channels // 2, stride * 2
            blocks.append(Tap(f"transition{block - 1}", channels, stride, reach))
        channels, reach = channels + count * GROWTH, reach + count * stride
        blocks.append(Tap(f"denseblock{block}", channels, stride, reach))
    return tuple(blocks)


BLOCKS = _blocks()

DENSENET121_TORCHVISION = TorchvisionNetwork(
    "densenet121-torchvision",
    "DenseNet-121, torchvision IMAGENET1K_V1, with smoothed activations",
    "DenseNet by Huang, Liu, van der Maaten and Weinberger (arXiv 1608.06993); weights by torchvision, BSD-3-Clause",
    STEM + BLOCKS,
    content_layers={"denseblock3": 1.0},
    style_layers={"relu0": 1.0, **{f"denseblock{block}": 1.0 for block in range(1, 5)}},
    padding=3,
    builder="densenet121",
    classifier="classifier",
    modules=(
        ("features.conv0", "features.norm0", "features.relu0"),
        ("features.pool0",),
        *((f"features.{tap.name}",) for tap in BLOCKS),
    ),
)
