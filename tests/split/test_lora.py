"""LoRA halves: adapters only are trained, by backprop and by forwards."""

from __future__ import annotations

import copy
import importlib
import logging
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from benchmarks.language_models import BLOCKS, build, lively, tokens, whole_logits
from sfl_flower.errors import CutError
from sfl_flower.split import check_zeroth_order, cut, legal_cuts
from sfl_flower.zo import Key, ParameterVector, Probing, run_key, surrogate_scalars

cloudpickle: Any = importlib.import_module("ray.cloudpickle")

TARGETS = {
    "gpt2-lm": ["c_attn", "c_fc"],
    "gpt2-classes": ["c_attn"],
    "opt-classes": ["q_proj", "v_proj"],
    "bert-classes": ["query", "value"],
    "llama-lm": ["q_proj", "v_proj", "down_proj"],
    "gemma2-classes": ["q_proj"],
}
EVERY_MODEL = pytest.mark.parametrize("name", TARGETS)


def lora(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return a tiny model with LoRA adapters that do something, in eval mode."""
    settings = {"target_modules": TARGETS[name], "fan_in_fan_out": name.startswith("gpt2")}
    kind = "SEQ_CLS" if name.endswith("classes") else "CAUSAL_LM"
    config = peft.LoraConfig(task_type=kind, r=2, **{**settings, **options})
    with torch.random.fork_rng(devices=[]):
        model = peft.get_peft_model(build(name).to(dtype), config)
    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    lively(trained, seed=4)
    return model.eval()


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("blocks", range(1, BLOCKS))
@EVERY_MODEL
def test_halves_equal_the_whole_and_keep_peft_names(name: str, blocks: int) -> None:
    model, ids = lora(name), tokens()
    halves = cut(model, at=f"block:{blocks}")
    expected, mask = whole_logits(model, ids)
    z = halves.client(ids)
    cut_value = z.detach().requires_grad_()
    logits = halves.server(cut_value)
    if logits.ndim == 3:
        logits, expected = logits[:, : mask.shape[1]][mask], expected[mask]
    assert torch.equal(logits, expected)
    with model.disable_adapter(), torch.no_grad():
        base, _ = whole_logits(model, ids)
    assert not torch.equal(base[mask] if base.ndim == 3 else base, expected)

    expected.square().sum().backward()
    logits.square().sum().backward()
    z.backward(cut_value.grad)
    joined = {**trained(halves.client), **trained(halves.server)}
    assert set(joined) == set(trained(model))
    assert all("lora_" in name_ for name_ in trained(halves.client))
    for name_, parameter in trained(model).items():
        assert torch.equal(gradient(parameter), gradient(joined[name_])), name_
    frozen = [p for half in (halves.client, halves.server) for p in half.parameters()
              if not p.requires_grad]  # fmt: skip
    assert frozen and all(p.grad is None for p in frozen)
    client, server = set(halves.client.state_dict()), set(halves.server.state_dict())
    assert not client & server and client | server == set(model.state_dict())


def test_blocks_may_be_named_without_the_wrapper() -> None:
    model = lora("gpt2-classes")
    names = legal_cuts(model)
    assert names[0] == "base_model.model.transformer.h.0" and len(names) == BLOCKS
    assert model.get_submodule(names[0]) is model.base_model.model.transformer.h[0]
    for at in (names[1], "transformer.h.1", "block:2"):
        assert cut(model, at=at).at == names[1]


def test_adapters_may_be_injected() -> None:
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=2, target_modules=["query"])
        model = lively(peft.inject_adapter_in_model(config, build("bert-classes"))).eval()
    halves = cut(model, at="bert.encoder.layer.1", example=(tokens(),))
    assert "bert.encoder.layer.0.attention.self.query.lora_A.default.weight" in trained(
        halves.client
    )


@pytest.mark.parametrize("name", ["gpt2-classes", "bert-classes", "llama-lm"])
def test_a_half_precision_base_keeps_float32_adapters(name: str) -> None:
    model, ids = lora(name, torch.bfloat16), tokens()
    halves = cut(model, at="block:2", example=(ids,))
    client = halves.client
    assert {p.dtype for p in trained(client).values()} == {torch.float32}
    assert {p.dtype for p in client.parameters() if not p.requires_grad} == {torch.bfloat16}
    check_zeroth_order(client, example=(ids,))
    z = client(ids)
    assert z.dtype == torch.float32
    leaf = z.detach().requires_grad_()
    halves.server(leaf).square().sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32
    z.backward(leaf.grad)
    assert all(p.grad is not None and p.grad.any() for p in trained(client).values())
    half = cut(model.to(torch.bfloat16), at="block:2").client
    with pytest.raises(CutError, match="trained in bfloat16, not float32"):
        check_zeroth_order(half)


def test_a_frozen_tie_needs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flwr"):
        halves = cut(lora("gpt2-lm"), at="block:2")
    assert not caplog.text
    assert "base_model.model.lm_head.weight" in halves.server.state_dict()


def test_other_adapters_inside_the_layers_work_and_learned_tokens_are_refused() -> None:
    ia3 = peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        adapted: Any = peft.get_peft_model(build("gpt2-classes"), ia3).eval()
        cut(adapted, at="block:1", example=(tokens(),))
        prompt = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
        model: Any = peft.get_peft_model(build("gpt2-classes"), prompt)
    with pytest.raises(CutError, match=r"PromptTuningConfig puts learned tokens .* such as LoRA"):
        cut(model, at="block:1")


def test_adapters_on_the_embeddings_stay_with_the_client() -> None:
    model = lora("gpt2-classes", target_modules=["wte", "c_attn"])
    halves = cut(model, at="block:1", example=(tokens(),))
    name = "base_model.model.transformer.wte.lora_embedding_A.default"
    assert name in trained(halves.client) and name not in trained(halves.server)


def test_copies_and_pickles_of_lora_halves_work() -> None:
    halves, ids = cut(lora("gpt2-classes"), at="block:2"), tokens()
    expected = halves.server(halves.client(ids))
    for other in (copy.deepcopy(halves), cloudpickle.loads(cloudpickle.dumps(halves))):
        assert torch.equal(other.server(other.client(ids)), expected)
        vector = ParameterVector(other.client)
        vector.load(torch.zeros(vector.size))
        assert not torch.equal(other.server(other.client(ids)), expected)
    assert torch.equal(halves.server(halves.client(ids)), expected)


def test_a_zeroth_order_step_restores_exactly_and_moves_adapters_only() -> None:
    ids = tokens()
    client = cut(lora("gpt2-classes"), at="block:2").client
    vector = ParameterVector(client)
    # c_attn of two blocks of width 16, rank 2: A is [2, 16], B is [48, 2].
    assert vector.size == 2 * (2 * 16 + 48 * 2)
    assert vector.names == tuple(
        f"base_model.model.transformer.h.{block}.attn.c_attn.lora_{side}.default.weight"
        for block in range(2)
        for side in "AB"
    )
    before = {name: tensor.clone() for name, tensor in client.state_dict().items()}
    with torch.no_grad():
        z = client(ids)
    lam = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    lam[z == 0] = 0
    directions = [
        vector.directions(run_key("lora"), "rademacher").of(Key(0, probe=p)) for p in range(3)
    ]
    mu = 1e-3
    scalars = surrogate_scalars(lambda: client(ids), vector, directions, Probing(mu=mu), z, lam)
    after = client.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(client(ids), z)

    # Each scalar is the derivative of <λ, z> along its direction, to first order in μ.
    (client(ids) * lam).sum().backward()
    parameters = trained(client)
    whole = torch.cat([gradient(parameters[name]).flatten() for name in vector.names])
    for direction, scalar in zip(directions, scalars, strict=True):
        slope = float(whole @ direction.values())
        assert abs(slope) > 1 and float(scalar) / mu == pytest.approx(slope, rel=0.05, abs=0.3)

    step = sum(float(v) / mu * u.values() for v, u in zip(scalars, directions, strict=True))
    vector.load(vector.anchor - 1e-3 / 3 * step)
    moved = {name for name, t in client.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == set(vector.names)
    assert not torch.equal(client(ids), z)
