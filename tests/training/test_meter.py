from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.calls import CallCounter
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.training.meter import PeakMemory, counting_flops

MIB = 2**20
BATCH = 32


def network() -> nn.Sequential:
    # Parameters are filled by hand: torch's initialisers would use the global generator.
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
    return net


def batch() -> Tensor:
    return torch.linspace(-1, 1, BATCH * 64).reshape(BATCH, 64)


def in_thread(work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_temporary_counts_although_it_is_freed() -> None:
    with PeakMemory() as meter:
        temporary = torch.empty(8 * MIB, dtype=torch.uint8)
        del temporary
        small = torch.empty(1 * MIB, dtype=torch.uint8)
    assert meter.peak == 8 * MIB
    assert small.numel() == MIB


def test_tensors_that_live_together_add_up() -> None:
    with PeakMemory() as meter:
        kept = [torch.empty(MIB, dtype=torch.uint8) for _ in range(3)]
    assert meter.peak == 3 * MIB
    assert len(kept) == 3


def test_memory_from_before_the_block_does_not_count() -> None:
    with PeakMemory() as empty:
        pass
    assert empty.peak == 0
    outside = [torch.empty(8 * MIB, dtype=torch.uint8)]
    with PeakMemory():
        measured = [torch.empty(4 * MIB, dtype=torch.uint8)]
    with PeakMemory() as meter:
        # torch reports the second release (an earlier block saw the allocation), not the first.
        outside.clear()
        measured.clear()
        kept = torch.empty(2 * MIB, dtype=torch.uint8)
    assert meter.peak == kept.numel() == 2 * MIB


def test_forward_without_graph_keeps_two_activations() -> None:
    net, x = network(), batch()
    with PeakMemory() as meter, torch.no_grad():
        net(x)
    # The output of the first layer and that of the ReLU: 2 x 32 x 256 x 4 bytes.
    assert meter.peak == 2 * BATCH * 256 * 4


def test_backward_needs_more_than_the_parameters_and_the_forward() -> None:
    net, x = network(), batch()
    with PeakMemory() as forward, torch.no_grad():
        net(x)
    with PeakMemory() as backward:
        net(x).sum().backward()
    gradients = sum(p.numel() * 4 for p in net.parameters())
    assert backward.peak > forward.peak
    assert backward.peak > gradients


def test_a_thread_measures_the_same_as_the_main_thread() -> None:
    net, x = network(), batch()
    peaks: list[int] = []

    def measure() -> None:
        net.zero_grad(set_to_none=True)
        with PeakMemory() as meter:
            net(x).sum().backward()
        peaks.append(meter.peak)

    measure()
    in_thread(measure)
    assert peaks[0] == peaks[1] > 0


def test_blocks_on_two_threads_do_not_disturb_each_other() -> None:
    peaks: dict[int, int] = {}

    def measure(size: int) -> None:
        with PeakMemory() as meter:
            torch.empty(size, dtype=torch.uint8)
        peaks[size] = meter.peak

    threads = [threading.Thread(target=measure, args=(n * MIB,)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peaks == {n * MIB: n * MIB for n in (1, 2, 3, 4)}


def test_measuring_does_not_change_results() -> None:
    plain, measured, x = network(), network(), batch()
    plain(x).square().mean().backward()
    with PeakMemory():
        measured(x).square().mean().backward()
    for a, b in zip(plain.parameters(), measured.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_an_error_in_the_block_passes_and_leaves_the_meter_usable() -> None:
    with pytest.raises(ZeroDivisionError), PeakMemory() as failed:
        torch.empty(MIB, dtype=torch.uint8)
        raise ZeroDivisionError
    assert failed.peak == MIB
    with PeakMemory() as meter:
        torch.empty(2 * MIB, dtype=torch.uint8)
    assert meter.peak == 2 * MIB


def test_nested_blocks_are_refused() -> None:
    with PeakMemory() as outer:
        with pytest.raises(TrainingError, match="already runs on this thread"), PeakMemory():
            pass
        torch.empty(MIB, dtype=torch.uint8)
    assert outer.peak == MIB


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="use cpu or cuda"):
        PeakMemory("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        PeakMemory("cuda")


def test_on_cuda_it_is_the_allocators_own_peak_above_the_level_at_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    told = {"memory_allocated": 100, "max_memory_allocated": 350}

    def answer(name: str, device: torch.device) -> int:
        asked.append(name)
        return told.get(name, 0)

    for name in ("synchronize", "reset_peak_memory_stats", *told):
        monkeypatch.setattr(f"torch.cuda.{name}", partial(answer, name))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sfl_flower.training.meter._open_blas", lambda device: asked.append("blas"))
    with PeakMemory("cuda") as meter:
        assert asked == ["blas", "synchronize", "reset_peak_memory_stats", "memory_allocated"]
    assert (meter.peak, meter.levels) == (250, [])
    assert asked[4:] == ["synchronize", "max_memory_allocated"]


@pytest.mark.gpu
def test_cuda_peak() -> None:
    with PeakMemory("cuda") as meter:
        temporary = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
        del temporary
    assert meter.peak == 8 * MIB


def test_forwards_and_backwards_are_counted() -> None:
    net, x = network(), batch()
    with CallCounter(net) as counter:
        with torch.no_grad():
            net(x)
            net(x)
        assert (counter.forwards, counter.backwards) == (2, 0)
        net(x).sum().backward()
        net(x)
    assert (counter.forwards, counter.backwards) == (4, 1)


def test_calls_outside_the_block_do_not_count() -> None:
    net, x = network(), batch()
    net(x)
    with CallCounter(net) as counter:
        out = net(x)
    out.sum().backward()
    net(x)
    assert (counter.forwards, counter.backwards) == (1, 0)


def test_a_backward_to_several_outputs_counts_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            out = self.net(x)
            return {"pair": (out, out * 2)}

    module = Two()
    with CallCounter(module) as counter:
        first, second = module(batch())["pair"]
        (first + second).sum().backward()
        _, second = module(batch())["pair"]
        second.sum().backward()
    assert (counter.forwards, counter.backwards) == (2, 2)


def test_counting_does_not_change_gradients_through_an_in_place_layer() -> None:
    net = network()
    net[1] = nn.ReLU(inplace=True)
    other = copy.deepcopy(net)
    with CallCounter(net[0]) as counter:
        net(batch()).sum().backward()
    other(batch()).sum().backward()
    assert counter.backwards == 1
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_backward_of_a_convolution_counts_twice_its_forward(groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, groups=groups, padding=1, bias=False)
    x = torch.ones(2, 4, 5, 5, requires_grad=True)
    with counting_flops() as counter:
        out = conv(x)
    # 2 samples, 25 positions, 8 outputs of 4 / groups inputs times 9, a product and a sum each.
    forward = 2 * 25 * 8 * (4 // groups) * 9 * 2
    assert counter.get_total_flops() == forward
    with counting_flops() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_a_backward_without_the_gradient_of_inputs_counts_once() -> None:
    conv = nn.ConvTranspose2d(4, 8, 3, groups=2, bias=False)
    out = conv(torch.ones(2, 4, 5, 5))
    with counting_flops() as counter:
        out.sum().backward()
    # Each of 25 inputs meets 9 places of 4 outputs of its group.
    assert counter.get_total_flops() == 2 * 25 * 4 * 4 * 9 * 2
