"""Where modules compute: what the options mean, and what they say where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.training.device import (
    device_of,
    find_device,
    full_precision,
    to_array,
    to_tensor,
)
from tests.second_device import SECOND, second_device

CPU = torch.device("cpu")


def with_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)


def test_a4_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, True)
    assert find_device("auto", "server_device") == torch.device("cuda", 1)
    assert find_device("cuda", "server_device") == torch.device("cuda", 1)
    assert find_device("cpu", "server_device") == CPU
    with_gpu(monkeypatch, False)
    assert find_device("auto", "server_device") == find_device("cpu", "server_device") == CPU


def test_a4_without_a_gpu_cuda_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, False)
    with pytest.raises(ConfigError, match=r"server_device is cuda, but torch .* sees no GPU .*cpu"):
        find_device("cuda", "server_device")
    with pytest.raises(ConfigError, match="'gpu'; it must be one of cpu, auto, cuda"):
        find_device("gpu", "server_device")


def test_products_of_a_gpu_are_float32_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    with_gpu(monkeypatch, True)
    before = flags()
    assert before[1]  # torch's default would round weights to ten bits
    with pytest.raises(ZeroDivisionError), full_precision():
        assert flags() == (False, False)
        raise ZeroDivisionError
    assert flags() == before


def test_products_are_float32_where_a_person_set_the_newer_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if not hasattr(products, "fp32_precision"):
        pytest.skip("this torch has one switch")
    places = [products, cudnn.conv, cudnn.rnn]
    before = [place.fp32_precision for place in places]
    with_gpu(monkeypatch, True)
    products.fp32_precision = "tf32"  # reading the older switch raises from here on
    try:
        with full_precision():
            assert [place.fp32_precision for place in places] == ["ieee"] * 3
        assert [place.fp32_precision for place in places] == ["tf32", *before[1:]]
    finally:
        products.fp32_precision = before[0]
    assert products.allow_tf32 is False  # and can be read again


def test_values_come_and_go_as_they_are() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with second_device():
        there = to_tensor(array, SECOND)
        assert there.device == SECOND
        assert np.array_equal(to_array(there * 2), array * 2)
        assert device_of(nn.Linear(2, 2).to(SECOND)) == SECOND
    assert device_of(nn.Linear(2, 2)) == device_of(nn.ReLU()) == CPU
    here = to_tensor(array, CPU)
    here.zero_()
    assert array.sum() == 15  # a copy


def test_the_second_device_of_the_tests_refuses_what_a_gpu_refuses() -> None:
    layer = nn.Linear(2, 2)
    with second_device():
        layer.to(SECOND)
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="numpy"):
            layer.weight.detach().numpy()
