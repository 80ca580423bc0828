from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from sfl_flower.errors import CutError
from sfl_flower.split import Halves, cut, freeze_batch_norm, legal_cuts


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and buffer a value of its own, so that mixing two up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(noise * (0.1 / max(1.0, tensor.numel() ** 0.5)))
    return model


def assert_equal_halves(model: nn.Module, halves: Halves, x: Tensor, mode: bool = False) -> None:
    """Compare output and buffers of the halves with the whole, on copies, bit for bit."""
    whole, client, server = (
        copy.deepcopy(module).train(mode) for module in (model, halves.client, halves.server)
    )
    kept = x.clone()
    with torch.no_grad():
        z = client(x)
        out = server(z)
        assert torch.equal(x, kept), "the client half wrote into its input"
        assert torch.equal(out, whole(x.clone()))
    merged = {**client.state_dict(), **server.state_dict()}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, merged[name]), name


def assert_partition(model: nn.Module, halves: Halves) -> None:
    client, server = set(halves.client.state_dict()), set(halves.server.state_dict())
    assert not client & server
    assert client | server == set(model.state_dict())


def memory(module: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}


class Residual(nn.Module):
    def __init__(self, width: int, functional: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.functional = functional

    def forward(self, x: Tensor) -> Any:
        out = self.second(F.relu(self.first(x)) if self.functional else self.relu(self.first(x)))
        out += x
        return self.relu(out)


class Net(nn.Module):
    """A stack of blocks with functional calls, a side branch and a head."""

    def __init__(self, blocks: list[nn.Module], width: int, concat: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.left = nn.Linear(width, 3)
        if concat:
            self.right = nn.Linear(width, 2)
        self.concat = concat
        self.head = nn.Linear(5 if concat else 3, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.blocks(x.flatten(1))
        x = torch.cat([self.left(x), self.right(x)], dim=1) if self.concat else self.left(x)
        return F.log_softmax(self.head(x), dim=1)


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    width = draw(st.integers(2, 5))
    makers: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(width, width),
        "relu": lambda: nn.ReLU(inplace=True),
        "tanh": lambda: nn.Tanh(),
        "norm": lambda: nn.BatchNorm1d(width),
        "residual": lambda: Residual(width, functional=False),
        "functional": lambda: Residual(width, functional=True),
        "nested": lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), Residual(width, True)),
    }
    kinds = draw(st.lists(st.sampled_from(sorted(makers)), min_size=1, max_size=5))
    blocks = [makers[kind]() for kind in kinds]
    net: nn.Module = Net(blocks, width, concat=draw(st.booleans()))
    if draw(st.booleans()):
        net = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), net)
    return lively(net, seed=draw(st.integers(0, 9)))


@settings(deadline=None, max_examples=15)
@given(net=nets(), mode=st.booleans())
def test_every_legal_cut_of_a_random_net_is_exact(net: nn.Module, mode: bool) -> None:
    width = next(m for m in net.modules() if isinstance(m, nn.Linear)).in_features
    names = legal_cuts(net)
    assert len(names) >= 1
    for name in names:
        halves = cut(net, name)
        assert_equal_halves(net, halves, batch(6, width), mode)
        assert_partition(net, halves)
        assert not memory(halves.client) & memory(halves.server)
        assert not memory(net) & (memory(halves.client) | memory(halves.server))
        assert ".first" not in name and ".second" not in name, "inside a residual branch"


RESNET18_CUTS = """conv1 bn1 relu maxpool layer1.0 layer1.1 layer1 layer2.0 layer2.1 layer2
layer3.0 layer3.1 layer3 layer4.0 layer4.1 layer4 avgpool""".split()


def test_resnet18_cuts_are_stem_stages_and_whole_blocks() -> None:
    assert legal_cuts(torchvision.models.resnet18(num_classes=10)) == RESNET18_CUTS


