"""Layers that move in a few directions of their inputs: by hand, and in runs of every kind."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from sfl_flower import simulate
from sfl_flower.data import seeded_construction
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.records import as_record
from sfl_flower.server.subspace import fitted
from sfl_flower.split import base_digest, fit_subspace, plain_weights, read_subspace, restrict
from sfl_flower.split.parameters.subspace import Auto, Subspace
from sfl_flower.tasks import load_task
from tests import tiny
from tests.tiny import Trial, begin, train

NAMES = ["first.bias", "first.subspace"]


def public() -> Any:
    return tiny.samples(20, 7)


def problem(**options: Any) -> Any:
    return tiny.task(**{"trained": "subspace:2", "public": public, **options})


def opened(module: nn.Module, trained: str = "subspace:2") -> nn.Module:
    restrict(module, trained)
    return module


def moved(module: nn.Module) -> nn.Module:
    """Give every R some values."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("subspace"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_what_a_choice_says() -> None:
    assert read_subspace("all") is None
    assert read_subspace("core.0.weight") is None  # a name of the model's own
    assert read_subspace("subspace:4") == Subspace((("*", 4),))
    assert read_subspace("subspace:12:layer2.*") == Subspace((("layer2.*", 12),))
    assert read_subspace("core:3:a") == Subspace((("a", 3),), core=True)
    listed = read_subspace("subspace:a=2,b.*=1,norm.weight=all")
    assert listed == Subspace((("a", 2), ("b.*", 1)), ("norm.weight",), listed=True)
    assert isinstance(listed, Subspace)
    assert [listed.rank(name) for name in ("a", "b.c", "c")] == [2, 1, 0]
    assert read_subspace("subspace:auto") == Auto(0.9, 0.02)
    assert read_subspace("subspace:auto:0.5:1") == Auto(0.5, 1.0)


BAD = (
    "subspace subspace: subspace:0 subspace:x subspaces core: core:0 core:auto subspace:a=0 "
    "subspace:a=1,b subspace:auto: subspace:auto:0 subspace:auto:1.5 subspace:auto:0.9:2 "
    "subspace:auto:1.2.3"
)


@pytest.mark.parametrize("bad", BAD.split())
def test_a_choice_that_is_none_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ConfigError, match="subspace:R, with R directions a layer from 1"):
        tiny.task(trained=bad)


def test_the_leading_directions_by_hand() -> None:
    layer = opened(nn.Sequential(nn.Linear(3, 2)))
    # Inputs along the second axis with mean square 4, along the third with 1, none along the first.
    x = torch.tensor([[0.0, 2, 1], [0, -2, 1], [0, 2, -1], [0, -2, -1]])
    fit_subspace(layer, x)
    basis = layer[0].get_buffer("subspace_basis")  # type: ignore[index]
    assert torch.allclose(basis, torch.tensor([[0, 0.5, 0], [0, 0, 1.0]]), atol=1e-7)
    # So what the directions take of the inputs has a mean square of 1, each.
    assert torch.allclose((x @ basis.t()).square().mean(dim=0), torch.ones(2))


