"""What no probe moves runs once a mini-batch: the same bits, in fewer calls."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.node import crossing
from sfl_flower.node.node import HeldModule
from sfl_flower.run.run import RunResult
from sfl_flower.split import parted, prefix
from tests import tiny
from tests.texts import texts

PROBES = 4


class Writing(nn.Module):
    """Adds what a layer gives into its input, which another layer has read before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(tiny.FEATURES, tiny.CUT)
        self.hidden = nn.Linear(tiny.CUT, tiny.CUT)
        self.act = nn.ReLU(inplace=True)
        self.cut = nn.Identity()
        self.out = nn.Linear(tiny.CUT, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.first(x)
        x += self.hidden(x)
        logits: Tensor = self.out(self.cut(self.act(x)))
        return logits


def normalised() -> nn.Module:
    """Return a model with BatchNorm before and behind what is trained."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            norm=nn.BatchNorm1d(tiny.CUT),
            act=nn.ReLU(inplace=True),
            hidden=nn.Linear(tiny.CUT, tiny.CUT),
            norm2=nn.BatchNorm1d(tiny.CUT),
            cut=nn.Tanh(),
            out=nn.Linear(tiny.CUT, tiny.CLASSES),
        )
    )


def dropping() -> nn.Module:
    """Return a model with dropout before and behind what is trained."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            drop=nn.Dropout(0.5),
            hidden=nn.Linear(tiny.CUT, tiny.CUT),
            drop2=nn.Dropout(0.5),
            cut=nn.Tanh(),
            out=nn.Linear(tiny.CUT, tiny.CLASSES),
        )
    )


def trained(build: Any, method: str, whole: bool, **options: Any) -> tuple[RunResult, Counter[str]]:
    """Train a few rounds; with `whole` every probe runs the whole half."""
    found = Counter[str]()

    def model() -> nn.Module:
        made: nn.Module = build()
        for name, layer in made.named_children():
            layer.register_forward_hook(_Counting(found, name))
        return made

    problem = tiny.task(build=model, cut="cut", trained="hidden.*", clients=2, each=8)
    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr(prefix, "_part", lambda *_: None)
        settings = {"batch_size": 4, "rounds": 2, "client_lr": 0.05, "server_lr": 0.05, **options}
        if method != "mu_splitfed":
            settings.setdefault("probes", PROBES)
        if method in ("zo_sfl", "heron"):
            settings.setdefault("local_steps", 1)
        result = tiny.run(problem, method, clients=2, seed=3, **settings)
    return result, found


class _Counting:
    """A hook that counts where a copy of its layer is called too."""

    def __init__(self, found: Counter[str], name: str) -> None:
        self._found, self._name = found, name

    def __deepcopy__(self, memo: dict[int, Any]) -> _Counting:
        return self

    def __call__(self, *_: Any) -> None:
        self._found[self._name] += 1


def assert_same(one: RunResult, other: RunResult) -> None:
    assert one.model.keys() == other.model.keys()
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    for mine, others in zip(one.history, other.history, strict=True):
        assert not mine.failures and not mine.rejected
        assert replace(mine, seconds=0.0, extra={}) == replace(others, seconds=0.0, extra={})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ho_sfl", {}),
        ("ho_sfl", {"micro_batch": 3}),
        ("ho_sfl", {"estimator": "central", "scalars": "channel", "micro_batch": 3}),
        ("ho_sfl", {"estimator": "jvp"}),
        ("ho_sfl", {"direction": "rank_one", "stack": 2}),
        ("heron", {}),
        ("heron", {"estimator": "central", "uplink": "scalars", "micro_batch": 3}),
        ("heron", {"head_trainer": "server"}),
        ("zo_sfl", {"micro_batch": 3}),
        ("mu_splitfed", {}),
        ("decomfl", {"local_steps": 2}),
        ("decomfl", {"estimator": "central", "micro_batch": 3}),
    ],
)
def test_runs_have_the_same_bits(method: str, options: dict[str, Any]) -> None:
    assert_same(*(trained(Writing, method, whole, **options)[0] for whole in (False, True)))


