from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import CutError
from sfl_flower.split import adopt, cut, cut_tail
from tests import tiny

transformers = pytest.importorskip("transformers")


def test_body_and_tail_are_the_server_half() -> None:
    model = tiny.model()
    halves, parts = cut(model, "act"), cut_tail(model, "act")
    z = torch.randn(3, tiny.CUT, generator=torch.Generator().manual_seed(0))
    assert parts.at == "act2"
    assert torch.equal(parts.tail(parts.body(z)), halves.server(z))
    assert {name for name, _ in parts.tail.named_parameters()} == {"out.weight", "out.bias"}


def test_parts_use_what_they_adopt() -> None:
    model = tiny.model()
    server, parts = cut(model, "act").server, cut_tail(model, "act")
    for part in (parts.body, parts.tail):
        adopt(part, server)
    with torch.no_grad():
        for parameter in server.parameters():
            parameter.add_(1.0)
    z = torch.ones(2, tiny.CUT)
    assert torch.equal(parts.tail(parts.body(z)), server(z))
    owned = {id(p) for part in (parts.body, parts.tail) for p in part.parameters()}
    assert owned == {id(p) for p in server.parameters()}


def test_what_the_whole_lacks_cannot_be_adopted() -> None:
    with pytest.raises(CutError, match=r"'0\.weight' belongs to a part"):
        adopt(nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("lower", "upper", "said"),
    [
        ("act", "first", "must be one of hidden, act2"),
        ("act", "nothing", "must be one of hidden, act2"),
        ("act2", "", "no layer at which a tail could begin"),
    ],
)
def test_a_tail_that_cannot_be_is_refused(lower: str, upper: str, said: str) -> None:
    with pytest.raises(CutError, match=said):
        cut_tail(tiny.model(), lower, upper)


def test_a_model_is_never_changed() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = cut_tail(model, "a")
    adopt(parts.tail, cut(model, "a").server)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def language_models() -> list[nn.Module]:
    """Return a small model of each way to give logits."""
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32}
    own = {"vocab_size": 50, "hidden_size": 16, "pad_token_id": 0, **sizes}
    gpt2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 4, "n_head": 2, "pad_token_id": 0}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    return [
        transformers.BertForSequenceClassification(transformers.BertConfig(**own)),
        transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**gpt2, **ends)),
        transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**own)),
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2, **ends)),
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("upper", ["", "block:2"])
def test_transformers_are_cut_twice_behind_blocks(which: int, upper: str) -> None:
    model = language_models()[which]
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    ids[1, 5:] = 0
    halves, parts = cut(model, "block:1", pad=0), cut_tail(model, "block:1", upper, pad=0)
    for part in (halves.client, halves.server, parts.body, parts.tail):
        part.eval()
    with torch.no_grad():
        z: Tensor = halves.client(ids)
        assert torch.equal(parts.tail(parts.body(z)), halves.server(z))
    names = {name for part in (parts.body, parts.tail) for name, _ in part.named_parameters()}
    assert names == {name for name, _ in halves.server.named_parameters()}


def test_a_tail_behind_the_cut_itself_is_refused() -> None:
    model = language_models()[0]
    with pytest.raises(CutError, match=r"must be one of bert\.encoder\.layer\.2"):
        cut_tail(model, "block:2", "block:1")
    with pytest.raises(CutError, match="no layer at which a tail could begin"):
        cut_tail(model, "block:4")
