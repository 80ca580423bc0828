from __future__ import annotations

import torch
from torch import nn

from benchmarks.guides import ROWS, WORDS, _forms
from sfl_flower.zo import ParameterVector


def test_passes_are_the_anchor_the_probes_and_the_guide() -> None:
    for label, row in ROWS.items():
        passes = 4 if row.exact else 1 + row.probes + bool(row.guide)
        assert row.passes == passes, label


def test_the_forms_of_a_vector_by_hand() -> None:
    """A bias of 2 and a weight of 2 x 2: the vector is sorted by name, the bias first."""
    vector = ParameterVector(nn.Linear(2, 2))
    q = torch.tensor([1.0, -3.0, 2.0, -4.0, 0.0, 6.0])
    forms = dict(_forms(q, vector))
    assert forms["signs"].tolist() == [1, -1, 1, -1, 0, 1]
    assert forms["tensors"].tolist() == [2, -2, 3, -3, 0, 3]
    assert forms["rows"].tolist() == [2, -2, 3, -3, 0, 3]
    assert set(forms) <= set(WORDS)
