"""Parameters as one vector: its layout, probes, and their exact restore."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import nn

from sfl_flower.errors import ConfigError
from sfl_flower.zo import LAWS, Directions, Key, ParameterVector, run_key

RUN = run_key("vector")


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.eval()


def conv(net: nn.Sequential) -> nn.Conv2d:
    first = net[0]
    assert isinstance(first, nn.Conv2d) and first.bias is not None
    return first


def bits(module: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in module.state_dict().items()
        if tensor.dim()
    }


def test_layout_is_sorted_by_name_and_backs_the_module() -> None:
    net = model()
    before = bits(net)
    vector = ParameterVector(net)
    assert vector.names == ("0.bias", "0.weight", "1.bias", "1.weight", "3.bias", "3.weight")
    assert vector.shapes[1] == (4, 1, 3, 3)
    assert vector.size == 4 + 36 + 4 + 4 + 5 + 720
    assert bits(net) == before
    vector.load(torch.arange(vector.size, dtype=torch.float32))
    first = conv(net)
    assert first.bias is not None and first.bias.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert first.weight.reshape(-1)[0] == 4.0
    with torch.no_grad():
        first.bias[1] = -7.0
    assert vector.anchor[1] == -7.0


def test_names_choose_and_their_order_does_not_matter() -> None:
    one = ParameterVector(model(), ["3.weight", "0.bias"])
    other = ParameterVector(model(), ["0.bias", "3.weight"])
    assert one.names == ("0.bias", "3.weight")
    assert one.manifest() == other.manifest()
    assert torch.equal(one.anchor, other.anchor)


def test_manifest_bytes() -> None:
    expected = b"SFLm\x01" + struct.pack("<I", 2)
    expected += struct.pack("<I", 4) + b"bias" + struct.pack("<IQ", 1, 3)
    expected += struct.pack("<I", 6) + b"weight" + struct.pack("<IQQ", 2, 3, 2)
    assert ParameterVector(nn.Linear(2, 3)).manifest() == expected


@pytest.mark.parametrize("law", LAWS)
def test_a_probe_shows_anchor_plus_scaled_direction(law: str) -> None:
    net = model()
    vector = ParameterVector(net)
    direction = vector.directions(RUN, law).of(Key(0))
    expected = vector.anchor + direction.values() * torch.tensor(0.5)
    with vector.probe(direction, 0.5):
        seen = torch.cat([dict(net.named_parameters())[n].reshape(-1) for n in vector.names])
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("frozen", [torch.float32, torch.float16, torch.bfloat16])
def test_a_thousand_probes_change_no_bit(frozen: torch.dtype) -> None:
    net = model()
    net[3].to(frozen).requires_grad_(False)
    vector = ParameterVector(net)
    before, anchor = bits(net), vector.anchor.clone()
    pointers = [parameter.data_ptr() for parameter in net.parameters()]
    for i in range(1000):
        with vector.probe(vector.directions(RUN, "rademacher").of(Key(i)), 1e-3 if i % 2 else -0.7):
            assert not torch.equal(conv(net).weight.reshape(-1), anchor[4:40])
    assert bits(net) == before
    assert [parameter.data_ptr() for parameter in net.parameters()] == pointers


def test_an_exception_inside_a_probe_restores_exactly() -> None:
    net = model()
    vector = ParameterVector(net)
    before = bits(net)
    with (
        pytest.raises(RuntimeError, match="boom"),
        vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 1.0),
    ):
        with torch.no_grad():
            conv(net).weight.zero_()  # even a forward that writes its parameters leaves no trace
        raise RuntimeError("boom")
    assert bits(net) == before
    with vector.probe(vector.directions(RUN, "rademacher").of(Key(1)), 1.0):
        pass
    assert bits(net) == before


def test_a_refused_scale_leaves_the_vector_usable() -> None:
    net = model()
    vector = ParameterVector(net)
    before = bits(net)
    with (
        pytest.raises(ConfigError, match="finite"),
        vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), float("nan")),
    ):
        pass
    with vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 1.0):
        assert bits(net) != before
    assert bits(net) == before


def test_probes_do_not_nest_and_load_waits() -> None:
    vector = ParameterVector(nn.Linear(2, 2))
    direction = vector.directions(RUN, "rademacher").of(Key(0))
    with vector.probe(direction, 1.0):
        with pytest.raises(ConfigError, match="nested"), vector.probe(direction, 1.0):
            pass
        with pytest.raises(ConfigError, match="inside a probe"):
            vector.load(torch.zeros(6))


def test_a_tied_parameter_is_counted_and_moved_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    net["b"].weight = net["a"].weight
    vector = ParameterVector(net)
    assert vector.names == ("a.weight",)
    with vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 1.0):
        assert net["a"].weight is net["b"].weight


def test_inside_inference_mode() -> None:
    net = nn.Linear(4, 2)
    vector = ParameterVector(net)
    with (
        torch.inference_mode(),
        vector.probe(vector.directions(RUN, "rademacher").of(Key(0)), 1e-3),
    ):
        net(torch.ones(1, 4))
    net(torch.ones(1, 4)).sum().backward()
    assert net.weight.grad is not None


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ParameterVector(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ConfigError, match="float32 masters"):
        ParameterVector(nn.Linear(2, 2).half())
    with pytest.raises(ConfigError, match="Unknown parameters"):
        ParameterVector(nn.Linear(2, 2), ["weights"])
    with pytest.raises(ConfigError, match="twice"):
        ParameterVector(nn.Linear(2, 2), ["bias", "bias"])
    vector = ParameterVector(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="6 elements"):
        vector.load(torch.zeros(5))
    with (
        pytest.raises(ConfigError, match="5 elements"),
        vector.probe(Directions(RUN, "rademacher", [(5,)]).of(Key(0)), 1),
    ):
        pass


def test_named_gives_views_by_name_in_the_tensors_shapes() -> None:
    vector = ParameterVector(model())
    flat = torch.arange(vector.size, dtype=torch.float32)
    named = vector.named(flat)
    assert tuple(named) == vector.names
    assert tuple(tuple(view.shape) for view in named.values()) == vector.shapes
    assert named["0.bias"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(torch.cat([view.reshape(-1) for view in named.values()]), flat)
    named["3.bias"].fill_(-1.0)  # a view, no copy
    assert int((flat == -1.0).sum()) == 5
