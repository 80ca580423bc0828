"""Torchvision models with the head and the stem that a task needs."""

from __future__ import annotations

from typing import Literal

from torch import nn

from sfl_flower.errors import ConfigError

__all__ = ["resnet18"]


def resnet18(
    num_classes: int = 10,
    pretrained: bool = False,
    stem: Literal["imagenet", "cifar"] = "imagenet",
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

    Raises
    ------
    ConfigError
        An argument is out of its range, or a CIFAR stem is asked of pre-trained weights.
    """
    from torchvision import models

    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; it must be at least 1.")
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(f"Unknown stem {stem!r}; choose 'imagenet' or 'cifar'.")
    if pretrained and stem == "cifar":
        raise ConfigError("The pre-trained ResNet-18 has the ImageNet stem; use stem='imagenet'.")
    if not pretrained:
        model: nn.Module = models.resnet18(num_classes=num_classes)
    else:
        model = models.resnet18(weights=models.ResNet18_Weights.IMAGENET1K_V1)
        model.fc = nn.Linear(512, num_classes)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
