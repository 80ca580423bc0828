"""The server half under backprop: a batch that cannot be used leaves nothing behind."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sfl_flower.config import RunConfig
from sfl_flower.errors import WireError
from sfl_flower.server.trainer import Trainer
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import equal, train

pytestmark = pytest.mark.flower


class Raises(nn.Module):
    """A last layer that cannot take what the layers before it have already worked on."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a layer says so")


def nan_loss(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output, y) * float("nan")


@pytest.mark.parametrize(
    ("last", "loss", "says"),
    [
        (nn.Identity(), nan_loss, "its loss or a gradient is not finite"),
        (Raises(), cross_entropy, r"cannot use its batch: a layer says so\."),
    ],
)
def test_e2_a_refused_batch_leaves_statistics_and_counters_as_they_were(
    last: nn.Module, loss: Any, says: str
) -> None:
    module = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(tiny.CUT), last=last))
    trainer = Trainer(module, loss, tiny.CLASSES, RunConfig())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    z = np.arange(4 * tiny.CUT, dtype=np.float32).reshape(4, tiny.CUT)
    with pytest.raises(WireError, match=says):
        trainer.gradients(z, np.zeros(4, np.int64), (1, 0, 0))
    assert equal(module.state_dict(), before)
    assert int(module.state_dict()["norm.num_batches_tracked"]) == 0


def test_e2_a_batch_of_one_sample_comes_with_a_remedy() -> None:
    module = nn.Sequential(nn.BatchNorm1d(tiny.CUT))
    trainer = Trainer(module, cross_entropy, tiny.CLASSES, RunConfig())
    says = "BatchNorm cannot train on one sample: give every client at least two, set batch-size"
    with pytest.raises(WireError, match=says):
        trainer.gradients(np.ones((1, tiny.CUT), np.float32), np.zeros(1, np.int64), (1, 0, 0))


def behind() -> nn.Module:
    """Return a model with BatchNorm behind the cut (`act`)."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, tiny.CUT),
            act=nn.Tanh(),
            hidden=nn.Linear(tiny.CUT, 4),
            norm=nn.BatchNorm1d(4),
            out=nn.Linear(4, tiny.CLASSES),
        )
    )


def last_label_wrong(content: Any) -> Any:
    y = values(content.array_records["arrays"]["y"]).copy()
    y[-1] = 9
    return changed(content, arrays={"y": y})


@pytest.mark.parametrize("server_steps", ["round", "batch"])
@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
def test_e2_a_second_batch_that_is_refused_takes_back_what_the_first_moved(
    method: str, server_steps: str
) -> None:
    options: dict[str, Any] = {"minibatches": 2, "server_steps": server_steps, "rounds": 3}
    faults = [
        Fault("change", {1}, {2}, "forward", change=last_label_wrong),
        Fault("raise", {1}, {2}, "forward"),
    ]
    bad, missing = (train(tiny.task(build=behind), method, [f], **options) for f in faults)
    assert bad.total("rejected") == 1 and "a label is 9" in bad.notes
    assert torch.equal(
        bad.model["norm.num_batches_tracked"], missing.model["norm.num_batches_tracked"]
    )
    assert equal(bad.model, missing.model)
