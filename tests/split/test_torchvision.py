"""Every classification family of torchvision, at every cut, gives the bits of the whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.architectures import TORCHVISION, Architecture, images, lively
from sfl_flower.data import seeded_torch
from sfl_flower.errors import CutError
from sfl_flower.split import (
    Halves,
    check_zeroth_order,
    cut,
    every_cut,
    freeze_batch_norm,
    legal_cuts,
    problems,
)

BY_NAME = {architecture.name: architecture for architecture in TORCHVISION}


@pytest.fixture(scope="module", params=TORCHVISION, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    found: Architecture = request.param
    return found


def assert_joined(model: nn.Module, halves: Halves) -> None:
    """The halves share no name, and their state together is that of ``model``."""
    lower, upper = halves.client.state_dict(), halves.server.state_dict()
    joined, state = {**lower, **upper}, model.state_dict()
    assert len(joined) == len(lower) + len(upper)
    assert joined.keys() == state.keys()
    assert all(torch.equal(joined[name], state[name]) for name in state)


def halves_of(halves: Halves, x: Tensor) -> Tensor:
    z = halves.client(x.clone())
    assert isinstance(z, Tensor)
    output: Tensor = halves.server(z)
    return output


def test_every_legal_cut(architecture: Architecture) -> None:
    model, x = architecture.model(), architecture.inputs()
    found = []
    with torch.no_grad():
        expected = model(x.clone())
        for halves in every_cut(model):
            found.append(halves.at)
            assert_joined(model, halves)
            assert torch.equal(halves_of(halves, x), expected), halves.at
    assert expected.abs().max() > 0 and not torch.equal(expected[0], expected[1])
    assert [name for name in found if name in architecture.named] == [*architecture.named]
    assert not {*found} & {*architecture.inside}
    assert {*architecture.inside} <= {name for name, _ in model.named_modules()}


def test_train_mode(architecture: Architecture) -> None:
    """The halves draw and count what the whole does; the checker refuses it until eval mode."""
    model, x = architecture.model().train(), architecture.inputs()
    halves = cut(model, architecture.named[-1])
    with pytest.raises(CutError, match="cannot be trained by forwards"):
        check_zeroth_order(halves.client)
    with torch.no_grad():
        with seeded_torch(5):
            expected = model(x.clone())
        with seeded_torch(5):
            assert torch.equal(halves_of(halves, x), expected)
    assert_joined(model, halves)  # BatchNorm's statistics have moved alike
    check_zeroth_order(halves.client.eval(), example=(x,))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet", "'features.2.1.stochastic_depth'"),
        ("convnext", "'features.1.1.stochastic_depth'"),
        ("swin", "'features.1.1.stochastic_depth'"),
        ("vit", "'encoder.layers.encoder_layer_0.self_attention'"),
    ],
)
def test_the_layer_that_draws_is_named(name: str, said: str) -> None:
    halves = cut(freeze_batch_norm(BY_NAME[name].model().train()), BY_NAME[name].named[-1])
    with pytest.raises(CutError) as caught:
        check_zeroth_order(halves.client)
    assert said in str(caught.value)
    assert "set its rate to 0 inside model(), or cut before it" in str(caught.value)


@pytest.mark.parametrize("rate", ["attention_dropout", "dropout"])
def test_dropout_inside_window_attention_is_found(rate: str) -> None:
    """The attention is one function that no recording looks into; it is told the rate."""
    model = BY_NAME["swin"].model().train()
    assert problems(cut(model, "features.1.0").client) == []
    setattr(model.get_submodule("features.1.0.attn"), rate, 0.1)
    halves = cut(model, "features.1.0")
    (found,) = problems(halves.client)
    assert found.layer == "features.1.0.attn" and "`shifted_window_attention`" in found.what
    assert problems(halves.client.eval()) == []


def test_a_vision_transformer_is_cut_behind_its_first_layer() -> None:
    """The grid's sides, which the forward takes from the image, do not cross."""
    model = BY_NAME["vit"].model()
    halves = cut(model, "conv_proj")
    assert [*halves.client.state_dict()] == ["conv_proj.weight", "conv_proj.bias"]
    with torch.no_grad():
        assert halves.client(images(3)).shape == (3, 16, 4, 4)
        for count in (1, 3):  # the batch size is none of the recording's
            assert torch.equal(halves_of(halves, images(count)), model(images(count)))
        with pytest.raises(AssertionError, match="Wrong image height"):
            halves.client(images(2, side=40))


RESNETS = {
    "resnet18": (17, "layer1.1", "layer4.1"),
    "resnet34": (25, "layer1.2", "layer3.5", "layer4.2"),
    "resnet50": (25, "layer1.2", "layer3.5", "layer4.2"),
    "resnet101": (42, "layer1.2", "layer3.22", "layer4.2"),
    "resnet152": (59, "layer2.7", "layer3.35", "layer4.2"),
}


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_is_cut_behind_stem_stages_and_blocks(name: str) -> None:
    with torch.device("meta"):
        model = models.get_model(name)
    count, *blocks = RESNETS[name]
    found = legal_cuts(model)
    assert len(found) == count
    assert {"conv1", "bn1", "relu", "maxpool", "layer1", "layer4", "avgpool", *blocks} <= {*found}
    halves = cut(model, "layer2")
    assert [*halves.client.state_dict(), *halves.server.state_dict()] == [*model.state_dict()]


REAL: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "resnet18": (models.resnet18, 64, ("layer2",)),
    "vgg11": (lambda: models.vgg11(init_weights=False), 32, ("features.10",)),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 64, ("features.3", "features.8")),
    "efficientnet_b0": (models.efficientnet_b0, 64, ("features.4",)),
    "convnext_tiny": (models.convnext_tiny, 64, ("features.3.1",)),
    "vit_b_16": (models.vit_b_16, 224, ("encoder.layers.encoder_layer_2",)),
    "swin_t": (models.swin_t, 64, ("features.3.1",)),
}


@pytest.mark.parametrize("name", REAL)
def test_a_model_of_real_size(name: str) -> None:
    build, side, places = REAL[name]
    with seeded_torch(0):
        model = lively(build()).eval()
    x = images(1, side)
    with torch.no_grad():
        expected = model(x.clone())
        assert expected.shape == (1, 1000) and expected.isfinite().all()
        for at in places:
            halves = cut(model, at)
            assert_joined(model, halves)
            assert torch.equal(halves_of(halves, x), expected), at
