"""Labels of positions: which count, and what a set is divided by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.config import RunConfig
from sfl_flower.data import PartitionSpec, Samples
from sfl_flower.data.labels import row_labels, wrong_label
from sfl_flower.errors import ConfigError, DataError, WireError
from sfl_flower.server.trainer import Trainer
from sfl_flower.task import SplitTask
from sfl_flower.training.measures import cross_entropy, token_accuracy

Y = torch.tensor([[1, -100, 2], [-100, 0, -100]])
LOGITS = torch.zeros(2, 3, 3)
LOGITS[0, 0, 1] = math.log(2)  # right: 2 of 4
LOGITS[0, 2, 0] = math.log(2)  # wrong: 1 of 4
LOGITS[1, 1, 0] = math.log(8)  # right: 8 of 10
LOGITS[1, 2, 0] = math.inf  # where no label is, nothing counts


def test_cross_entropy_is_the_mean_over_labels_that_count() -> None:
    expected = (math.log(2) + math.log(4) + math.log(10 / 8)) / 3
    assert float(cross_entropy(LOGITS, Y)) == pytest.approx(expected, rel=1e-6)


def test_token_accuracy_is_the_share_of_a_samples_labels() -> None:
    assert token_accuracy(LOGITS, Y).tolist() == [0.5, 1.0]
    nothing = torch.full_like(Y, -100)
    assert token_accuracy(LOGITS, nothing).tolist() == [0.0, 0.0]


def test_labels_that_arrive() -> None:
    y = Y.numpy()
    assert wrong_label(y, 3, -100) is None
    assert wrong_label(y, 2, -100) == "a label is 2, the task has classes 0 to 1."
    assert wrong_label(y, 3, None) == "a label is -100, the task has classes 0 to 2."
    assert "a sample has no label" in str(wrong_label(np.full((2, 3), -100), 3, -100))
    half = Trainer(nn.Linear(1, 1), cross_entropy, 3, RunConfig(), -100)
    half.check_labels(y)
    with pytest.raises(WireError, match="a label is -7"):
        half.check_labels(np.array([[-7, 0, 0]]))


def test_what_a_set_is_divided_by() -> None:
    assert row_labels(np.array([3, 4]), None, True).tolist() == [3, 4]
    one = np.array([[-100, 3], [4, -100]])
    assert row_labels(one, -100, True).tolist() == [3, 4]
    assert row_labels(Y.numpy(), -100, False).tolist() == [0, 0]
    with pytest.raises(DataError, match=r"a row has many labels.*use partition iid"):
        row_labels(Y.numpy(), -100, True)


class Tokens(nn.Module):
    """Logits of the next token from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Embedding(3, 4)
        self.above = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.above(self.below(ids))
        return logits


def task(y: Tensor = Y, ignore: int | None = -100, samples: int = 8) -> SplitTask:
    x = torch.tensor([[0, 1, 2], [2, 1, 0]]).repeat(samples // 2, 1)
    data = Samples(x, y.repeat(samples // 2, 1))
    return SplitTask(
        name="tokens", model=Tokens, cut="below", train=lambda: data, test=lambda: data,
        classes=3, ignore_label=ignore, metrics={"accuracy": token_accuracy},
    )  # fmt: skip


def test_a_task_of_tokens() -> None:
    tokens = task()
    tokens.check()
    assert [len(rows) for rows in tokens.client_rows(PartitionSpec("iid", 4))] == [2, 2, 2, 2]
    with pytest.raises(DataError, match="cannot be divided by class"):
        tokens.client_rows(PartitionSpec("dirichlet", 4, alpha=1.0))
    halves = tokens.build(0)
    found = tokens.evaluate(lambda x: halves.server(halves.client(x)), batch_size=3)
    x, y = tokens.batch(tokens.samples("test"), slice(None))
    # Batches have different numbers of labels: the mean is over labels, not over batches.
    whole = cross_entropy(halves.server(halves.client(x)), y)
    assert found["loss"] == pytest.approx(float(whole.detach()), rel=1e-6)


def test_labels_of_a_task_of_tokens_are_checked() -> None:
    with pytest.raises(DataError, match="must be one label a sample"):
        task(ignore=None).samples("train")
    with pytest.raises(DataError, match=r"8 of 8 samples have no label but -100.* is row 0"):
        task(torch.full((2, 3), -100)).samples("train")
    with pytest.raises(DataError, match=r"1 of 6 .*\(0 to 2\); the first is 5 at row 1"):
        task(torch.tensor([[1, 1, 1], [1, -100, 5]]), samples=2).samples("train")
    with pytest.raises(ConfigError, match="ignores label 2, which is one of its classes"):
        task(ignore=2)


def test_few_samples_a_forward_where_each_has_many_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 3 positions of 3 classes: two samples
    monkeypatch.setattr("sfl_flower.training.evaluation._LOGITS", 20)
    tokens, sizes = task(), []
    halves = tokens.build(0)

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        output: Tensor = halves.server(halves.client(x))
        return output

    tokens.evaluate(forward)
    assert sizes == [2, 2, 2, 2]
