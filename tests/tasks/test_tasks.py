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
from sfl_flower.tasks import TASKS, load_task, read_task_options, task_options
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


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    draw = np.random.Generator(np.random.Philox(key=1))
    np.savez(
        tmp_path / "cifar10_10k_2k.npz",
        x_train=draw.integers(256, size=(30, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(30, dtype=np.uint8) % 10,
        x_test=draw.integers(256, size=(20, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(20, dtype=np.uint8) % 10,
    )
    return tmp_path


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'digits'.*fashion_mnist"):
        load_task("digit")
    with pytest.raises(ConfigError, match=r"no option 'train_sise'.*mean 'train_size'.*data_dir"):
        load_task("fashion_mnist", train_sise=3)
    with pytest.raises(
        ConfigError, match="'digits' has no option 'size'; its options are model, trained"
    ):
        load_task("digits", size=3)


def test_options_and_defaults() -> None:
    assert task_options("fashion_mnist") == {
        "train_size": 60_000,
        "test_size": 10_000,
        "data_dir": None,
        "trained": "all",
    }
    assert set(TASKS) >= {"cifar10", "digits", "fashion_mnist", "synthetic"}


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


def test_cifar10_from_a_file(photographs: Path) -> None:
    task = load_task("cifar10", train_size=25, test_size=10, data_dir=str(photographs))
    task.check()
    train = task.samples("train")
    assert (train.x.shape, train.x.dtype, len(task.samples("test"))) == (
        (25, 3, 32, 32), torch.uint8, 10,
    )  # fmt: skip
    assert train.y.tolist() == [i % 10 for i in range(25)]
    raw = np.load(photographs / "cifar10_10k_2k.npz")["x_train"]
    assert train.x[7, 2, 5, 9] == raw[7, 5, 9, 2]
    x, _ = task.batch(train, slice(0, 25))
    # Of channel 1, mean 0.456 and spread 0.224.
    assert x[3, 1, 4, 6].item() == pytest.approx((raw[3, 4, 6, 1] / 255 - 0.456) / 0.224, abs=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert task.samples("train").x.max() > 1  # the transform writes into nothing of the task


def test_public_images_of_cifar10_are_the_last_ones(photographs: Path) -> None:
    raw = torch.from_numpy(np.load(photographs / "cifar10_10k_2k.npz")["x_train"])
    here: dict[str, Any] = {"data_dir": str(photographs), "public_size": 10}
    task = load_task("cifar10", train_size=20, **here)
    assert torch.equal(task.samples("public").x, raw[20:].permute(0, 3, 1, 2))
    assert load_task("cifar10", train_size=21, **here).public is None


def test_cifar10_takes_all_the_file_has(photographs: Path) -> None:
    task = load_task("cifar10", data_dir=str(photographs))
    assert (len(task.samples("train")), len(task.samples("test"))) == (30, 20)
    assert task_options("cifar10")["train_size"] is None


@pytest.mark.parametrize(
    ("stem", "cut", "frozen", "side", "sizes"),
    [
        ("imagenet", "layer2", False, 4, (683_072, 10_498_570)),
        ("imagenet", "layer2", True, 4, (681_152, 10_498_570)),
        ("cifar", "layer1.0", False, 32, (75_840, 11_098_122)),
    ],
)
def test_cifar10_model(
    photographs: Path, stem: str, cut: str, frozen: bool, side: int, sizes: tuple[int, int]
) -> None:
    task = load_task("cifar10", data_dir=str(photographs), stem=stem, cut=cut, freeze_bn=frozen)
    halves = task.build(0)
    assert (_count(halves.client), _count(halves.server)) == sizes
    x, _ = task.batch(task.samples("test"), slice(0, 2))
    assert halves.client(x).shape[2:] == (side, side)
    assert (problems(halves.client.train()) == []) == frozen


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cifar10_10k_2k.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"must be an \.npz file with the arrays"):
        load_task("cifar10", train_size=3, data_dir=str(tmp_path)).samples("train")


def test_cifar10_options_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"'stem' .* is 'vgg'; it must be imagenet or cifar"):
        load_task("cifar10", stem="vgg")
    with pytest.raises(ConfigError, match=r"'pretrained' .* needs option 'stem' to be imagenet"):
        load_task("cifar10", stem="cifar", pretrained=True)


def test_cifar10_with_group_norm(photographs: Path) -> None:
    task = load_task("cifar10", data_dir=str(photographs), norm="group")
    halves = task.build(0)
    norms = [m for m in halves.client.modules() if isinstance(m, nn.GroupNorm)]
    assert (_count(halves.client), len(norms), norms[0].num_groups) == (683_072, 10, 32)
    assert problems(halves.client.train()) == []
    x, _ = task.batch(task.samples("test"), slice(0, 4))
    one = torch.cat([halves.client(part) for part in x.split(1)])
    assert torch.allclose(halves.client(x), one, atol=1e-5)
    for option in ("pretrained", "freeze_bn"):
        with pytest.raises(ConfigError, match=f"'{option}' .* needs option 'norm' to be batch"):
            load_task("cifar10", norm="group", **{option: True})
    with pytest.raises(ConfigError, match=r"'norm' .* is 'layer'; it must be batch or group"):
        load_task("cifar10", norm="layer")


class _Photographs:
    """Torchvision's CIFAR-10, without a network: arrays and lists, as it has them."""

    reachable: ClassVar[bool] = True

    def __init__(self, root: str, train: bool, download: bool) -> None:
        folder = Path(root) / "cifar-10-batches-py"
        if download and not self.reachable:
            raise RuntimeError("Error downloading cifar-10-python")
        if download:
            folder.mkdir(parents=True)
            (Path(root) / "cifar-10-python.tar.gz").touch()
        elif not folder.is_dir():
            raise RuntimeError("Dataset not found")
        self.data = np.zeros((50 if train else 40, 32, 32, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(len(self.data))]


def test_cifar10_is_downloaded_when_more_is_asked_than_the_file_has(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", _Photographs)
    task = load_task("cifar10", train_size=31, data_dir=str(photographs))
    # Both sets come from one source, also the one of which the file would hold enough.
    assert (len(task.samples("train")), len(task.samples("test"))) == (31, 40)
    assert task.samples("train").y.tolist() == [i % 10 for i in range(31)]
    assert sorted(path.name for path in photographs.iterdir()) == [
        "cifar-10-batches-py", "cifar10_10k_2k.npz",
    ]  # fmt: skip


def test_cifar10_says_what_the_file_lacks(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", _Photographs)
    monkeypatch.setattr(_Photographs, "reachable", False)
    with pytest.raises(DataError, match=r"holds 30 and 20 images, fewer .*task\.test_size .*Error"):
        load_task("cifar10", test_size=21, data_dir=str(photographs)).samples("train")
    with pytest.raises(DataError, match=r"there is no .*cifar10_10k_2k\.npz.*SFL_DATA_DIR"):
        load_task("cifar10", data_dir=str(photographs / "none")).samples("test")


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
        ("cifar10", {"train_size": 50_001}),
        ("cifar10", {"test_size": 0}),
        ("cifar10", {"public_size": 0}),
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


def test_text_becomes_what_the_option_is() -> None:
    given = {"train_size": "25", "data_dir": "there", "test_size": 10, "odd": "1"}
    read = read_task_options("fashion_mnist", given)
    assert read == {"train_size": 25, "data_dir": "there", "test_size": 10, "odd": "1"}
    assert read_task_options("mine", {"size": "3"}) == {"size": "3"}
    with pytest.raises(ConfigError, match=r"task\.train_size is 'many'; it must be a whole number"):
        read_task_options("fashion_mnist", {"train_size": "many"})


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
        model = resnet18(7, stem=stem).eval()
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
        resnet18(stem="vgg")
    with pytest.raises(ConfigError, match="ImageNet stem"):
        resnet18(pretrained=True, stem="cifar")
    with pytest.raises(ConfigError, match="Unknown norm 'layer'"):
        resnet18(norm="layer")
    with pytest.raises(ConfigError, match="has BatchNorm; use norm='batch'"):
        resnet18(pretrained=True, norm="group")