def test_a_model_whose_layers_may_move_is_unchanged_until_they_do() -> None:
    plain = tiny.model()
    client = opened(copy.deepcopy(plain))
    fit_subspace(client, public().x)
    assert torch.equal(client(public().x), plain(public().x))
    assert [n for n, p in client.named_parameters() if p.requires_grad and "first" in n] == NAMES
    assert tiny.equal(plain_weights(client.state_dict()), plain.state_dict())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 4, 3),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(2, 4, (3, 2), padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(2, 4, 1),
    ],
)
def test_a_convolution_moves_as_its_weight_would(conv: nn.Conv2d) -> None:
    x = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    client = opened(nn.Sequential(OrderedDict(conv=copy.deepcopy(conv))))
    fit_subspace(client, x)
    moved(client)
    plain = nn.Sequential(OrderedDict(conv=copy.deepcopy(conv)))
    plain.load_state_dict(plain_weights(client.state_dict()))
    assert not torch.allclose(client(x), nn.Sequential(OrderedDict(conv=conv))(x), atol=0.1)
    assert torch.allclose(client(x), plain(x), atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2),
        nn.Conv1d(2, 4, 3, padding="same"),
        nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular", bias=False),
    ],
)
@pytest.mark.parametrize("trained", ["subspace:6", "subspace:1"])
def test_a_convolution_of_sequences_moves_as_its_weight_would(
    conv: nn.Conv1d, trained: str
) -> None:
    x = torch.randn(20, 2, 9, generator=torch.Generator().manual_seed(1))
    client = opened(nn.Sequential(OrderedDict(conv=copy.deepcopy(conv))), trained)
    fit_subspace(client, x)
    basis = client.get_buffer("conv.subspace_basis")
    along = copy.deepcopy(conv)
    along.weight.data, along.bias = basis.reshape(-1, 2, 3), None
    assert torch.allclose(along(x).square().mean(dim=(0, 2)), torch.ones(len(basis)), atol=1e-4)
    moved(client)
    plain = nn.Sequential(OrderedDict(conv=copy.deepcopy(conv)))
    plain.load_state_dict(plain_weights(client.state_dict()))
    assert not torch.allclose(client(x), conv(x), atol=0.1)
    assert torch.allclose(client(x), plain(x), atol=1e-5)


def test_the_patches_of_a_convolution_are_what_its_kernels_see() -> None:
    """With one direction, the layer's mean square over positions along it is 1."""
    x = torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    client = opened(nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 4, 3, stride=2))), "subspace:1")
    fit_subspace(client, x)
    basis = client.get_buffer("conv.subspace_basis")
    along = nn.functional.conv2d(x, basis.reshape(1, 2, 3, 3), stride=2)
    assert float(along.square().mean()) == pytest.approx(1.0, rel=1e-5)


def test_all_directions_hold_the_whole_gradient_and_the_leading_ones_most_of_it() -> None:
    x, y = public().x, public().y
    plain = tiny.model()
    nn.functional.cross_entropy(plain(x), y).backward()
    gradient = plain.get_submodule("hidden").weight.grad
    assert isinstance(gradient, Tensor)
    shares = []
    for rank in (1, 2, tiny.CUT):
        client = opened(copy.deepcopy(plain), f"subspace:{rank}:hidden")
        fit_subspace(client, x)
        basis = client.get_buffer("hidden.subspace_basis")
        inside = gradient @ torch.linalg.pinv(basis) @ basis
        shares.append(float(inside.square().sum() / gradient.square().sum()))
    assert shares[0] < shares[1] < shares[2] == pytest.approx(1.0, rel=1e-4)
    assert shares[1] > 2 / tiny.CUT  # what two directions at random would hold


