"""A model of one's own whose frozen weights are torchao's: cut, checked, counted, taken apart."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from sfl_flower import profile
from sfl_flower.data import seeded_construction
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.split import (
    Halves,
    base_digest,
    base_state,
    check_zeroth_order,
    cut,
    dequantised,
    held_bytes,
    load_dequantised,
    make_head,
    parts,
    travelling_state,
)
from tests import tiny

FROZEN = ("first", "hidden")


def plain(seed: int = 0) -> nn.Module:
    """Return 6 -> 8 (frozen) -> 5 -> tanh | 5 -> 4 (frozen) -> 3."""
    with seeded_construction(seed):
        model = nn.Sequential(
            OrderedDict(
                first=nn.Linear(6, 8),
                side=nn.Linear(8, 5),
                act=nn.Tanh(),
                hidden=nn.Linear(5, 4),
                out=nn.Linear(4, 3),
            )
        )
    for name in FROZEN:
        model.get_submodule(name).requires_grad_(False)
    return model


def own(seed: int = 0) -> nn.Module:
    model = plain(seed)
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(model, config, filter_fn=lambda _, name: name in FROZEN)
    return model


def halves(seed: int = 0) -> Halves:
    return cut(own(seed), "act")


def batch() -> Tensor:
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(3))


def pieces(value: Tensor) -> dict[str, Tensor]:
    return dict(parts("w", value))


def test_halves_and_copies_equal_the_whole_and_gradients_flow() -> None:
    model, x = own(), batch().requires_grad_()
    both = cut(model, "act", example=(batch(),))
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    for client, server in ((both.client, both.server), copy.deepcopy((both.client, both.server))):
        output = server(client(x))
        assert torch.equal(output, model(x))
        assert torch.equal(torch.autograd.grad(output.square().sum(), x)[0], expected)
    check_zeroth_order(both.client, example=(batch(),))


def test_a_weight_is_within_half_a_step_of_what_it_was() -> None:
    before, weight = plain().get_parameter("first.weight"), own().get_parameter("first.weight")
    found = pieces(weight)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in found.items()} == {
        "w.qdata": (torch.int8, (8, 6)),
        "w.scale": (torch.float32, (8, 1)),
        "w.zero_point": (torch.int8, (8, 1)),
    }
    after = dequantised({"w": weight})["w"]
    assert torch.equal(after, found["w.qdata"].float() * found["w.scale"])
    assert ((after - before).abs() <= found["w.scale"] / 2 * (1 + 1e-4)).all()
    torch.testing.assert_close(
        found["w.scale"][:, 0], before.abs().amax(dim=1) / 127.5, rtol=1e-6, atol=0
    )


def test_bytes_are_those_in_memory() -> None:
    # 8 rows of 6 int8, a scale of 4 bytes and a zero point of 1 each; nbytes says 4 * 48.
    assert held_bytes([own().get_parameter("first.weight")]) == 8 * (6 + 4 + 1)
    assert held_bytes(plain().parameters()) == 4 * (48 + 8 + 40 + 5 + 20 + 4 + 12 + 3)
    (row, _) = profile(own(), batch(), batch_size=7, cuts=["act"]).cuts
    assert row.state_bytes == 88 + 4 * (8 + 40 + 5)
    assert (row.parameters, row.travelling_bytes) == (48 + 8 + 45, 4 * 45)


def test_the_digest_is_that_of_the_numbers_and_scales() -> None:
    whole = base_digest(halves().client)
    assert whole == base_digest(halves().client) != base_digest(halves(1).client)
    assert whole != base_digest(cut(plain(), "act").client)
    for part in ("qdata", "scale"):
        other = halves().client
        with torch.no_grad():
            pieces(other.get_parameter("first.weight"))[f"w.{part}"][3, 0] += 1
        assert base_digest(other) != whole
    assert set(base_state(halves().client)) == {"first.weight", "first.bias"}
    assert set(travelling_state(halves().client)) == {"side.weight", "side.bias"}


def test_a_whole_state_is_plain_and_may_be_loaded_where_it_is_the_same() -> None:
    server = halves().server
    state = dequantised(server.state_dict())
    assert {type(value) for value in state.values()} == {Tensor}
    assert {value.dtype for value in state.values()} == {torch.float32}
    other = state["out.bias"] + 1
    load_dequantised(server, {**state, "out.bias": other, "of.the.client": batch()})
    assert torch.equal(server.get_parameter("out.bias"), other)
    assert torch.equal(dequantised(server.state_dict())["hidden.weight"], state["hidden.weight"])
    with pytest.raises(TrainingError, match=r"'hidden\.weight' another value .* quantised there"):
        load_dequantised(server, {**state, "hidden.weight": state["hidden.weight"] + 1})


@pytest.mark.parametrize("name", ["first.weight", "hidden.weight"])
def test_a_quantised_weight_is_not_trained(name: str) -> None:
    def build() -> nn.Module:
        model = own()
        model.get_parameter(name).requires_grad_(True)
        return model

    says = rf"'{name}' is quantised \(Int8Tensor\) and would be trained, .* requires_grad_\(False\)"
    with pytest.raises(ConfigError, match=says):
        tiny.task(build=build).build(0)
    if name.startswith("first"):  # of the client half `trained` decides
        tiny.task(build=build, trained="side.*").build(0)


def test_a_head_draws_anew_what_is_trained() -> None:
    server = halves().server
    with seeded_construction(1):
        head = make_head("server", server, (5,), (3,), init="random")
    ours, theirs = (dequantised(module.state_dict()) for module in (server, head))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == ["out.weight", "out.bias"]
