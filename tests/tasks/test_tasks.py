from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from sfl_flower.data import PartitionSpec
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.split import problems
from sfl_flower.tasks import TASKS, load_task, task_options
from sfl_flower.tasks.vision import resnet18


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.Generator(np.random.Philox(key=1))
    np.savez(
        tmp_path / "fashion_mnist.npz",
        x_train=draw.integers(256, size=(30, 28, 28), dtype=np.uint8),
        y_train=np.arange(30, dtype=np.uint8) % 10,
        x_test=draw.integers(256, size=(20, 28, 28), dtype=np.uint8),
        y_test=np.arange(20, dtype=np.uint8) % 10,
    )
    return tmp_path


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'digits'.*fashion_mnist"):
        load_task("digit")
    with pytest.raises(ConfigError, match=r"no option 'train_sise'.*mean 'train_size'.*data_dir"):
        load_task("fashion_mnist", train_sise=3)
    with pytest.raises(ConfigError, match="'digits' has no option 'size'; it has no options"):
        load_task("digits", size=3)


def test_options_and_defaults() -> None:
    assert task_options("fashion_mnist") == {
        "train_size": 60_000,
        "test_size": 10_000,
        "data_dir": None,
    }
    assert set(TASKS) >= {"digits", "fashion_mnist", "synthetic"}


def test_tasks_loaded_twice_share_what_they_loaded() -> None:
    assert load_task("digits").samples("train") is load_task("digits").samples("train")
    small, large = load_task("synthetic", train_size=2), load_task("synthetic", train_size=3)
    assert (len(small.samples("train")), len(large.samples("train"))) == (2, 3)


def test_digits() -> None:
    task = load_task("digits")
    task.check()
    train, test = task.samples("train"), task.samples("test")
    assert (len(train), len(test)) == (1437, 360)
    assert torch.bincount(test.y).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    x, _ = task.batch(test, slice(0, 360))
    assert (x.shape, x.dtype, x.min().item(), x.max().item()) == (
        (360, 1, 8, 8), torch.float32, 0.0, 1.0,
    )  # fmt: skip
    both = torch.cat([train.x, test.x]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # no image is in both sets
    halves = task.build(0)
    assert (_count(halves.client), _count(halves.server)) == (520, 1226)
    assert problems(halves.client.train()) == []


def test_digits_divide_among_ten_clients() -> None:
    rows = load_task("digits").client_rows(PartitionSpec("dirichlet", clients=10, alpha=0.5))
    assert sum(len(part) for part in rows) == 1437


def test_fashion_mnist_from_a_file(images: Path) -> None:
    task = load_task("fashion_mnist", train_size=25, test_size=10, data_dir=str(images))
    task.check()
    train = task.samples("train")
    assert (train.x.shape, train.x.dtype, len(task.samples("test"))) == (
        (25, 1, 28, 28), torch.uint8, 10,
    )  # fmt: skip
    assert train.y.tolist() == [i % 10 for i in range(25)]
    x, _ = task.batch(train, slice(0, 25))
    raw = np.load(images / "fashion_mnist.npz")["x_train"][:25, None]
    assert np.allclose(x.numpy(), raw / 255, atol=1e-7)


def test_fashion_mnist_model(images: Path) -> None:
    halves = load_task("fashion_mnist", data_dir=str(images)).build(0)
    z = halves.client(torch.zeros(2, 1, 28, 28))
    assert (z.shape, halves.server(z).shape) == ((2, 32, 5, 5), (2, 10))
    assert (_count(halves.client), _count(halves.server)) == (5056, 9578)
    assert problems(halves.client.train()) == []


def test_the_folder_may_come_from_the_environment(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_DATA_DIR", str(images))
    assert len(load_task("fashion_mnist", train_size=7).samples("train")) == 7


def test_a_file_with_too_few_images(images: Path) -> None:
    task = load_task("fashion_mnist", train_size=31, data_dir=str(images))
    with pytest.raises(DataError, match="at least 31 images"):
        task.samples("train")


class _Torchvision:
    """Torchvision's downloader, without a network."""

    fails: ClassVar[bool] = False
    downloads: ClassVar[list[bool]] = []

    def __init__(self, root: str, train: bool, download: bool) -> None:
        folder = Path(root) / "FashionMNIST" / "raw"
        if download and self.fails:
            raise RuntimeError("Error downloading train-images")
        if download:
            self.downloads.append(train)
            folder.mkdir(parents=True)
        elif not folder.is_dir():
            raise RuntimeError("Dataset not found")
        self.data = torch.zeros(30 if train else 20, 28, 28, dtype=torch.uint8)
        self.targets = torch.zeros(len(self.data), dtype=torch.int64)


def test_fashion_mnist_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", _Torchvision)
    monkeypatch.setattr(_Torchvision, "downloads", [])
    root = tmp_path / "new"
    task = load_task("fashion_mnist", train_size=25, test_size=20, data_dir=str(root))
    assert (len(task.samples("train")), len(task.samples("test"))) == (25, 20)
    assert _Torchvision.downloads == [True]
    assert [path.name for path in root.iterdir()] == ["FashionMNIST"]


def test_a_download_beside_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", _Torchvision)
    (tmp_path / "FashionMNIST" / "other").mkdir(parents=True)
    task = load_task("fashion_mnist", train_size=25, test_size=20, data_dir=str(tmp_path))
    assert len(task.samples("test")) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]


def test_neither_file_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", _Torchvision)
    monkeypatch.setattr(_Torchvision, "fails", True)
    with pytest.raises(DataError, match=r"fashion_mnist\.npz.*Error downloading.*SFL_DATA_DIR"):
        load_task("fashion_mnist", data_dir=str(tmp_path)).samples("test")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("fashion_mnist", {"train_size": 0}),
        ("fashion_mnist", {"test_size": 10_001}),
        ("fashion_mnist", {"train_size": "12000"}),
        ("synthetic", {"train_size": True}),
        ("synthetic", {"image_size": 7}),
    ],
)
def test_options_out_of_range(task: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"'{next(iter(options))}' of task '{task}' is .* from"):
        load_task(task, **options)


def test_synthetic() -> None:
    task = load_task("synthetic", train_size=4, test_size=2)
    task.check()
    assert task.samples("train").x.shape == (4, 3, 32, 32)
    halves = task.build(0)
    assert (_count(halves.client), _count(halves.server)) == (681_152, 10_498_570)
    assert problems(halves.client.train()) == []
    z: Tensor = halves.client(task.samples("test").x)
    assert z.shape == (2, 128, 4, 4)


def test_resnet18_stems_and_head() -> None:
    x = torch.zeros(1, 3, 32, 32)
    for stem, side in (("imagenet", 4), ("cifar", 16)):
        model = resnet18(7, stem=stem).eval()  # type: ignore[arg-type]
        shapes: list[torch.Size] = []
        model.get_submodule("layer2").register_forward_hook(
            lambda _m, _i, out, shapes=shapes: shapes.append(out.shape)
        )
        assert model(x).shape == (1, 7)
        assert shapes == [(1, 128, side, side)]


def test_resnet18_errors() -> None:
    with pytest.raises(ConfigError, match="num_classes is 0"):
        resnet18(0)
    with pytest.raises(ConfigError, match="Unknown stem 'vgg'"):
        resnet18(stem="vgg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ImageNet stem"):
        resnet18(pretrained=True, stem="cifar")