@pytest.mark.parametrize("method", ["ho_sfl", "heron"])
def test_statistics_move_with_the_anchor_alone(method: str) -> None:
    assert_same(*(trained(normalised, method, whole)[0] for whole in (False, True)))


def test_masks_are_those_of_a_whole_forward() -> None:
    assert_same(*(trained(dropping, "heron", whole)[0] for whole in (False, True)))


@pytest.mark.parametrize(
    ("method", "first", "hidden", "before"),
    [
        # The anchor's forward and P probes, in two messages: what crosses is kept.
        ("ho_sfl", 1, 1 + PROBES, 1 + PROBES),
        ("heron", 1, 1 + PROBES, 1 + PROBES),
        ("zo_sfl", 1, 2 * PROBES, 2 * PROBES),
        ("decomfl", 1, 1 + PROBES, 1 + PROBES),
    ],
)
def test_a_frozen_layer_runs_once(method: str, first: int, hidden: int, before: int) -> None:
    counts = {}
    for whole in (False, True):
        for rounds in (1, 2):
            counts[whole, rounds] = trained(Writing, method, whole, rounds=rounds)[1]
    # A round of two clients with a mini-batch each; what a run does besides is in both.
    apart = {whole: counts[whole, 2] - counts[whole, 1] for whole in (False, True)}
    evaluated = apart[True]["first"] - 2 * before
    assert apart[True]["hidden"] == 2 * hidden + evaluated
    assert apart[False]["hidden"] == 2 * hidden + evaluated
    assert apart[False]["first"] == 2 * first + evaluated


@pytest.mark.parametrize("micro_batch", ["all", "3"])
@pytest.mark.parametrize("limit", ["0", "1000000"])  # in files, or in Flower's context
def test_what_crosses_comes_back_as_it_was(
    limit: str, micro_batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_STATE_LIMIT", limit)
    options = {"micro_batch": micro_batch, "minibatches": 2, "rounds": 1}
    runs = [trained(Writing, "ho_sfl", whole, **options) for whole in (False, True)]
    assert_same(runs[0][0], runs[1][0])
    monkeypatch.setattr("sfl_flower.clients.ho_sfl.kept_crossing", lambda *_: None)
    lost = trained(Writing, "ho_sfl", False, **options)
    assert_same(lost[0], runs[1][0])
    parts = 2 if micro_batch == "3" else 1
    assert lost[1]["first"] - runs[0][1]["first"] == 2 * 2 * parts
    monkeypatch.undo()
    monkeypatch.setattr(crossing, "CROSSING_SHARE", 0)
    large = trained(Writing, "ho_sfl", False, **options)
    assert large[1] == lost[1]


def test_a_client_of_a_language_model_has_the_same_bits() -> None:
    pattern = "*.1.attn.c_attn.lora_*"
    found = []
    for whole in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if whole:
                patch.setattr(prefix, "_part", lambda *_: None)
            problem = texts("gpt2-classes", trained=pattern)
            found.append(
                tiny.run(
                    problem, "ho_sfl", clients=2, seed=3, batch_size=4, rounds=2, probes=2,
                    client_lr=0.05, server_lr=0.05,
                )
            )  # fmt: skip
    assert_same(*found)


def test_a_layer_that_writes_into_what_crosses_finds_it_whole() -> None:
    half = HeldModule(tiny.task(build=Writing, cut="cut", trained="hidden.*").build(0).client)
    parts = half.parted
    assert parts is not None and parted(half.module, half.module.parameters()) is None
    values = parts.first(torch.ones(2, tiny.FEATURES))
    kept = copy.deepcopy(values)
    once, again = parts.rest(values), parts.rest(values)
    assert torch.equal(once, again) and torch.equal(once, half.module(torch.ones(2, 6)))
    assert all(torch.equal(a, b) for a, b in zip(values, kept, strict=True))
