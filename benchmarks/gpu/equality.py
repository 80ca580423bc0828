"""Directions, replay and whole runs on a device, held against the CPU's to the bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figure import Figure
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.runs import plan_on, waited
from benchmarks.trial import train
from sfl_flower.data import Samples, seeded_construction
from sfl_flower.task import SplitTask
from sfl_flower.zo import (
    LAWS,
    OPTIMIZERS,
    Directions,
    Guide,
    Key,
    OptimizerSpec,
    ParameterVector,
    Walk,
    run_key,
)
from sfl_flower.zo.device_normals import normals_on
from sfl_flower.zo.device_words import words_on
from sfl_flower.zo.gaussian import normals
from sfl_flower.zo.words import WordStream

__all__ = ["directions", "replay", "whole_run"]

RUN = run_key("gpu", 0)
SHAPES = ((64, 3, 7, 7), (64,), (128, 64, 3, 3), (), (1, 77), (77, 1), (301, 517))
CLOSE = 0.05
"""How far a run on a GPU may end from the CPU's, as a share of the way: it rounds otherwise."""


def _share(here: Tensor, there: Tensor) -> float:
    """Return which share of the elements has the same bits."""
    own, other = here.contiguous().numpy(), there.cpu().contiguous().numpy()
    if own.shape != other.shape or own.dtype != other.dtype:
        return 0.0
    same = own.reshape(-1).view(np.uint8) == other.reshape(-1).view(np.uint8)
    return float(same.reshape(max(1, own.size), -1).all(axis=1).mean())


def _equal(name: str, shares: list[float], setting: str) -> Figure:
    return Figure(f"gpu_equal_{name}", min(shares), "share", 1.0, setting)


