"""Models as people bring them: what is cut, and what a refusal says to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sfl_flower.errors import CutError
from sfl_flower.split import check_zeroth_order, cut, every_cut, legal_cuts


class _Guarded(nn.Module):
    """Checks of the input's form in the outermost forward."""

    def __init__(self, guard: str) -> None:
        super().__init__()
        self.guard = guard
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.guard == "ndim":
            if x.ndim != 2:
                raise ValueError("wants [N, 2]")
        elif self.guard == "or":
            if x.dim() != 2 or x.shape[1] != 2:
                raise ValueError("wants [N, 2]")
        elif self.guard == "not":
            if not x.is_floating_point():
                raise TypeError("wants floats")
        elif self.guard == "assert":
            assert x.size(1) == 2 and x.dtype == torch.float32
        elif self.guard == "values":
            if x.min() < -1e9:
                raise ValueError("too small")
        elif self.guard == "branch":
            if x.ndim == 3:
                x = x[0]
        return self.b(self.a(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("guard", ["ndim", "or", "not", "assert"])
def test_a17_a_guard_of_the_input_s_form_is_taken_to_pass(guard: str) -> None:
    model, x = _Guarded(guard), torch.randn(3, 2)
    assert legal_cuts(model) == ["a"]
    halves = cut(model, "a", (x,))
    assert torch.equal(halves.server(halves.client(x)), model(x))


@pytest.mark.parametrize("guard", ["values", "branch"])
def test_a17_what_depends_on_values_or_does_more_than_raise_is_still_refused(guard: str) -> None:
    with pytest.raises(CutError, match="control flow depends on the data"):
        legal_cuts(_Guarded(guard))


class _Quickstart(nn.Module):
    """The network of many first lessons: one pool that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def test_a6_a_layer_called_twice_is_refused_with_a_cut_that_works() -> None:
    message = r"calls it 2 times; cut at 'conv2', the next legal layer, or give each call a layer"
    with pytest.raises(CutError, match=message):
        cut(_Quickstart(), "pool")
    assert cut(_Quickstart(), "conv2", (torch.randn(2, 1, 28, 28),)).at == "conv2"


class _Whole(nn.Module):
    """A layer that no recording looks into, as those of transformers."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        self.gives, self.layer = gives, nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        z = self.layer(x["z"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x)
        if z.sum() > 1e30:
            return z
        return {"dict": {"z": z}, "tuple": (z, z), "double": z.double(), "first": z.t(), "": z}[
            self.gives
        ]


class _Reads(nn.Module):
    def __init__(self, gives: str, handed_on: bool) -> None:
        super().__init__()
        self.handed_on, self.gives = handed_on, gives
        self.first, self.second = _Whole(gives), _Whole("")
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Any = self.first(x)
        if not self.handed_on:
            z = z["z"] if self.gives == "dict" else z[0]
        return self.last(self.second(z))  # type: ignore[no-any-return]


@pytest.mark.parametrize("gives", ["dict", "tuple"])
def test_e9_layers_that_give_several_values_are_no_legal_cuts(gives: str) -> None:
    model = _Reads(gives, handed_on=False)
    assert legal_cuts(model) == ["second"]
    with pytest.raises(CutError, match="returns several values, and only one tensor can cross"):
        cut(model, "first")
    # Handed on as it is, what it gives shows on data only.
    model = _Reads(gives, handed_on=True)
    assert legal_cuts(model, (torch.randn(3, 2),)) == ["second"]
    assert [halves.at for halves in every_cut(model, (torch.randn(3, 2),))] == ["second"]


@pytest.mark.parametrize("gives", ["double", "first"])
def test_e9_layers_whose_output_cannot_cross_are_no_legal_cuts_of_an_example(gives: str) -> None:
    model = nn.Sequential(_Whole(""), _Whole(gives), _Back(), nn.Linear(2, 3))
    assert legal_cuts(model) == ["0", "1", "2"]
    assert legal_cuts(model, (torch.randn(3, 2),)) == ["0", "2"]


class _Back(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z.t() if z.shape == (2, 3) else z).float()


def _pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    prune.l1_unstructured(model[0], "weight", 2)
    return model


class _Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 4)
        self.guard = threading.Lock()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 4)), nn.Linear(4, 3)),
            r"'0' has torch.nn.utils.weight_norm: use torch.nn.utils.parametrizations.weight_norm",
        ),
        (_pruned, r"'0' is pruned: .*torch.nn.utils.prune.remove\(module, 'weight'\)"),
        (lambda: nn.Sequential(_Locked(), nn.Linear(4, 3)), "'0' has an attribute 'guard', a lock"),
    ],
)
def test_e12_what_cannot_be_copied_is_named_with_its_own_remedy(
    build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(CutError, match=message):
        legal_cuts(build())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [0, 2])
def test_e12_a_compiled_layer_is_one_piece_on_either_side(place: int) -> None:
    layers: list[nn.Module] = [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 3)]
    layers[place] = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    model, x = nn.Sequential(*layers), torch.randn(3, 2)
    halves = cut(model, "1", (x,))
    assert torch.equal(halves.server(halves.client(x)), model(x))
    keys = {*halves.client.state_dict(), *halves.server.state_dict()}
    assert keys == set(model.state_dict())
    with pytest.raises(CutError, match="a ScriptModule cannot be cut"):
        legal_cuts(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))


class _Unreadable(nn.Module):
    """Neither half can be recorded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() < 1e30 else x


def test_two_modules_that_cannot_be_recorded_are_cut_between() -> None:
    model, x = nn.Sequential(_Unreadable(2, 4), _Unreadable(4, 3)), torch.randn(3, 2)
    assert legal_cuts(model) == ["0"]
    halves = cut(model, "0", (x,))
    assert torch.equal(halves.server(halves.client(x)), model(x))


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def test_e12_complex_weights_are_not_told_to_become_floats() -> None:
    half = cut(nn.Sequential(_Complex(), nn.Linear(4, 3)), "0").client
    with pytest.raises(CutError, match="complex64, not float32; keep its real and imaginary part"):
        check_zeroth_order(half)


def test_a11_refusals_name_what_the_user_of_a_task_can_do() -> None:
    norm = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    with pytest.raises(CutError) as refused:
        check_zeroth_order(cut(norm, "2").client)
    said = str(refused.value)
    assert said.count("set client-mode=eval") == 2
    assert "call freeze_batch_norm inside model()" in said
    assert "set its rate to 0 inside model()" in said
    assert "on the client half" not in said
    check_zeroth_order(cut(norm, "2").client.eval())