def test_a_parameter_of_the_models_own_by_that_name_stays() -> None:
    state = {
        "subspace": torch.ones(2),
        "layer.subspace": torch.ones(3),
        "layer.weight": torch.ones(3, 1),
    }
    assert tiny.equal(plain_weights(state), state)


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ("subspace:2:third", r"chooses no layer .* by 'third'.*\(first\)"),
        ("subspace:7", r"'first' has 6 inputs; R must be in \[1, 6\]"),
    ],
)
def test_a_subspace_that_the_half_cannot_have_is_refused(trained: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        problem(trained=trained).build(0)


def test_samples_that_say_too_little_are_refused() -> None:
    few = problem(trained="subspace:4", public=lambda: tiny.samples(3, 7))
    with pytest.raises(
        ConfigError, match=r"4 directions of the layer 'first'.* span 3; ask for few"
    ):
        fitted(few, 0)


def test_public_samples_of_another_shape_are_refused() -> None:
    wide = tiny.samples(20, 7)
    other = problem(public=lambda: type(wide)(torch.randn(20, 9), wide.y))
    with pytest.raises(ConfigError, match=r"cannot run public samples of shape \[9\].* like train"):
        fitted(other, 0)
    says = r"public set .* has inputs of \[9\], the training set of \[6\]; public\(\) must return"
    with pytest.raises(ConfigError, match=says):
        other.check()


def test_without_public_samples_noise_stands_in_and_texts_are_refused() -> None:
    one, two = (fitted(problem(public=None), 0).client for _ in range(2))
    assert torch.equal(
        one.get_buffer("first.subspace_basis"), two.get_buffer("first.subspace_basis")
    )
    assert bool(one.get_buffer("first.subspace_basis").any())
    texts = problem(public=None, transform=lambda x: x.long())
    with pytest.raises(ConfigError, match=r"no public samples, nor can noise .*int64; give it pub"):
        fitted(texts, 0)


def basis_of(trial: Trial) -> Tensor:
    found: Tensor = trial.strategy.client_half.get_buffer("first.subspace_basis")
    return found


@pytest.mark.flower
def test_ho_sfl_sends_the_directions_once_and_moves_along_them_alone() -> None:
    trial = train(problem(), rounds=4, client_lr=0.5, sync="replay")
    before, after = tiny.model(), trial.model
    first = begin(problem()).model["first.weight"]
    change = after["first.weight"] - first
    inside = basis_of(trial)
    residual = change - change @ torch.linalg.pinv(inside) @ inside
    assert float(change.norm()) > 1e-3 > 1e-4 > float(residual.norm())
    assert set(after) == set(before.state_dict())
    # R, bias and A: [5, 2] + [5] + [2, 6] float32 for each of four clients, at the start.
    assert trial.strategy.ledger.down["weights"] == 4 * 4 * (10 + 5 + 12)


@pytest.mark.flower
def test_what_a_run_leaves_is_a_plain_model_that_gives_the_same_results() -> None:
    trial = train(problem(), rounds=4, client_lr=0.5)
    plain = tiny.model()
    plain.load_state_dict(trial.model)
    found = problem().evaluate(plain.eval())
    assert found["loss"] == pytest.approx(trial.strategy.records[-1].metrics["loss"], rel=1e-5)


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "decomfl", "heron", "frozen"])
def test_a_resumed_run_goes_on_in_the_directions_of_its_checkpoint(
    method: str, tmp_path: Path
) -> None:
    rate = {} if method == "frozen" else {"client_lr": 0.1}
    shared: dict[str, Any] = {"checkpoint_every": 1, **rate, **tiny.STEADY.get(method, {})}
    whole = tiny.run(problem(), method, rounds=4, **shared)
    tiny.run(problem(), method, out=tmp_path / "run", rounds=2, **shared)
    # As on another machine, where they come out otherwise.
    other = problem(public=lambda: tiny.samples(20, 9))
    again = tiny.run(other, method, out=tmp_path / "run", resume=True, rounds=4, **shared)
    assert tiny.equal(whole.model, again.model)


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "decomfl", "heron", "fedavg"])
def test_first_weights_are_those_of_the_plain_model(method: str) -> None:
    trial = begin(problem(), method, rounds=1)
    given = trial.model
    for name in ("first.bias", "out.weight"):
        given[name] += 1
    trial.strategy.arrays = lambda: as_record(given)
    tiny.start(trial)
    plain = tiny.model()
    plain.load_state_dict(given)
    found = problem().evaluate(plain.eval())
    assert trial.strategy.records[0].metrics["loss"] == pytest.approx(found["loss"], rel=1e-6)
    assert trial.strategy.records[-1].failures + trial.strategy.records[-1].rejected == 0