@pytest.mark.parametrize("at", ["conv1", "layer1.0", "layer2", "avgpool"])
def test_resnet18(at: str) -> None:
    model = lively(torchvision.models.resnet18(num_classes=10))
    halves = cut(model, at)
    assert_partition(model, halves)
    assert_equal_halves(model, halves, batch(2, 3, 32, 32))
    assert_equal_halves(model, halves, batch(2, 3, 32, 32), mode=True)


def test_resnet18_client_half_to_layer2_has_the_known_size() -> None:
    client = cut(torchvision.models.resnet18(num_classes=10), "layer2").client
    assert sum(p.numel() for p in client.parameters()) == 683_072
    with torch.no_grad():
        assert client.eval()(batch(1, 3, 64, 64)).shape == (1, 128, 8, 8)


def test_resnet50() -> None:
    model = lively(torchvision.models.resnet50(num_classes=10))
    halves = cut(model, "layer1.2")
    assert_partition(model, halves)
    assert_equal_halves(model, halves, batch(1, 3, 32, 32))


def test_vgg11_server_half_leaves_its_input_alone() -> None:
    model = torchvision.models.vgg11(init_weights=False)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 7 * 7, 10))
    lively(model)
    halves = cut(model, "features.3")  # the next layer is ReLU(inplace=True)
    assert_partition(model, halves)
    assert_equal_halves(model, halves, batch(1, 3, 32, 32))
    server = halves.server.eval()
    z = halves.client(batch(1, 3, 32, 32)).detach().requires_grad_()
    kept = z.detach().clone()
    server(z).sum().backward()
    assert torch.equal(z.detach(), kept)
    assert z.grad is not None and z.grad.shape == z.shape


def test_sequential_by_index_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert legal_cuts(model) == ["0", "1"]
    halves = cut(model, "1")
    assert halves.at == "1"
    assert list(halves.client.state_dict()) == ["0.weight", "0.bias"]
    assert list(halves.server.state_dict()) == ["2.weight", "2.bias"]
    assert_equal_halves(model, halves, batch(5, 3))


def test_smashed_data_is_the_output_of_the_named_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = batch(5, 3)
    assert torch.equal(cut(model, "0").client(x), model[0](x))


def test_a_client_without_parameters_is_legal() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    halves = cut(model, "0")
    assert not list(halves.client.parameters())
    assert_equal_halves(model, halves, batch(5, 2, 2))


def test_halves_keep_modes_and_requires_grad() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), nn.BatchNorm1d(3), nn.Linear(3, 2)
    )
    model[0].eval()
    model[2].weight.requires_grad_(False)
    halves = cut(model, "1")
    assert not halves.client.get_submodule("0.1").training
    assert halves.client.get_submodule("1").training
    copied = copy.deepcopy(halves.client)
    assert not copied.get_submodule("0.1").training and copied.training
    copied.train()
    assert copied.get_submodule("0.1").training
    assert not halves.server.get_parameter("2.weight").requires_grad
    assert model.training and not model[0].training


def test_the_model_is_left_as_it_was() -> None:
    model = lively(torchvision.models.resnet18(num_classes=10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = sorted(vars(model))
    generator = torch.get_rng_state()
    halves = cut(model, "layer1", example=(batch(1, 3, 32, 32),))
    with torch.no_grad():
        for parameter in (*halves.client.parameters(), *halves.server.parameters()):
            parameter.zero_()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert sorted(vars(model)) == attributes and model.training


def test_halves_work_with_functional_call_deepcopy_and_load() -> None:
    model = lively(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    client = cut(model, "2").client.eval()
    x = batch(5, 3)
    zeros = {name: torch.zeros_like(p) for name, p in client.named_parameters()}
    assert not functional_call(client, zeros, (x,)).any()
    assert client(x).any()
    other = copy.deepcopy(client)
    other.load_state_dict(zeros, strict=False)
    assert not other(x).any() and client(x).any()
    other.load_state_dict(client.state_dict())
    assert torch.equal(other(x), client(x))


def test_halves_can_be_cut_again() -> None:
    model = lively(nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3))))
    server = cut(model, "0").server
    assert legal_cuts(server) == ["1.0", "1.1"]
    again = cut(server, "1.1")
    assert_equal_halves(server, again, batch(4, 3))
    assert_partition(server, again)


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), _Drop())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.dropout(self.block(x), 0.5, self.training))


