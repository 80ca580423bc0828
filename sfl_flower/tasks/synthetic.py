"""Random images with random labels: for measuring speed, memory and bytes, never accuracy."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from sfl_flower.data import Samples, generator
from sfl_flower.task import SplitTask
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.vision import channels_last, freeze_up_to, resnet18

__all__ = ["synthetic"]

_CLASSES = 10


def synthetic(
    train_size: int = 3200,
    test_size: int = 64,
    image_size: int = 32,
    cut: str = "layer2",
    trained: str = "all",
) -> SplitTask:
    """Return the task: ResNet-18 with the ImageNet stem on images of Gaussian noise.

    There is nothing to learn in it. BatchNorm up to the cut is frozen (`freeze_batch_norm`), as a
    forward-only client half needs; cut after ``layer2``, that half trains 681 152 parameters.

    Parameters
    ----------
    train_size, test_size : int
        Images of each set, 1 to 1 000 000.
    image_size : int
        Their side, 8 to 512.
    cut : str
        A layer of torchvision's ResNet-18.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """
    whole_number("synthetic", "train_size", train_size, 1, 1_000_000)
    whole_number("synthetic", "test_size", test_size, 1, 1_000_000)
    whole_number("synthetic", "image_size", image_size, 8, 512)
    return SplitTask(
        name="synthetic",
        model=partial(_model, cut),
        cut=cut,
        train=partial(_noise, "train", train_size, image_size),
        test=partial(_noise, "test", test_size, image_size),
        classes=_CLASSES,
        transform=channels_last,
        trained=trained,
        token=f"synthetic:{train_size}:{test_size}:{image_size}:{cut}",
    )


def _model(cut: str) -> nn.Module:
    return freeze_up_to(resnet18(_CLASSES), cut)


def _noise(split: str, n: int, side: int) -> Samples:
    draw = generator("synthetic", split)
    x = draw.standard_normal((n, 3, side, side), dtype=np.float32)
    return Samples(torch.from_numpy(x), torch.from_numpy(draw.integers(_CLASSES, size=n)))
