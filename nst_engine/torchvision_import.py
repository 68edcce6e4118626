"""Importing torchvision, also where its compiled operators do not load."""

import torch


def weights_url(enum: str) -> str:
    """The address of the IMAGENET1K_V1 weights in torchvision's enum of that name."""
    _declare_missing_operators()
    import torchvision

    url: str = getattr(torchvision.models, enum).IMAGENET1K_V1.url
    return url


def _declare_missing_operators() -> None:
    """Declares `nms` and `qnms` where nobody has.

    torchvision built for CUDA cannot load its operators beside a CPU-only torch, and its import
    then fails on registering shapes for these two. Nothing here calls them.
    """
    for name in ("nms", "qnms"):
        if torch.version.cuda is None and not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
