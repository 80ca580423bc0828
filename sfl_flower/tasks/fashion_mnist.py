"""Fashion-MNIST: 70 000 images of clothes, 28x28 grey pixels, 10 classes (Xiao et al., 2017)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from sfl_flower.data import Samples
from sfl_flower.task import SplitTask
from sfl_flower.tasks.images import ImageSet, data_folder
from sfl_flower.tasks.options import whole_number

__all__ = ["fashion_mnist", "fashion_mnist_model"]

TRAINING, PUBLIC = 60_000, 64
"""Images of the training set, and how many of them, the last, are public."""

_IMAGES = ImageSet("Fashion-MNIST", "fashion_mnist.npz", (28, 28), "FashionMNIST", "FashionMNIST")


def fashion_mnist_model() -> nn.Sequential:
    """Return three convolutions without padding, a global average pool and a linear layer.

    Inputs [N, 1, 28, 28], outputs [N, 10]. 5056 parameters up to ``relu2``, whose output is
    [N, 32, 5, 5]; 9578 after it.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, kernel_size=5, stride=2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, kernel_size=3, stride=2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(32, 32, kernel_size=3),
            relu3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(32, 10),
        )
    )


def fashion_mnist(
    train_size: int = TRAINING,
    test_size: int = 10_000,
    data_dir: str | None = None,
    trained: str = "all",
) -> SplitTask:
    """Return the task, cut after ``relu2``.

    Parameters
    ----------
    train_size, test_size : int
        The first so many images of each set are used, 1 to 60 000 and 1 to 10 000.
    data_dir : str, optional
        Folder with ``fashion_mnist.npz``, or where torchvision keeps or puts its download. By
        default the environment variable ``SFL_DATA_DIR``, else ``~/.cache/sfl_flower``.
    trained : str
        Which client parameters are trained, as `SplitTask` takes it; the directions of a subspace
        are those of the last 64 training images, or of noise where those are in use.

    Raises
    ------
    ConfigError
        A size is out of its range, or `trained` is no choice of parameters.
    """
    whole_number("fashion_mnist", "train_size", train_size, 1, 60_000)
    whole_number("fashion_mnist", "test_size", test_size, 1, 10_000)
    root = data_folder(data_dir)
    return SplitTask(
        name="fashion_mnist",
        model=fashion_mnist_model,
        cut="relu2",
        train=partial(_load, root, "train", train_size),
        test=partial(_load, root, "test", test_size),
        classes=10,
        # Images that are nobody's: none are left where clients have them all.
        public=partial(_public, root) if train_size <= TRAINING - PUBLIC else None,
        transform=_scale,
        trained=trained,
        token=f"fashion_mnist:{root.absolute()}:{train_size}:{test_size}",
    )


def _scale(x: Tensor) -> Tensor:
    """Return pixels in 0..1, float32."""
    return x.float() / 255.0


def _load(root: Path, split: Literal["train", "test"], size: int) -> Samples:
    samples = _IMAGES.load(root, split, size)
    return Samples(samples.x.unsqueeze(1).clone(), samples.y.clone())


def _public(root: Path) -> Samples:
    """Return the last images of the training set."""
    return _load(root, "train", TRAINING).take(slice(TRAINING - PUBLIC, TRAINING))
