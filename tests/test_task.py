from __future__ import annotations

import importlib
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.data import PartitionSpec
from sfl_flower.data.memory import forget
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.task import Samples, SplitTask, accuracy, cross_entropy

# What Flower's simulation ships a task with.
cloudpickle: Any = importlib.import_module("ray.cloudpickle")

X = torch.arange(24.0).reshape(12, 2)
Y = torch.arange(12) % 3


def _model() -> nn.Module:
    return nn.Sequential(
        OrderedDict(a=nn.Linear(2, 4), act=nn.Tanh(), drop=nn.Dropout(), b=nn.Linear(4, 3))
    )


def _task(**changes: Any) -> SplitTask:
    fields: dict[str, Any] = {
        "name": "small",
        "model": _model,
        "cut": "act",
        "train": lambda: Samples(X, Y),
        "test": lambda: Samples(X[:5], Y[:5]),
        "classes": 3,
    }
    return SplitTask(**{**fields, **changes})


def test_halves_make_the_model() -> None:
    halves = _task().build(1)
    keys = list(halves.client.state_dict()) + list(halves.server.state_dict())
    assert keys == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_initial_weights_follow_the_seed_and_nothing_else() -> None:
    first = _task().build(1)
    torch.rand(3)
    again, other = _task().build(1), _task().build(2)
    for name in ("client", "server"):
        a, b, c = (getattr(halves, name).state_dict() for halves in (first, again, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert not any(torch.equal(a[key], c[key]) for key in a)


def test_each_build_is_a_copy_of_its_own() -> None:
    task = _task()
    first = task.build(1)
    with torch.no_grad():
        next(first.client.parameters()).zero_()
    assert next(task.build(1).client.parameters()).abs().sum() > 0


def test_the_model_is_built_and_the_data_are_loaded_once() -> None:
    calls: list[str] = []

    def model() -> nn.Module:
        calls.append("model")
        return _model()

    def train() -> Samples:
        calls.append("train")
        return Samples(X, Y)

    task = _task(model=model, train=train)
    for _ in range(3):
        task.build(1)
        task.client_samples(0, PartitionSpec("iid", clients=2))
    assert sorted(calls) == ["model", "train"]


def test_what_is_loaded_is_kept_through_a_round_trip_and_not_shipped() -> None:
    big = np.zeros((500, 2), dtype=np.float32)
    task = SplitTask.from_arrays(
        "big", lambda: _model(), "act", big, np.zeros(500, int), big, np.zeros(500, int), classes=3
    )
    shipped = cloudpickle.dumps(task)
    assert len(shipped) < 4000 == big.nbytes
    assert cloudpickle.loads(shipped).samples("train") is task.samples("train")


def test_another_process_gets_the_same_data_and_weights() -> None:
    task = SplitTask.from_arrays("other", _model, "act", X, Y, X, Y, classes=3)
    code = (
        "import sys; from ray import cloudpickle\n"
        "task = cloudpickle.load(sys.stdin.buffer)\n"
        "print(task.samples('train').x.tolist(), task.build(7).client.a.weight.tolist())"
    )
    # The test's own functions are by reference; the child needs their module by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        shipped = cloudpickle.dumps(task)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    done = subprocess.run([sys.executable, "-c", code], input=shipped, capture_output=True)
    weight = task.build(7).client.get_submodule("a").weight
    assert isinstance(weight, Tensor)
    assert done.stdout.decode() == f"{X.tolist()} {weight.tolist()}\n", done.stderr.decode()


def test_arrays_are_read_again_when_forgotten() -> None:
    task = SplitTask.from_arrays("again", _model, "act", X, Y, X[:5], Y[:5], classes=3)
    forget(task.token)
    assert torch.equal(task.samples("train").x, X)
    assert len(task.samples("test")) == 5


def test_clients_hold_all_samples_once() -> None:
    task, spec = _task(), PartitionSpec("iid", clients=4)
    firsts = [task.client_samples(client, spec).x[:, 0].tolist() for client in range(4)]
    assert sorted(value for first in firsts for value in first) == X[:, 0].tolist()
    assert [len(task.client_samples(c, spec)) for c in range(4)] == [3, 3, 3, 3]


@pytest.mark.parametrize("client", [-1, 4])
def test_there_is_no_such_client(client: int) -> None:
    with pytest.raises(DataError, match=f"no client {client}; .* 0 to 3"):
        _task().client_samples(client, PartitionSpec("iid", clients=4))


def test_a_batch_is_transformed() -> None:
    task = _task(transform=lambda x: x * 10)
    x, y = task.batch(task.samples("train"), [2, 0])
    assert x.tolist() == [[40.0, 50.0], [0.0, 10.0]]
    assert y.tolist() == [2, 0]


def test_evaluation_weighs_samples_not_batches() -> None:
    # Outputs that name class 0: right for rows 0 and 3 of the five.
    def forward(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() or not x.requires_grad
        return torch.tensor([[9.0, 0.0, 0.0]]).expand(len(x), 3)

    for batch_size in (1, 2, 5, 100):
        found = _task().evaluate(forward, batch_size)
        assert found["accuracy"] == pytest.approx(0.4)
        assert found["loss"] == pytest.approx(0.6 * 9.0, rel=1e-3)


def test_accuracy_and_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert accuracy(logits, torch.tensor([0, 0])).tolist() == [1.0, 0.0]
    wanted = (np.log(1 + np.exp(-2)) + np.log(1 + np.exp(2))) / 2
    assert cross_entropy(logits, torch.tensor([0, 0])).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 0}, "classes=0"),
        ({"metrics": {"loss": accuracy}}, "name is taken"),
        ({"metrics": {"f1": 1.0}}, r"metrics\['f1'\] is a float"),
        ({"model": _model()}, "model is a Sequential"),
        ({"train": Samples(X, Y)}, "train is a Samples"),
    ],
)
def test_fields_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _task(**changes)


def test_a_good_task_passes_its_check() -> None:
    _task().check()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cut": "nowhere"}, CutError, "act"),
        ({"model": lambda: 3}, ConfigError, "returned a int"),
        (
            {"classes": 2},
            DataError,
            r"training set of task 'small', 4 of 12 labels .* first is 2 at row 2",
        ),
        ({"classes": 4}, ConfigError, r"shape \[2, 3\] .* needs \[2, 4\]"),
        ({"train": lambda: Samples(X[:0], Y[:0])}, DataError, "no samples in the training set"),
        ({"test": lambda: Samples(X, Y[:5])}, DataError, "test set .* 5 labels"),
        (
            {"test": lambda: Samples(X.to(torch.uint8), Y)},
            ConfigError,
            r"torch.uint8 batch of task 'small': .* give a `transform`",
        ),
        ({"transform": lambda x: x[:, :1]}, ConfigError, r"\[2, 1\] torch.float32 batch"),
        (
            {"loss": lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")},
            ConfigError,
            "must be one finite number",
        ),
        ({"loss": lambda out, y: out.sum() * float("nan")}, ConfigError, "one finite number"),
        (
            {"metrics": {"mean": lambda out, y: accuracy(out, y).mean()}},
            ConfigError,
            r"'mean' .* shape \[2\]",
        ),
    ],
)
def test_the_check_explains(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _task(**changes).check()


def test_bad_arrays_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="the test set of task 'bad'"):
        SplitTask.from_arrays("bad", _model, "act", X, Y, X, Y + 1, classes=3)


def test_a_task_of_ones_own_is_short() -> None:
    text = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["task"].build(0).at == "1"
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
