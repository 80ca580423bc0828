"""CIFAR-10: 60 000 photographs, 32x32 colour pixels, 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sfl_flower.data import Samples
from sfl_flower.errors import ConfigError
from sfl_flower.task import SplitTask
from sfl_flower.tasks.images import ImageSet, data_folder
from sfl_flower.tasks.options import whole_number
from sfl_flower.tasks.vision import channels_last, freeze_up_to, resnet18

__all__ = ["cifar10"]

_IMAGES = ImageSet("CIFAR-10", "cifar10_10k_2k.npz", (32, 32, 3), "CIFAR10", "cifar-10-batches-py")
_CLASSES = 10
# Of ImageNet's pixels in 0..1: what torchvision's pre-trained weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(
    train_size: int | None = None,
    test_size: int | None = None,
    data_dir: str | None = None,
    stem: str = "imagenet",
    cut: str = "layer2",
    pretrained: bool = False,
    freeze_bn: bool = False,
    trained: str = "all",
) -> SplitTask:
    """Return the task: ResNet-18 on CIFAR-10, without data augmentation.

    Parameters
    ----------
    train_size, test_size : int, optional
        The first so many images of each set are used, 1 to 50 000 and 1 to 10 000; by default all
        there are. If the folder has ``cifar10_10k_2k.npz`` (a subset of 10 000 and 2000 images) and
        no more is asked for than it holds, that file is read; torchvision's images otherwise.
    data_dir : str, optional
        The folder: with that file, or where torchvision keeps or puts its download. By default the
        environment variable ``SFL_DATA_DIR``, else ``~/.cache/sfl_flower``.
    stem : {"imagenet", "cifar"}
        First layers of the model, see `sfl_flower.tasks.vision.resnet18`.
    cut : str
        A layer of torchvision's ResNet-18.
    pretrained : bool
        Start from torchvision's ImageNet weights; needs the ImageNet stem.
    freeze_bn : bool
        Freeze BatchNorm up to the cut (`freeze_batch_norm`), as HO-SFL needs.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """
    if train_size is not None:
        whole_number("cifar10", "train_size", train_size, 1, 50_000)
    if test_size is not None:
        whole_number("cifar10", "test_size", test_size, 1, 10_000)
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(
            f"Option 'stem' of task 'cifar10' is {stem!r}; it must be imagenet or cifar."
        )
    if pretrained and stem == "cifar":
        raise ConfigError(
            "Option 'pretrained' of task 'cifar10' needs option 'stem' to be imagenet: the "
            "pre-trained ResNet-18 has that stem."
        )
    root = data_folder(data_dir)
    load = partial(_load, root, train_size, test_size)
    model = f"{stem}:{cut}:{pretrained}:{freeze_bn}"
    return SplitTask(
        name="cifar10",
        model=partial(_model, stem, cut, pretrained, freeze_bn),
        cut=cut,
        train=partial(load, "train"),
        test=partial(load, "test"),
        classes=_CLASSES,
        transform=_normalise,
        trained=trained,
        token=f"cifar10:{root.absolute()}:{train_size}:{test_size}:{model}",
    )


def _model(stem: str, cut: str, pretrained: bool, frozen: bool) -> nn.Module:
    model = resnet18(_CLASSES, pretrained=pretrained, stem=stem)
    return freeze_up_to(model, cut) if frozen else model


def _load(
    root: Path, train_size: int | None, test_size: int | None, split: Literal["train", "test"]
) -> Samples:
    stored = _IMAGES.stored(root)
    short = None
    if stored is not None and (
        (train_size or 1) > stored["train"] or (test_size or 1) > stored["test"]
    ):
        # Both sets from one source: a test image of one may be a training image of the other.
        short = (
            f"{root / _IMAGES.file} holds {stored['train']} and {stored['test']} images, fewer "
            "than task.train_size or task.test_size asks for"
        )
    samples = _IMAGES.load(root, split, train_size if split == "train" else test_size, short)
    return Samples(samples.x.permute(0, 3, 1, 2).contiguous(), samples.y.clone())


def _normalise(x: Tensor) -> Tensor:
    """Return bytes [N, 3, H, W] as floats, less ImageNet's mean pixel, over its spread."""
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (_MEAN, _STD))
    return channels_last(x.float().div_(255.0).sub_(mean).div_(std))
