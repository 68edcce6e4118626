"""Importing torchvision, also where its compiled operators do not load."""

from types import ModuleType

import torch
from torch import nn


def models() -> ModuleType:
    """`torchvision.models`.

    torchvision built for CUDA cannot load its operators beside a CPU-only torch, and its import then
    fails on registering shapes for `nms` and `qnms`. They are declared where nobody has: nothing
    here calls them.
    """
    for name in ("nms", "qnms"):
        if torch.version.cuda is None and not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    module: ModuleType = torchvision.models
    return module


def weights_url(enum: str) -> str:
    """The address of the IMAGENET1K_V1 weights in torchvision's enum of that name."""
    url: str = getattr(models(), enum).IMAGENET1K_V1.url
    return url


def build(builder: str, classifier: str) -> nn.Module:
    """The architecture that `builder` of `torchvision.models` makes, without its submodule `classifier`.

    Its tensors are on the meta device: they have shapes and no values.
    """
    with torch.device("meta"):
        module: nn.Module = getattr(models(), builder)(weights=None)
    setattr(module, classifier, nn.Identity())
    return module
