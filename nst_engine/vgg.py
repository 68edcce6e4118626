"""VGG-16 and VGG-19 (Simonyan and Zisserman, arXiv 1409.1556), without torch."""

from collections.abc import Collection

from nst_engine.network import Network, Tap

CAFFE_CREDIT = (
    "VGG by the Visual Geometry Group, University of Oxford (Simonyan and Zisserman, arXiv 1409.1556), CC BY 4.0"
)
TORCHVISION_CREDIT = "VGG architecture by the Visual Geometry Group, Oxford; weights by torchvision, BSD-3-Clause"

# Block b holds that many 3x3 convolutions, each followed by a ReLU, and ends with a 2x2 pooling.
VGG16_PLAN = (2, 2, 3, 3, 3)
VGG19_PLAN = (2, 2, 4, 4, 4)
CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)

CONTENT_LAYERS = {"relu4_2": 1.0}
STYLE_LAYERS = {f"relu{block}_1": 1.0 for block in range(1, 6)}


class Vgg(Network):
    """A plain chain of 3x3 convolutions, ReLUs and poolings, each of them a tap: conv1_1, relu1_1, ..., pool5."""

    spares = True

    @property
    def convs(self) -> dict[str, tuple[int, int]]:
        """Convolutions from shallow to deep: name to (channels in, channels out)."""
        shapes: dict[str, tuple[int, int]] = {}
        channels = 3
        for tap in self.layers:
            if tap.name.startswith("conv"):
                shapes[tap.name] = (channels, tap.channels)
                channels = tap.channels
        return shapes

    def late_relus(self, taps: Collection[str], pooling: str) -> frozenset[str]:
        """The ReLUs that can come after the pooling that follows them: a maximum can go through one as well."""
        if pooling != "max":
            return frozenset()
        threes = zip(self.taps, self.taps[1:], self.taps[2:], strict=False)
        return frozenset(
            relu
            for conv, relu, following in threes
            if following.startswith("pool") and conv not in taps and relu not in taps
        )


def _layers(plan: tuple[int, ...]) -> tuple[Tap, ...]:
    """The taps of a layer plan. A convolution reaches one position further; pooling no further."""
    layers, stride, reach = [], 1, 0
    for block, (convs, channels) in enumerate(zip(plan, CHANNELS_PER_BLOCK, strict=True), start=1):
        for index in range(1, convs + 1):
            reach += stride
            layers += [Tap(f"{kind}{block}_{index}", channels, stride, reach) for kind in ("conv", "relu")]
        stride *= 2
        layers.append(Tap(f"pool{block}", channels, stride, reach))
    return tuple(layers)


VGG16_CAFFE = Vgg(
    "vgg16-caffe",
    "VGG-16, the original Oxford weights: what the style transfer papers use",
    CAFFE_CREDIT,
    _layers(VGG16_PLAN),
    CONTENT_LAYERS,
    STYLE_LAYERS,
    padding=1,
    channel_order="BGR",
    mean=(103.939, 116.779, 123.68),
    std=(1.0, 1.0, 1.0),
)
VGG16_TORCHVISION = Vgg(
    "vgg16-torchvision",
    "VGG-16, torchvision IMAGENET1K_V1",
    TORCHVISION_CREDIT,
    _layers(VGG16_PLAN),
    CONTENT_LAYERS,
    STYLE_LAYERS,
    padding=1,
)
VGG19_TORCHVISION = Vgg(
    "vgg19-torchvision",
    "VGG-19, torchvision IMAGENET1K_V1",
    TORCHVISION_CREDIT,
    _layers(VGG19_PLAN),
    CONTENT_LAYERS,
    STYLE_LAYERS,
    padding=1,
)