class Shared(nn.Module):
    """Two layers of one weight, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.own = (nn.Linear(tiny.FEATURES, tiny.FEATURES) for _ in range(3))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.two(self.one(x).relu()).relu())  # type: ignore[no-any-return]


def test_layers_without_a_weight_of_their_own_stay() -> None:
    """The plain model has one place for a shared weight, and none for a computed one."""
    client = opened(Shared())
    assert [n for n, p in client.named_parameters() if p.requires_grad] == [
        "own.bias", "own.subspace",
    ]  # fmt: skip
    normed = tiny.model()
    nn.utils.parametrizations.weight_norm(normed.get_submodule("first"))
    opened(normed)
    assert set(plain_weights(normed.state_dict())) >= {
        "first.parametrizations.weight.original0", "hidden.weight",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"with a weight of their own, can move so \(own\)"):
        opened(Shared(), "subspace:2:one")


def test_a_layer_that_runs_twice_moves_both_times() -> None:
    class Twice(Shared):
        def forward(self, x: Tensor) -> Tensor:
            return self.own(self.own(x).relu())  # type: ignore[no-any-return]

    client = opened(Twice(), "subspace:2:own")
    fit_subspace(client, public().x)
    moved(client)
    plain = Twice()
    plain.load_state_dict(plain_weights(client.state_dict()))
    assert torch.allclose(client(public().x), plain(public().x), atol=1e-5)


def test_layers_that_are_read_and_never_called_are_refused() -> None:
    class Reads(Shared):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.own.weight)

    with pytest.raises(ConfigError, match=r"never calls \(own\), it reads .*call them in forward"):
        fit_subspace(opened(Reads()), public().x)


def test_the_public_set_is_tried_before_a_run() -> None:
    problem().check()
    with pytest.raises(DataError, match=r"The public set of task 'tiny' is a int"):
        problem(public=lambda: 3).check()
    drawn = iter(range(9))
    with pytest.raises(DataError, match=r"public\(\) of task 'tiny'"):
        problem(public=lambda: tiny.samples(20, next(drawn))).check()
    tiny.task(public=lambda: 3).check()  # nothing asks for it


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("method", "trained"),
    [("ho_sfl", "subspace:3"), ("heron", "core:3"), ("ho_sfl", "subspace:auto:0.8:1")],
)
def test_ray_equals_inline(method: str, trained: str) -> None:
    shared: dict[str, Any] = {"rounds": 2, "clients": 2, "batch_size": 8}
    task = load_task("digits", trained=trained)
    task = replace(task, public=task.test)
    one, two = (simulate(task, method, backend=b, **shared) for b in ("inline", "ray"))
    assert tiny.equal(one.model, two.model)


def kept(dtype: str) -> nn.Module:
    """Return the tiny model, its first layer kept in a dtype that no training keeps."""
    with seeded_construction(0):
        found = tiny.model()
    first = found.get_submodule("first").requires_grad_(False)
    if dtype == "int8":
        config = Int8WeightOnlyConfig(set_inductor_config=False)
        quantize_(found, config, filter_fn=lambda _, name: name == "first")
    else:
        found.register_module("first", nn.Sequential(Cast(torch.bfloat16), first.bfloat16()))
        found.register_module("act", nn.Sequential(Cast(torch.float32), nn.Tanh()))
    return found


class Cast(nn.Module):
    """To a dtype: mixed precision by hand."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


@pytest.mark.flower
@pytest.mark.parametrize("trained", ["subspace:2", "core:2"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_layers_move_beside_weights_that_no_training_keeps(dtype: str, trained: str) -> None:
    task = problem(trained=trained, build=lambda: kept(dtype))
    before = task.build(0)
    names = [n for n, p in before.client.named_parameters() if p.requires_grad]
    assert [name.rpartition(".")[2] for name in names] == ["subspace"]
    assert before.client.get_parameter(names[0]).dtype == torch.float32
    trial = train(task, rounds=3, client_lr=0.5, sync="replay")
    assert [r.failures + r.rejected for r in trial.strategy.records] == [0] * 4
    half = trial.strategy.client_half
    assert bool(half.get_parameter(names[0]).any())
    # W₀ is as it was, to the bit, and a replay gives what a download does.
    assert base_digest(half) == base_digest(before.client)
    other = train(task, rounds=3, client_lr=0.5, sync="download")
    assert tiny.equal(trial.model, other.model)
    weight = f"{names[0].rpartition('.')[0]}.weight"
    assert trial.model[weight].dtype == (torch.float32 if dtype == "int8" else torch.bfloat16)
    # The share of the gradient can be asked for: it is that of the weights as plain ones.
    gradients = sample_gradients(task, 0, 2, 10)
    assert 0.2 < energy_share(fitted(task, 0).client, gradients).batches <= 1
