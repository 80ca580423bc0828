from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sfl_flower.config import LOCAL, RunConfig
from sfl_flower.data import Samples, division_seed, hold_back
from sfl_flower.errors import ConfigError, CutError
from sfl_flower.server.evaluation import held_back
from sfl_flower.task import SplitTask, accuracy
from tests import tiny
from tests.tiny import equal

OPTIONS: dict[str, Any] = {"partition": "iid", "validation": 0.25}


def task() -> SplitTask:
    return SplitTask(
        "tiny",
        tiny.model,
        "act",
        train=lambda: tiny.samples(48),
        test=lambda: tiny.samples(40, 1),
        classes=tiny.CLASSES,
    )


def test_d3_every_evaluation_measures_what_is_held_back() -> None:
    problem = task()
    found = tiny.run(problem, partition="iid", validation=0.25, rounds=2, seed=3)
    whole = problem.samples("train")
    _, held = hold_back(whole.y.numpy(), 0.25, division_seed(3))
    assert len(held) == 12 and found.summary.samples == 2 * 4 * 4
    model = tiny.model().eval()
    model.load_state_dict(found.model)
    for name, samples in (("", tiny.samples(40, 1)), ("validation_", whole.take(held))):
        with torch.no_grad():
            right = accuracy(model(samples.x), samples.y).double().mean()
        assert found.history[-1].metrics[f"{name}accuracy"] == pytest.approx(float(right))
    assert all("validation_loss" in record.metrics for record in found.history)
    assert found.summary.metrics.keys() == {
        "loss", "accuracy", "validation_loss", "validation_accuracy",
    }  # fmt: skip


class Named(nn.Module):
    """Gives its outputs as a dict does, or in a tuple."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.body, self.kind = tiny.model(), kind

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.body(x)
        return {"logits": logits} if self.kind is dict else (logits, logits.sum())


@pytest.mark.parametrize(("kind", "key"), [(dict, "logits"), (tuple, 0)])
def test_outputs_that_are_no_single_tensor_are_evaluated(kind: type, key: Any) -> None:
    problem = tiny.task(
        build=partial(Named, kind),
        cut="body.act",
        loss=lambda output, y: nn.functional.cross_entropy(output[key], y),
        metrics={"accuracy": lambda output, y: accuracy(output[key], y)},
    )
    found = tiny.run(problem, "ho_sfl", rounds=2).history[-1].metrics
    assert found.keys() == {"loss", "accuracy"} and 0 < found["loss"] < 3
    with pytest.raises(CutError, match=f"gives a {kind.__name__}; an auxiliary head needs one"):
        tiny.run(problem, "heron", rounds=2)


def test_d3_a_run_is_that_of_the_training_part_alone() -> None:
    """To the bit: the model knows nothing of the samples that are held back."""
    whole = tiny.samples(48)
    _, held = hold_back(whole.y.numpy(), 0.25, division_seed(0))
    spoilt = Samples(whole.x.clone(), whole.y)
    spoilt.x[torch.from_numpy(held)] = 1e6
    plain, other = (
        tiny.run(replace(task(), train=partial(Samples, x, whole.y), token=name), **OPTIONS)
        for name, x in (("plain", whole.x), ("spoilt", spoilt.x))
    )
    assert equal(plain.model, other.model)
    assert plain.history[-1].metrics != other.history[-1].metrics


def test_d3_without_a_share_nothing_changes() -> None:
    config = RunConfig()
    assert "validation" not in config.partition_text()
    assert '"validation": 0.1' in RunConfig(validation=0.1).partition_text()
    found = tiny.run(task(), partition="iid", rounds=1)
    assert found.summary.metrics.keys() == {"loss", "accuracy"}


def test_d3_texts_without_classes_are_held_back_at_random() -> None:
    y = torch.arange(40).reshape(20, 2) % 3
    problem = SplitTask(
        "rows",
        tiny.model,
        "act",
        train=lambda: Samples(torch.zeros(20, 6), y),
        test=lambda: tiny.samples(4),
        classes=3,
        ignore_label=-100,
    )
    spec = RunConfig(partition="iid", clients=2, validation=0.1).partition_spec()
    assert spec is not None
    assert len(held_back(problem, spec)) == 2
    assert [len(rows) for rows in problem.client_rows(spec)] == [9, 9]


def test_d3_clients_with_data_of_their_own_leave_nothing_to_hold_back() -> None:
    with pytest.raises(ConfigError, match=r"validation is 0\.1 with partition 'local'"):
        RunConfig(partition=LOCAL, validation=0.1)
