"""CIFAR-10: 60 000 photographs, 32x32 colour pixels, 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Callable
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

__all__ = ["CLASSES", "cifar10", "images", "public_images"]

TRAINING, PUBLIC, CLASSES = 50_000, 64, 10
"""Images of the training set, how many, the last, are public by default, and the classes."""

Split = Literal["train", "test"]

_IMAGES = ImageSet("CIFAR-10", "cifar10_10k_2k.npz", (32, 32, 3), "CIFAR10", "cifar-10-batches-py")
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
    norm: str = "batch",
    trained: str = "all",
    public_size: int = PUBLIC,
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
        Freeze BatchNorm up to the cut (`freeze_batch_norm`).
    norm : {"batch", "group"}
        BatchNorm, or GroupNorm in its place; the latter neither pre-trained nor with `freeze_bn`.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it; the directions of a subspace
        are those of the public images, or of noise without any.
    public_size : int
        The last so many training images are nobody's, the public ones; there are none where
        `train_size` needs some of them.

    Raises
    ------
    ConfigError
        An option is out of its range.
    """
    if train_size is not None:
        whole_number("cifar10", "train_size", train_size, 1, TRAINING)
    if test_size is not None:
        whole_number("cifar10", "test_size", test_size, 1, 10_000)
    whole_number("cifar10", "public_size", public_size, 1, TRAINING - 1)
    if stem not in ("imagenet", "cifar"):
        raise ConfigError(
            f"Option 'stem' of task 'cifar10' is {stem!r}; it must be imagenet or cifar."
        )
    if pretrained and stem == "cifar":
        raise ConfigError(
            "Option 'pretrained' of task 'cifar10' needs option 'stem' to be imagenet: the "
            "pre-trained ResNet-18 has that stem."
        )
    if norm not in ("batch", "group"):
        raise ConfigError(
            f"Option 'norm' of task 'cifar10' is {norm!r}; it must be batch or group."
        )
    if norm == "group" and (pretrained or freeze_bn):
        option = "pretrained" if pretrained else "freeze_bn"
        raise ConfigError(
            f"Option {option!r} of task 'cifar10' needs option 'norm' to be batch: with group "
            "there is no BatchNorm."
        )
    root = data_folder(data_dir)
    load = partial(images, root, train_size, test_size)
    model = f"{stem}:{cut}:{pretrained}:{freeze_bn}:{norm}"
    return SplitTask(
        name="cifar10",
        model=partial(_model, stem, cut, pretrained, freeze_bn, norm),
        cut=cut,
        train=partial(load, "train"),
        test=partial(load, "test"),
        classes=CLASSES,
        public=public_images(root, train_size, test_size, public_size),
        transform=_normalise,
        trained=trained,
        token=f"cifar10:{root.absolute()}:{train_size}:{test_size}:{public_size}:{model}",
    )


def _model(stem: str, cut: str, pretrained: bool, frozen: bool, norm: str) -> nn.Module:
    model = resnet18(CLASSES, pretrained=pretrained, stem=stem, norm=norm)
    return freeze_up_to(model, cut) if frozen else model


def images(root: Path, train_size: int | None, test_size: int | None, split: Split) -> Samples:
    """Return the first images of a set, bytes [N, 3, 32, 32], and their labels.

    Parameters
    ----------
    root : Path
        The folder.
    train_size, test_size : int, optional
        How many are used of each set, whichever is asked for: both come from one source.
    split : {"train", "test"}
        Which set.

    Raises
    ------
    DataError
        There are no such images, or too few.
    """
    stored = _IMAGES.stored(root)
    short = None
    if stored is not None and not _enough(stored, train_size, test_size):
        # Both sets from one source: a test image of one may be a training image of the other.
        short = (
            f"{root / _IMAGES.file} holds {stored['train']} and {stored['test']} images, fewer "
            "than task.train_size or task.test_size asks for"
        )
    samples = _IMAGES.load(root, split, train_size if split == "train" else test_size, short)
    return Samples(samples.x.permute(0, 3, 1, 2).contiguous(), samples.y.clone())


def public_images(
    root: Path, train_size: int | None, test_size: int | None, size: int = PUBLIC
) -> Callable[[], Samples] | None:
    """Return what gives the last training images of the source; None where they are in use."""
    stored = _IMAGES.stored(root)
    here = stored is not None and _enough(stored, train_size, test_size)
    total = stored["train"] if stored is not None and here else TRAINING
    if train_size is None or train_size > total - size:
        return None
    return partial(_last, root, total, test_size, size)


def _enough(stored: dict[Split, int], train_size: int | None, test_size: int | None) -> bool:
    return (train_size or 1) <= stored["train"] and (test_size or 1) <= stored["test"]


def _last(root: Path, total: int, test_size: int | None, size: int) -> Samples:
    return images(root, total, test_size, "train").take(slice(total - size, total))


def _normalise(x: Tensor) -> Tensor:
    """Return bytes [N, 3, H, W] as floats, less ImageNet's mean pixel, over its spread."""
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (_MEAN, _STD))
    return channels_last(x.float().div_(255.0).sub_(mean).div_(std))
