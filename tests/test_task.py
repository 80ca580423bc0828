from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower import simulate
from sfl_flower.data import PartitionSpec
from sfl_flower.data.memory import forget
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.task import Samples, SplitTask, accuracy, binary_accuracy, cross_entropy

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
        task.client_rows(PartitionSpec("iid", clients=2))
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
    forget(task.key)
    assert torch.equal(task.samples("train").x, X)
    assert len(task.samples("test")) == 5


def test_clients_hold_all_samples_once() -> None:
    task, spec = _task(), PartitionSpec("iid", clients=4)
    shares = [task.samples("train").take(rows) for rows in task.client_rows(spec)]
    firsts = [share.x[:, 0].tolist() for share in shares]
    assert sorted(value for first in firsts for value in first) == X[:, 0].tolist()
    assert [len(share) for share in shares] == [3, 3, 3, 3]


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
            r"torch.uint8 batch of task 'small', from the test set: .* give a `transform`",
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


def test_a8_the_training_set_is_tried_on_the_model() -> None:
    wide = _task(train=lambda: Samples(torch.zeros(12, 3), Y))
    with pytest.raises(ConfigError, match=r"\[2, 3\] .*, from the training set: "):
        wide.check()
    bytes_only = _task(train=lambda: Samples(X.to(torch.uint8), Y))
    with pytest.raises(ConfigError, match=r"uint8 batch of task 'small', from the training set"):
        bytes_only.check()
    # The other way round the error says what the other set has.
    narrow = _task(test=lambda: Samples(torch.zeros(5, 1), Y[:5]))
    with pytest.raises(ConfigError, match=r"from the test set.*The training set has inputs of \[2"):
        narrow.check()


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        ((X, Y), "tuple"),
        ([X, Y], "list"),
        ({"x": X, "y": Y}, "dict"),
        (X, "Tensor"),
        (X.numpy(), "ndarray"),
        (None, "NoneType"),
        (torch.utils.data.TensorDataset(X, Y), "TensorDataset"),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y)), "DataLoader"),
        ("train.csv", "str"),
        (iter([X, Y]), "list_iterator"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_e10_whatever_a_loader_returns_but_samples_is_named(
    split: Any, returned: Any, kind: str
) -> None:
    what = "training" if split == "train" else "test"
    message = rf"^The {what} set of task 'small' is a {kind}; .* Samples\.of\(\.\.\.\) makes them"
    with pytest.raises(DataError, match=message):
        _task(**{split: lambda: returned}).samples(split)


def test_e10_samples_of_arrays_are_told_from_samples_of_tensors() -> None:
    task = _task(train=lambda: Samples(X.numpy(), Y.numpy()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"x is a ndarray .*Samples\.of\(\(x, y\)\)"):
        task.samples("train")
    sparse = _task(train=lambda: Samples(X.to_sparse(), Y))
    with pytest.raises(DataError, match=r"x is on cpu in layout torch.sparse_coo; .*to_dense"):
        sparse.samples("train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": [accuracy]}, "metrics is a list; it must be a dict"),
        ({"metrics": accuracy}, "metrics is a function; it must be a dict"),
        ({"classes": "3"}, "classes='3', a str; it must be a whole number"),
        ({"classes": 3.0}, "classes=3.0, a float"),
        ({"classes": True}, "classes=True, a bool"),
        ({"ignore_label": "pad"}, "ignore_label='pad'"),
        ({"transform": 255}, "transform is a int"),
        ({"augment": 1}, "augment is a int"),
        ({"head": nn.Linear(4, 3)}, "head is a Linear"),
    ],
)
def test_a7_fields_of_another_kind_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _task(**changes)


def test_a7_what_the_user_s_functions_raise_is_said_with_the_function_s_name() -> None:
    def fails() -> Any:
        raise KeyError("weights")

    with pytest.raises(ConfigError, match="model function of task 'small' fails: KeyError: 'wei"):
        _task(model=fails).check()
    with pytest.raises(DataError, match=r"test\(\) of task 'small' fails: KeyError: 'weights'"):
        _task(test=fails).check()