def directions(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield which share of words, values and sums has the CPU's bits, and what they cost."""
    count = 4_000 if small else 4_000_000
    starts = (0, 1, 7, 4 * (1 << 31) - 5, 1 << 36)
    keys = (0, (1 << 128) - 1, 0x0123456789ABCDEF << 64 | 0xFEDCBA9876543210)
    shares = []
    for start in starts:
        found = words_on(device, keys, start, count).cpu()
        for row, key in zip(found, keys, strict=True):
            own = torch.from_numpy(WordStream(key, start).read(count).view(np.int64))
            shares.append(_share(own, row))
    yield _equal("words", shares, f"{count:,} words of {len(keys)} keys from {len(starts)} places")

    edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    halves = np.concatenate([edges, WordStream(3).read(count).view(np.uint32)])
    here = torch.from_numpy(normals(halves))
    there = normals_on(torch.from_numpy(halves.view(np.int32)).to(device))
    yield _equal("normals", [_share(here, there)], f"{len(halves):,} halves of words")

    shapes = SHAPES if small else (*SHAPES, (3001, 2003))
    for law in LAWS:
        yield _law(device, law, shapes)
    yield _guide(device, SHAPES)
    yield from _costs(device, 1 << 16 if small else 1 << 26)


def _law(device: torch.device, law: str, shapes: tuple[tuple[int, ...], ...]) -> Figure:
    made = Directions(RUN, law, shapes)
    size, one = made.size, np.float32(1.0)
    keys = [Key(5, 1, 2, probe) for probe in range(3)]
    shares = []
    for u, key in zip(made.of_keys(keys), keys, strict=True):
        whole = u.values()
        there = made.values(key).on(device, 0, size, one)
        shares.append(_share(whole, there))
        base = torch.linspace(-1.0, 1.0, size)
        for start, stop in ((0, size), (5, size - 3), (size // 2 + 1, size // 2 + 70)):
            piece = base[start:stop].clone()
            here, other = torch.empty_like(piece), torch.empty_like(piece).to(device)
            u.add_to(here, piece, -3e-3, start)
            u.times(-3e-3)._add_device(other, piece.to(device), start)
            shares.append(_share(here, other))
    setting = f"base - 0.003 u over {size:,} elements, three directions drawn at once, three pieces"
    return _equal(f"direction_{law}", shares, setting)


def _guide(device: torch.device, shapes: tuple[tuple[int, ...], ...]) -> Figure:
    size = Directions(RUN, "rademacher", shapes).size
    draw = np.random.default_rng(0)
    guide = Guide.towards(draw.standard_normal(size).astype(np.float32), shapes)
    assert guide is not None
    out, constant = np.empty(size, dtype=np.float32), np.float32(0.3)
    guide.values(shapes).write(out, 0, constant)
    there = guide.values(shapes).on(device, 0, size, constant)
    return _equal("guide", [_share(torch.from_numpy(out), there)], f"{size:,} elements")


def _costs(device: torch.device, size: int) -> Iterator[Figure]:
    """Yield what making a direction on the device takes, beside making it here and copying it."""
    for law in ("rademacher", "gaussian"):
        made = Directions(RUN, law, [(size,)])
        out = torch.empty(size, device=device)
        seconds: dict[str, list[float]] = {"there": [], "copied": []}
        for turn in range(3):
            for way in seconds:
                u = made.of(Key(turn))
                waited(device)
                began = perf_counter()
                if way == "there":
                    u.times(1e-3)._add_device(out, out, 0)
                else:
                    out.add_(u.values().to(device), alpha=1e-3)
                waited(device)
                seconds[way].append(perf_counter() - began)
        there, copied = (min(found) for found in seconds.values())
        yield Figure(
            f"gpu_direction_there_vs_copied_{law}",
            copied / there,
            "ratio",
            None,
            f"a direction of {size:,} elements drawn and added on {device.type}, {1e3 * there:.2f} "
            f"ms, against drawn on the CPU and copied, {1e3 * copied:.2f} ms; best of 3",
        )


def replay(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield whether walks of every optimiser and law end at the CPU's bits on the device."""
    model = MODELS[0](small)
    with seeded_construction(0):
        half = model.task.build(0).client
    here = ParameterVector(half)
    theta, names = here.anchor.clone(), here.shapes
    shares, count = [], 0
    for law in LAWS:
        for optimizer in OPTIMIZERS if law == "rademacher" else ("sgd", "adam"):
            made = Directions(RUN, law, names)
            ends = []
            for place in (torch.device("cpu"), device):
                walk = Walk(theta.clone().to(place), OptimizerSpec(optimizer), made)
                for step in range(3):
                    keys = [Key(step, 0, 1, probe) for probe in range(5)]
                    told = np.linspace(-1.0, 2.0, 5).astype(np.float32)
                    walk.step(keys, told, 0.01)
                ends.append(walk.theta)
            shares.append(_share(ends[0].cpu(), ends[1]))
            count += 1
    setting = f"{count} walks of three steps of five directions over {theta.numel():,} parameters"
    yield _equal("replay", shares, setting)
    yield _equal("probe", _probes(half, device), "parameters inside probes, and after them")


def _probes(half: nn.Module, device: torch.device) -> list[float]:
    """Return shares of equal bits of parameters inside probes and after them."""
    shares: list[float] = []
    here = ParameterVector(half)
    us = here.directions(RUN, "rademacher").of_step(1, 0, 1, 2)
    inside = []
    for u in us:
        with here.probe(u, 1e-3, at_once=True):
            inside.append([p.detach().clone() for p in here.parameters])
    before = here.anchor.clone()
    half.to(device)
    there = ParameterVector(half)
    for u, wanted in zip(
        there.directions(RUN, "rademacher").of_step(1, 0, 1, 2), inside, strict=True
    ):
        with there.probe(u, 1e-3, at_once=True):
            shares += [_share(a, p.detach()) for a, p in zip(wanted, there.parameters, strict=True)]
    return [*shares, _share(before, there.anchor)]


def _exact_half(rows: int, columns: int) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        numbers = torch.arange(rows * columns).reshape(rows, columns)
        layer.weight.copy_((numbers * 7 % 9 - 4) / 4.0)
    return layer


def _exact_model() -> nn.Module:
    return nn.Sequential(OrderedDict(first=_exact_half(8, 6), out=_exact_half(1, 8)))


def _exact_samples(context: Context | None = None) -> Samples:
    numbers = torch.arange(8 * 6).reshape(8, 6)
    if context is not None:
        numbers += 11 * int(context.node_config["partition-id"])
    return Samples((numbers * 5 % 7 - 3).float(), numbers[:, 0] % 2)


def _squared(output: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(output.reshape(-1), y.to(output.dtype))


def _matched(output: Tensor, y: Tensor) -> Tensor:
    return ((output.reshape(-1) > 0.5) == (y > 0)).float()


def exact_task() -> SplitTask:
    """Return a task whose round has no rounding anywhere.

    Weights, inputs, rates and μ are small multiples of powers of two, and so is all that a round of
    them gives: every order of its sums is the same number.
    """
    return SplitTask(
        name="gpu-exact", model=_exact_model, cut="first",
        train=lambda context: _exact_samples(context), test=_exact_samples, classes=2,
        loss=_squared, metrics={"accuracy": _matched}, token="gpu-exact",
    )  # fmt: skip


EXACT: dict[str, Any] = {
    "clients": 4, "rounds": 1, "batch_size": 8, "probes": 4, "mu": 2.0**-6, "client_lr": 2.0**-6,
    "server_lr": 2.0**-8, "server_momentum": 0.0, "clip_norm": 0.0, "server_steps": "round",
}  # fmt: skip


def whole_run(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield whether runs on the device are those on the CPU."""
    task, cpu = exact_task(), torch.device("cpu")
    found = [_ended(place, task, "ho_sfl", **EXACT) for place in (cpu, device)]
    models = [strategy.model() for strategy in found]
    shares = [_share(models[0][name], models[1][name]) for name in models[0]]
    shares.append(float(_bytes(found[0]) == _bytes(found[1])))
    shares.append(float(found[0].records[-1].digest == found[1].records[-1].digest))
    yield _equal(
        "run", shares, "a round of HO-SFL without rounding, 4 clients: model, journal and ledger"
    )
    rounds = 2 if small else 5
    model = MODELS[0](True)
    for method in ("ho_sfl", "heron", "splitfed_v2"):
        options: dict[str, Any] = {
            "clients": 2, "rounds": rounds, "batch_size": model.batch // 2, "client_lr": 1e-3,
        }  # fmt: skip
        if method != "ho_sfl":
            options["local_steps"] = 1
        if method != "splitfed_v2":
            options["probes"] = 2
        if method == "heron":
            # A difference of losses: at a shorter μ its last bits are rounding.
            options |= {"head": "pooled", "mu": 1e-2}
        here, there = (_ended(place, model.task, method, **options) for place in (cpu, device))
        first = model.task.build(here.config.model_seed)
        start = {
            k: v for half in (first.client, first.server) for k, v in half.state_dict().items()
        }
        yield Figure(
            f"gpu_run_apart_{method}",
            _apart(start, here.model(), there.model()),
            "ratio",
            CLOSE,
            f"distance between the models that {rounds} rounds on {device.type} and on the CPU end "
            f"at, over the way of the latter; {model.what}, 2 clients",
            lower_is_better=True,
        )
        same = _bytes(here) == _bytes(there)
        yield _equal(f"ledger_{method}", [float(same)], "bytes by category of the two runs")


def _ended(device: torch.device, task: SplitTask, method: str, **options: Any) -> Any:
    plan = plan_on(device, task, method, **options)
    return train(task, plan, plan.config.rounds)


def _bytes(strategy: Any) -> list[dict[str, int]]:
    """Return bytes up and down by category; what frames a message names the device."""
    ways = strategy.ledger.up, strategy.ledger.down
    return [{name: count for name, count in way.items() if name != "control"} for way in ways]


def _apart(start: dict[str, Tensor], here: dict[str, Tensor], there: dict[str, Tensor]) -> float:
    names = [name for name in here if here[name].is_floating_point() and name in start]
    way = sum(float((here[n] - start[n]).double().square().sum()) for n in names)
    apart = sum(float((here[n] - there[n].cpu()).double().square().sum()) for n in names)
    return float((apart / way) ** 0.5) if way else float("nan")
