"""The feature networks by name, without torch.

The gateway validates taps against this, so nothing that is imported here may import torch.
"""

from nst_engine.densenet import DENSENET121_TORCHVISION
from nst_engine.network import Network
from nst_engine.resnet import RESNET50_TORCHVISION
from nst_engine.vgg import VGG16_CAFFE, VGG16_TORCHVISION, VGG19_TORCHVISION

__all__ = ["NETWORKS", "Network"]

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        VGG16_CAFFE,
        VGG16_TORCHVISION,
        VGG19_TORCHVISION,
        RESNET50_TORCHVISION,
        DENSENET121_TORCHVISION,
    )
}