def _two_cuts() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("token", ["", "named"])
def test_e4_a_task_with_a_field_replaced_shares_nothing_with_the_old_one(token: str) -> None:
    first = _task(model=_two_cuts, cut="1", token=token)
    assert sum(p.numel() for p in first.build(0).client.parameters()) == 24
    later = replace(first, cut="3")
    assert later.build(0).at == "3"
    assert sum(p.numel() for p in later.build(0).client.parameters()) == 60
    assert len(replace(first, train=lambda: Samples(X[:6], Y[:6])).samples("train")) == 6
    assert first.samples("test").x.shape == (5, 2)
    assert replace(first, classes=4, test=lambda: Samples(X, Y + 1)).samples("test").y.max() == 3
    assert isinstance(replace(first, model=_model, cut="act").build(0).client.a, nn.Linear)
    assert torch.equal(replace(first, transform=lambda x: -x).batch(first.samples("test"), [1])[0],
                       -X[1:2])  # fmt: skip


def test_e4_tasks_of_one_token_and_equal_fields_share_what_is_kept() -> None:
    one, two = (_task(token="shared", train=_shared) for _ in range(2))
    assert one.key == two.key == cloudpickle.loads(cloudpickle.dumps(one)).key
    assert one.samples("train") is two.samples("train")
    assert len({one.key, _task(train=_shared).key, replace(one, cut="a").key}) == 3


def _shared() -> Samples:
    return Samples(X, Y)


def test_e1_a_loader_that_shuffles_anew_is_refused() -> None:
    order = np.random.default_rng(3)

    def shuffled() -> Samples:
        return Samples(X, Y).take(order.permutation(12))

    with pytest.raises(DataError, match=r"train\(\) of task 'small' returns other data .* Seed"):
        _task(train=shuffled).check()
    with pytest.raises(DataError, match=r"test\(\) of task 'small' returns other data"):
        _task(test=shuffled).check()


def test_e1_training_batches_are_augmented_by_words_alone_and_tests_are_not() -> None:
    task = _task(augment=lambda x: x + torch.rand(len(x), 1), transform=lambda x: x * 2)
    task.check()
    samples = task.samples("train")
    one, y = task.training_batch(samples, [0, 1], 7, 0, 1, 0)
    torch.rand(5)
    again, _ = task.training_batch(samples, [0, 1], 7, 0, 1, 0)
    other, _ = task.training_batch(samples, [0, 1], 7, 0, 1, 1)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert y.tolist() == [0, 1]
    assert torch.equal(task.batch(samples, [0, 1])[0], X[:2] * 2)
    shift = one / 2 - X[:2]
    assert ((shift > 0) & (shift < 1)).all()


def test_e12_a_loss_that_is_a_sum_is_refused() -> None:
    task = _task(loss=lambda out, y: nn.functional.cross_entropy(out, y, reduction="sum"))
    with pytest.raises(ConfigError, match=r"loss of task 'small' is a sum .*reduction="):
        task.check()


def test_a12_one_logit_under_the_default_accuracy_is_refused_and_the_right_one_named() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.float())

    def model() -> nn.Module:
        return nn.Sequential(OrderedDict(a=nn.Linear(2, 4), act=nn.Tanh(), b=nn.Linear(4, 1)))

    fields = {"model": model, "loss": loss, "classes": 2, "train": lambda: Samples(X, Y % 2),
              "test": lambda: Samples(X, Y % 2)}  # fmt: skip
    with pytest.raises(ConfigError, match=r"one output a sample.*'accuracy'.*binary_accuracy"):
        _task(**fields).check()
    _task(**fields, metrics={"accuracy": binary_accuracy}).check()
    logits = torch.tensor([[2.0], [-1.0], [0.5]])
    assert binary_accuracy(logits, torch.tensor([1, 0, 0])).tolist() == [1.0, 1.0, 0.0]


@pytest.fixture
def flower_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture Flower's log, whatever Flower has done to it."""
    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        yield caplog
    log.removeHandler(caplog.handler)


