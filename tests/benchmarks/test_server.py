"""The ways of a server step that are timed beside one another do the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import server
from sfl_flower.config import RunConfig
from sfl_flower.server.trainer import Trainer
from sfl_flower.tasks import load_task


@pytest.mark.flower
def test_a_step_together_is_the_step_of_one_after_another() -> None:
    case = server.Case("small", "fashion_mnist", 3, 4, (1, 28, 28))
    task = load_task(case.task)
    batches = server.round_of(case, task)
    assert [z.shape[0] for z, _, _ in batches] == [4, 4, 4]
    assert len({z.tobytes() for z, _, _ in batches}) == 3
    moved = []
    for most in (0, 8, 100):
        half = task.build(0).server
        before = torch.cat([p.detach().reshape(-1).clone() for p in half.parameters()])
        server.step(Trainer(half, task.loss, task.classes, RunConfig()), batches, most)
        after = torch.cat([p.detach().reshape(-1) for p in half.parameters()])
        moved.append((after - before).numpy())
    assert np.abs(moved[0]).max() > 1e-4
    for other in moved[1:]:
        np.testing.assert_allclose(other, moved[0], rtol=1e-3, atol=1e-6)


def test_figures_have_names_of_their_own() -> None:
    assert len({case.name for case in server.CASES}) == len(server.CASES)