class _Drop(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return F.dropout(x, 0.5, training=self.training)


@pytest.mark.parametrize("traced_in_train_mode", [True, False])
def test_functional_dropout_follows_the_mode_after_the_cut(traced_in_train_mode: bool) -> None:
    model = FunctionalDropout().train(traced_in_train_mode)
    halves = cut(model, "block")
    x = torch.ones(64, 8)
    for half, value in ((halves.client, x), (halves.server, torch.ones(64, 8))):
        with torch.random.fork_rng(devices=[]):
            assert torch.equal(half.eval()(value), half(value))
            assert not torch.equal(half.train()(value), half(value))
            assert not torch.equal(copy.deepcopy(half)(value), half(value))
    # The flag is that of the module which passes it on, not that of the half.
    halves.client.train().get_submodule("block.1").eval()
    assert torch.equal(halves.client(x), halves.client(x))


class Branches(nn.Module):
    """Control flow on the data inside a submodule, and on the mode inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.gate, self.noisy = _Gate(), _OnlyInTraining()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.noisy(self.gate(self.stem(x))))


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return self.inner(x)
        return x * 2


class _OnlyInTraining(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x + torch.full((4,), 3.0) if self.training else x


def test_submodules_that_cannot_be_recorded_are_kept_whole() -> None:
    model = lively(Branches())
    assert legal_cuts(model) == ["stem", "gate", "noisy"]
    for at in ("stem", "gate", "noisy"):
        halves = cut(model, at)
        assert_partition(model, halves)
        for mode in (True, False):
            assert_equal_halves(model, halves, batch(3, 4), mode)
            assert_equal_halves(model, halves, -batch(3, 4), mode)
    with pytest.raises(CutError, match=r"'gate\.inner'.*inside 'gate'.*control flow.*if x\.sum"):
        cut(model, "gate.inner")


class State(nn.Module):
    """Parameters, buffers and constants used outside any layer."""

    seen: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.plain = torch.full((4,), 5.0)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        z = self.first(x * self.scale + self.table + self.plain)
        self.seen.add_(z.mean(dim=0))
        z = z + self.seen + torch.ones(4)
        return self.last(z if y is None else z * y)


def test_state_outside_layers_keeps_its_names_and_kinds() -> None:
    model = lively(State())
    halves = cut(model, "first", example=(batch(3, 4),))
    assert set(halves.client.state_dict()) == {"scale", "first.weight", "first.bias"}
    assert set(halves.server.state_dict()) == {"seen", "last.weight", "last.bias"}
    assert_equal_halves(model, halves, batch(3, 4))
    assert set(copy.deepcopy(halves.client).state_dict()) == set(halves.client.state_dict())


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        x.view(-1).mul_(2)
        x += 1
        z = self.first(x)
        w = z.view(-1)
        w.clamp_(min=0)
        return self.last(z)


def test_in_place_writes_run_on_the_right_side_and_not_on_the_callers_tensor() -> None:
    model = lively(WritesInput())
    halves = cut(model, "first")
    assert_equal_halves(model, halves, batch(4, 3))
    z = batch(4, 3)
    kept = z.clone()
    halves.server(z)
    assert torch.equal(z, kept)


class Augmented(nn.Module):
    """``kept`` is the same tensor as ``x``, so that the addition shows in both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        kept = x
        x += 1
        return self.last(self.mid(kept * x))


def test_augmented_assignment_is_a_write() -> None:
    model = lively(Augmented())
    assert legal_cuts(model) == ["first", "mid"]
    for at in legal_cuts(model):
        assert_equal_halves(model, cut(model, at), batch(4, 3))


class TwoInputs(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.a, self.b, self.late = nn.Linear(3, 3), nn.Linear(3, 2), late

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        z = self.a(x if self.late else x * mask)
        return self.b(z * mask if self.late else z)


def test_several_inputs() -> None:
    model = TwoInputs(late=False)
    halves = cut(model, "a", example=(batch(4, 3), torch.ones(3)))
    assert halves.client(batch(4, 3), torch.zeros(3)).shape == (4, 3)
    with pytest.raises(CutError, match=r"'a'.*the model's input 'mask' goes around it.*`mul`"):
        cut(TwoInputs(late=True), "a")


def test_frozen_batch_norm_survives_the_cut_and_train() -> None:
    model = freeze_batch_norm(lively(torchvision.models.resnet18(num_classes=3)))
    halves = cut(model, "layer1")
    halves.client.train()
    assert not halves.client.get_submodule("bn1").training
    assert halves.client.get_submodule("layer1.0.conv1").training
    assert_equal_halves(model, halves, batch(2, 3, 32, 32), mode=True)


# ---------------------------------------------------------------- refusals


def refusal(model: nn.Module, at: str, example: tuple[Tensor, ...] | None = None) -> str:
    with pytest.raises(CutError) as caught:
        cut(model, at, example)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def resnet() -> Iterator[nn.Module]:
    yield torchvision.models.resnet18(num_classes=10)


def test_unknown_layer_suggests_the_closest(resnet: nn.Module) -> None:
    said = refusal(resnet, "layer5")
    assert "no layer named 'layer5'" in said and "did you mean 'layer" in said
    assert "conv1, bn1, relu, maxpool, layer1.0" in said and "(17 in all)" in said
    assert len(said.split("legal cuts are: ")[1].split(", ")) == 12
    assert "no layer named ''" in refusal(resnet, "")
    assert "no layer named 'zzz';" in refusal(nn.Sequential(nn.Linear(2, 2)), "zzz")


def test_cut_inside_a_residual_branch(resnet: nn.Module) -> None:
    said = refusal(resnet, "layer3.0.conv1")
    assert "'layer3.0.conv1'" in said and "the output of 'layer2' goes around it" in said
    assert "layer2, layer3.0, layer3.1" in said, "the legal cuts nearby are shown"
    assert "into `iadd` in 'layer1.0' (resnet.py:" in refusal(resnet, "layer1.0.bn2")


def test_layer_called_more_than_once(resnet: nn.Module) -> None:
    assert "calls it 2 times" in refusal(resnet, "layer1.0.relu")


def test_last_layer(resnet: nn.Module) -> None:
    assert "nothing is left for the server" in refusal(resnet, "fc")
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert "no trainable parameter" in refusal(model, "0")
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    assert "no legal cut" in refusal(frozen, "0")


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.spare, self.side = nn.Linear(2, 2), nn.Linear(2, 2)
        self.through = nn.Sequential()

    def forward(self, x: Tensor) -> Any:
        x = self.through(x)
        self.side(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_layers_that_do_not_lead_to_the_output() -> None:
    assert legal_cuts(Unused()) == ["layers.0"]
    assert "never calls it" in refusal(Unused(), "spare")
    assert "only holds layers" in refusal(Unused(), "layers")
    assert "does not reach the model's output" in refusal(Unused(), "side")
    assert "input unchanged" in refusal(Unused(), "through")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.out(self.mid(self.embed(x))))


def test_tied_weights_across_the_cut() -> None:
    model = Tied()
    assert legal_cuts(model) == ["out"]
    said = refusal(model, "mid")
    assert "'embed.weight'" in said and "'out.weight'" in said and "tied" in said
    halves = cut(model, "out")
    weight = halves.client.get_parameter("embed.weight")
    assert halves.client.get_parameter("out.weight") is weight
    assert_partition(model, halves)


def test_weights_tied_through_shared_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model.get_parameter("0.weight").data)
    said = refusal(model, "0")
    assert "'0.weight'" in said and "'1.weight'" in said


class Reused(nn.Module):
    def __init__(self, module: nn.Module, alias: bool) -> None:
        super().__init__()
        self.shared, self.mid, self.last = module, nn.Linear(4, 4), nn.Linear(4, 2)
        self.again = module if alias else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        x = self.mid(self.shared(x))
        x = self.shared(x) if isinstance(self.again, nn.Identity) else self.again(x)
        return self.last(x)


def test_a_module_used_on_both_sides() -> None:
    said = refusal(Reused(nn.Linear(4, 4), alias=False), "mid")
    assert "'shared' is used on both sides" in said and "'shared.weight'" in said
    said = refusal(Reused(nn.Linear(4, 4), alias=True), "mid")
    assert "'shared.weight'" in said and "'again.weight'" in said
    assert "running_mean" in refusal(Reused(nn.BatchNorm1d(4, affine=False), False), "mid")


def test_a_module_without_state_may_be_used_on_both_sides() -> None:
    model = Reused(nn.ReLU(), alias=False)
    halves = cut(model, "mid")
    assert_equal_halves(model, halves, batch(3, 4))
    halves.client.eval()
    assert halves.server.get_submodule("shared").training


def test_one_module_under_two_names_keeps_both() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model.insert(1, model[0])
    halves = cut(model, "2")
    assert_partition(model, halves)
    assert "calls it 2 times" in refusal(model, "1")


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.split, self.fc = nn.LSTM(3, 4), _Pair(), nn.Linear(4, 2)
        self.maker = _Hidden()

    def forward(self, x: Tensor) -> Any:
        out, _ = self.rnn(x)
        a, b = self.split(out)
        return self.fc(self.maker(a + b)[0])


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x * 2


class _Hidden(nn.Module):
    """Kept whole, so that only what the forward takes of it shows that it returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x, x) if x.sum() > 0 else (x, -x)


def test_layers_that_do_not_return_one_tensor() -> None:
    assert "returns several values" in refusal(Recurrent(), "rnn")
    assert "returns a tuple" in refusal(Recurrent(), "split")
    assert "returns several values" in refusal(Recurrent(), "maker", (batch(2, 1, 3),))


class RootFlow(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.out, self.kind = nn.Linear(2, 2), nn.Linear(2, 2), kind

    def forward(self, x: Tensor) -> Any:
        x = self.fc(x)
        if self.kind == "data" and x.mean() > 0:
            x = -x
        if self.kind == "random":
            x = x + torch.randn(2)
        if self.kind == "mode" and self.training:
            x = x + 1
        if self.kind == "item":
            x = x * float(x.sum())
        return self.out(x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("data", r"control flow depends on the data at test_cut\.py:\d+ \(`if self\.kind"),
        ("random", "draws random numbers"),
        ("mode", "another path in train mode than in eval mode"),
        ("item", r"at test_cut\.py:\d+ \(`x = x \* float"),
    ],
)
def test_a_model_that_cannot_be_recorded(kind: str, why: str) -> None:
    with pytest.raises(CutError, match=why) as caught:
        cut(RootFlow(kind), "fc")
    assert "RootFlow" in str(caught.value) and "submodule of its own" in str(caught.value)


def test_inside_a_composite_layer_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Tanh())
    model.append(nn.Linear(4, 2))
    assert legal_cuts(model) == ["0", "1"]
    assert "TransformerEncoder is kept whole" in refusal(model, "0.layers.0")


def test_wrong_arguments() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(CutError, match=r"torch\.nn\.Module"):
        legal_cuts("resnet18")  # type: ignore[arg-type]
    with pytest.raises(CutError, match="named by a string, not 0"):
        cut(model, 0)  # type: ignore[arg-type]
    assert "0 were given" in refusal(model, "0", ())
    assert "2 were given" in refusal(model, "0", (batch(1, 2), batch(1, 2)))
    assert "does not run on the example" in refusal(model, "0", (batch(1, 3),))
    assert "has no shape yet" in refusal(nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2)), "0")
