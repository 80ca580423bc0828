"""Auxiliary heads on the smashed data of texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.language_models import BLOCKS, VOCABULARY, build, tokens
from sfl_flower.errors import CutError
from sfl_flower.split import cut, make_head
from sfl_flower.split.heads import RealMean

T, H = 12, 16


def halves(name: str) -> Any:
    return cut(build(name), "block:2", pad=1)


def head(kind: str, name: str = "bert-classes", **options: Any) -> nn.Module:
    both = halves(name)
    z = both.client(tokens())
    outputs = tuple(both.server(z).shape[1:])
    return make_head(kind, both.server, tuple(z.shape[1:]), outputs, **options)


def test_pooled_is_the_mean_over_real_positions() -> None:
    z = torch.zeros(2, 4, 2)
    z[0, :2] = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    z[1, 0] = torch.tensor([5.0, 6.0])
    assert RealMean()(z).tolist() == [[2.0, 2.0], [5.0, 6.0]]
    assert RealMean()(torch.zeros(1, 4, 2)).tolist() == [[0.0, 0.0]]
    made = head("pooled")
    assert [tuple(p.shape) for p in made.parameters()] == [(3, H), (3,)]


def test_pooled_sends_no_gradient_to_padding() -> None:
    z = halves("bert-classes").client(tokens()).detach().requires_grad_()
    head("pooled")(z).square().sum().backward()
    padding = (z.detach() == 0).all(dim=-1)
    assert z.grad is not None and padding.any()
    assert not z.grad[padding].any() and z.grad[~padding].any(dim=-1).all()


@pytest.mark.parametrize("name", ["bert-classes", "gpt2-lm", "opt-lm", "llama-classes"])
def test_blocks_are_the_server_half_without_its_last_ones(name: str) -> None:
    both = halves(name)
    z = both.client(tokens())
    made = head("blocks:block:3", name, init="copy")
    assert made(z).shape == both.server(z).shape
    blocks = {part for key in made.state_dict() for part in key.split(".") if part.isdigit()}
    assert blocks == {"2"}
    own = both.server.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in made.state_dict().items())
    # With every block it is the server half itself.
    whole = head(f"blocks:block:{BLOCKS}", name, init="copy")
    assert torch.equal(whole.eval()(z), both.server.eval()(z))


def test_blocks_by_name() -> None:
    named = head("blocks:bert.encoder.layer.2", init="copy")
    numbered = head("blocks:block:3", init="copy")
    assert list(named.state_dict()) == list(numbered.state_dict())


def test_linear_gives_an_output_at_every_position() -> None:
    made = head("linear", "gpt2-lm")
    assert [tuple(p.shape) for p in made.parameters()] == [(VOCABULARY, H), (VOCABULARY,)]


@pytest.mark.parametrize(
    ("kind", "name", "options", "says"),
    [
        ("blocks:block:2", "gpt2-lm", {"init": "copy"}, "no block 'block:2' .* block:3 to block:4"),
        ("blocks:block:5", "gpt2-lm", {"init": "copy"}, "it has block:3 to block:4"),
        ("blocks:h.2.mlp", "gpt2-lm", {"init": "copy"}, "no block 'h.2.mlp'"),
        ("blocks:block:3", "gpt2-lm", {}, "use head_init 'copy'"),
        ("pooled", "gpt2-lm", {}, "gives one output a sample, .* each of 12 positions"),
        ("pooled:2", "bert-classes", {}, "use head 'linear'"),
    ],
)
def test_what_does_not_fit(kind: str, name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CutError, match=says):
        head(kind, name, **options)


def test_the_output_layer_of_a_vocabulary_is_refused_unless_it_is_frozen() -> None:
    server = halves("gpt2-lm").server
    with pytest.raises(CutError, match="would train 38646864 parameters on every client"):
        make_head("linear", server, (T, 768), (T, 50_256))
