"""Torchvision models with the head and the stem that a task needs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.split import freeze_batch_norm

__all__ = ["channels_last", "freeze_up_to", "resnet18"]

_GROUPS = 32


def channels_last(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] laid out with the channels of a pixel side by side.

    A transform for tasks whose client half is a convolutional net: on the CPU, convolutions and
    above all max pools read that layout faster (a quarter of ResNet-18's forward to layer2 at
    3x32x32), and their outputs keep it.
    """
    return x.contiguous(memory_format=torch.channels_last)


def freeze_up_to(model: nn.Module, cut: str) -> nn.Module:
    """Freeze BatchNorm (`freeze_batch_norm`) in the stages of a model up to that of the cut.

    Parameters
    ----------
    model : nn.Module
        A model whose children run in order; changed in place and returned.
    cut : str
        Name of the layer that ends the client half. A stage cut in its middle is frozen whole.
    """
    for name, stage in model.named_children():
        freeze_batch_norm(stage)
        if name == cut.partition(".")[0]:
            break
    return model


def resnet18(
    num_classes: int = 10,
    pretrained: bool = False,
    stem: str = "imagenet",
    norm: str = "batch",
) -> nn.Module:
    """Return torchvision's ResNet-18 with a new last layer.

    Parameters
    ----------
    num_classes : int
        Outputs, at least 1.
    pretrained : bool
        Start from torchvision's ImageNet weights (downloaded once by torchvision).
    stem : {"imagenet", "cifar"}
        ``imagenet``: 7x7 convolution of stride 2 and a max pool, as published. ``cifar``: 3x3
        convolution of stride 1 and no pool, for images of about 32x32.
    norm : {"batch", "group"}
        ``batch``: BatchNorm, as published. ``group``: GroupNorm of 32 groups (Wu and He, 2018) in
        its place, which has no statistics of a batch and no modes.

    Raises
    ------
    ConfigError
        An argument is out of its range, or a CIFAR stem or GroupNorm is asked of pre-trained
        weights.
    """
    from torchvision import models

    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; it must be at least 1.")
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(f"Unknown stem {stem!r}; choose 'imagenet' or 'cifar'.")
    if pretrained and stem == "cifar":
        raise ConfigError("The pre-trained ResNet-18 has the ImageNet stem; use stem='imagenet'.")
    if norm not in ("batch", "group"):
        raise ConfigError(f"Unknown norm {norm!r}; choose 'batch' or 'group'.")
    if pretrained and norm == "group":
        raise ConfigError("The pre-trained ResNet-18 has BatchNorm; use norm='batch'.")
    if not pretrained:
        layers = {} if norm == "batch" else {"norm_layer": partial(nn.GroupNorm, _GROUPS)}
        model: nn.Module = models.resnet18(num_classes=num_classes, **layers)
    else:
        model = models.resnet18(weights=models.ResNet18_Weights.IMAGENET1K_V1)
        model.fc = nn.Linear(512, num_classes)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