def test_a12_a_softmax_under_cross_entropy_is_remarked(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    def model() -> nn.Module:
        layers = OrderedDict(a=nn.Linear(2, 4), act=nn.Tanh(), b=nn.Linear(4, 3), p=nn.Softmax(1))
        return nn.Sequential(layers)

    _task().check()
    assert "probabilities" not in flower_log.text
    _task(model=model).check()
    assert "outputs of task 'small' are probabilities" in flower_log.text


def _logits_loss(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.float())


def _probabilities_loss(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy(out[:, 0].clamp(0, 1), y.float())


class _Half(nn.Module):
    """A sigmoid without a layer of its own, and its numbers moved around."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z).squeeze(1).unsqueeze(-1)


@pytest.mark.parametrize(
    ("last", "loss", "said"),
    [
        (nn.Sigmoid, _logits_loss, True),
        (_Half, _logits_loss, True),
        (nn.Sigmoid, _probabilities_loss, False),
        (nn.Identity, _logits_loss, False),
        (nn.ReLU6, _logits_loss, False),
        (nn.Hardtanh, _logits_loss, False),
        (nn.Softplus, _logits_loss, False),
        (lambda: nn.Sequential(nn.Sigmoid(), nn.Linear(1, 1)), _logits_loss, False),
        (lambda: nn.Sequential(nn.LayerNorm(1), nn.ReLU()), _logits_loss, False),
    ],
)
def test_a12_a_sigmoid_under_a_loss_of_logits_is_remarked_and_nothing_like_it(
    last: Any, loss: Any, said: bool, flower_log: pytest.LogCaptureFixture
) -> None:
    def model() -> nn.Module:
        layers = OrderedDict(a=nn.Linear(2, 4), act=nn.Tanh(), b=nn.Linear(4, 1), last=last())
        return nn.Sequential(layers)

    _task(
        model=model, loss=loss, classes=2, metrics={"accuracy": binary_accuracy},
        train=lambda: Samples(X, Y % 2), test=lambda: Samples(X, Y % 2),
    ).check()  # fmt: skip
    assert ("ends in a sigmoid, and its loss" in flower_log.text) == said


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: _Returns(lambda z: {"h": z}), r"(gives|returns) a dict, and only one tensor"),
        (lambda: _Returns(lambda z: z.double()), "gives float64, and smashed data must be float32"),
        (lambda: _Returns(lambda z: z.bfloat16()), r"gives bfloat16, .*end the layer with .float"),
        (lambda: _Returns(lambda z: z.t()), r"shape \[4, 2\] for 2 samples; .*batch first"),
        (lambda: _Returns(lambda z: z.sum(1)), r"shape \[2\] for 2 samples"),
    ],
)
def test_e9_smashed_data_are_checked_before_a_run(layer: Any, message: str) -> None:
    def model() -> nn.Module:
        return nn.Sequential(OrderedDict(a=nn.Linear(2, 4), act=layer(), b=_Takes()))

    with pytest.raises(CutError, match=message):
        _task(model=model).check()


class _Returns(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, z: Tensor) -> Any:
        if z.sum() > 1e30:  # on the data: kept whole
            return z
        return self.change(z)


class _Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, z: Any) -> Tensor:
        if isinstance(z, dict):
            z = z["h"]
        if z.ndim == 2 and z.numel() > 0:
            z = z.float()
        return self.last(z)  # type: ignore[no-any-return]


def test_a6_smashed_data_larger_than_the_inputs_are_warned_of(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    _task(cut="act").check()
    assert "gives 4 numbers a sample ([4]) for an input of 2 ([2])" in flower_log.text


def _of_node(context: Any) -> Samples:
    number, nodes = (int(context.node_config[n]) for n in ("partition-id", "num-partitions"))
    return Samples(X, Y).take(np.arange(12)[number::nodes])


def test_a6_a_train_function_with_a_parameter_gets_the_node_s_context() -> None:
    task = _task(train=_of_node)
    assert task.own_data and not _task().own_data
    assert not _task(train=lambda n=3: Samples(X, Y)).own_data
    task.check(0, 4)
    result = simulate(task, "ho_sfl", backend="inline", partition="local", clients=4, rounds=1,
                      batch_size=8)  # fmt: skip
    assert result.history[-1].samples == 12  # three of each, every sample once
    assert result.history[-1].notes == ()


def test_a6_a_simulation_in_which_every_client_would_hold_all_samples_is_refused() -> None:
    message = r"all clients would get the same .*train\(context\).*partition=iid"
    with pytest.raises(ConfigError, match=message):
        simulate(_task(), backend="inline", partition="local", clients=2, rounds=1)
    with pytest.raises(ConfigError, match=r"takes the node.s context.*partition=local"):
        simulate(_task(train=_of_node), backend="inline", partition="iid", clients=2, rounds=1)


def test_a7_a_model_instead_of_a_task_is_named() -> None:
    with pytest.raises(ConfigError, match=r"not a Sequential; SplitTask\(name="):
        simulate(_model(), rounds=1)  # type: ignore[arg-type]
