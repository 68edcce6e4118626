"""ResNet-50 (He, Zhang, Ren and Sun, arXiv 1512.03385) by torchvision, without torch."""

from nst_engine.network import Tap, TorchvisionNetwork

# Stage s holds that many bottleneck blocks; its first one halves the map, save in stage 1.
BLOCKS_PER_STAGE = (3, 4, 6, 3)
CHANNELS_PER_STAGE = (256, 512, 1024, 2048)
# A 7x7 convolution and a 3x3 maximum, each with a stride of 2.
STEM = (Tap("relu", 64, 2, 3), Tap("maxpool", 64, 4, 5))


def _blocks() -> tuple[Tap, ...]:
    """The bottleneck blocks, each with one 3x3 convolution; in the first of a stage it has the stride."""
    blocks, stride, reach = [], STEM[-1].stride, STEM[-1].reach
    for stage, (count, channels) in enumerate(zip(BLOCKS_PER_STAGE, CHANNELS_PER_STAGE, strict=True), start=1):
        for index in range(count):
            reach += stride
            if stage > 1 and index == 0:
                stride *= 2
            blocks.append(Tap(f"layer{stage}.{index}", channels, stride, reach))
    return tuple(blocks)


BLOCKS = _blocks()

# The weights that the smoothing was published with (arXiv 2104.05623). V2 classify better, by label
# smoothing and mixed pictures, which make features transfer worse (arXiv 2010.16402).
RESNET50_TORCHVISION = TorchvisionNetwork(
    "resnet50-torchvision",
    "ResNet-50, torchvision IMAGENET1K_V1, with smoothed activations",
    "ResNet by He, Zhang, Ren and Sun (arXiv 1512.03385); weights by torchvision, BSD-3-Clause",
    STEM + BLOCKS,
    content_layers={"layer3.5": 1.0},
    style_layers={"relu": 1.0, "layer1.2": 1.0, "layer2.3": 1.0, "layer3.5": 1.0, "layer4.2": 1.0},
    padding=3,
    builder="resnet50",
    classifier="fc",
    modules=(("conv1", "bn1", "relu"), ("maxpool",), *((tap.name,) for tap in BLOCKS)),
)
