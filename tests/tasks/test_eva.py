"""Adapters whose A is set by public texts: which directions they are, and how they travel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfl_flower.data.memory import forget
from sfl_flower.data.seeding import global_states
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.run.client_app import make_client_app
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted
from sfl_flower.split import travelling_state
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task
from sfl_flower.tasks.own_text import text_task
from tests.tasks.language import WORDS, checkpoint, write
from tests.tiny import begin, equal, run, start, train

SETTINGS: dict[str, Any] = {"rounds": 2, "clients": 2, "partition": "iid", "client_lr": 0.1}
LAYER = "bert.encoder.layer.1.attention.self.query"
A = f"{LAYER}.lora_A.default.weight"
USED = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        kind: checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "gpt2", "llama")
    }


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    texts(tmp_path, 1)
    yield tmp_path


def texts(folder: Path, step: int) -> None:
    """Write rows of words that lie so far apart in the vocabulary."""
    rows = [
        (" ".join(WORDS[(i * i + step * j) % len(WORDS)] for j in range(2 + i % 4)), i % 2)
        for i in range(USED + 64)
    ]
    for name in ("sst2_train", "sst2_dev"):
        write(folder / f"{name}.csv.gz", ("sentence", "label"), rows)


def small(model: str, **options: Any) -> SplitTask:
    given = {"max_length": 8, "lora_rank": 2, "lora_init": "eva", "train_size": USED}
    return load_task("sst2", model=model, **{**given, **options})


def directions(task: SplitTask) -> dict[str, Tensor]:
    named = fitted(task, 0).client.named_buffers()
    return {name: value for name, value in named if "lora_A" in name}


def entering(task: SplitTask) -> Tensor:
    """Return what enters the layer at the tokens of the public texts."""
    x = task.samples("public").x
    found: list[Tensor] = []
    client = task.build(0).client.eval()
    hook = client.get_submodule(LAYER).register_forward_pre_hook(
        lambda _module, inputs: found.append(inputs[0])
    )
    with torch.no_grad():
        client(x)
    hook.remove()
    length = found[0].shape[1]
    return found[0][x[:, :length] != 0].double()


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_they_are_the_leading_directions_of_what_enters_a_layer(
    base_dtype: str, models: dict[str, str]
) -> None:
    task = small(models["bert"], base_dtype=base_dtype)
    found = directions(task)
    assert len(found) == 2 * 2  # query and value of two blocks before the cut
    rows = entering(task)
    by_hand = torch.linalg.svd(rows - rows.mean(dim=0)).Vh[:2]
    cosines = (found[A].double() * by_hand).sum(dim=1).abs()
    assert torch.allclose(cosines, torch.ones(2, dtype=torch.float64), atol=1e-3)
    for value in found.values():
        assert value.dtype == torch.float32
        assert torch.allclose(value @ value.t(), torch.eye(2), atol=1e-5)


def test_what_they_share_with_a_subspace_of_the_same_layers(models: dict[str, str]) -> None:
    """All but what the mean of the inputs and padding add to the moments of a subspace."""
    task = small(models["bert"])
    plain = small(
        models["bert"], lora_rank=0, lora_init="default", trained="subspace:2:*.query"
    )  # fmt: skip
    found = directions(task)[A].double()

    def shared(spanned: Tensor) -> float:
        return float((found @ torch.linalg.qr(spanned.double()).Q).square().sum()) / 2

    def leading(moments: Tensor) -> Tensor:
        vectors: Tensor = torch.linalg.eigh(moments)[1]
        return vectors[:, -2:]

    subspace = shared(fitted(plain, 0).client.get_buffer(f"{LAYER}.subspace_basis").t())
    rows = entering(task)
    tokens, centred = shared(leading(rows.t() @ rows)), shared(leading(rows.t().cov()))
    assert subspace < centred and tokens < centred == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_b_alone_is_trained_and_a_travels(kind: str, models: dict[str, str]) -> None:
    task = small(models[kind], cut="block:1")
    task.check()
    halves = fitted(task, 0)
    names = [n for n, p in halves.client.named_parameters() if p.requires_grad]
    assert names and all("lora_B" in name for name in names)
    state = travelling_state(halves.client)
    assert {name for name in state if "lora_" in name} == {
        *names, *(name.replace("lora_B", "lora_A") for name in names)
    }  # fmt: skip
    for half in (halves.client, halves.server):
        found = [v for name, v in half.named_buffers() if "lora_A" in name]
        assert found and all(torch.allclose(v @ v.t(), torch.eye(2), atol=1e-5) for v in found)
    x = task.samples("test").x[:3]
    plain = small(models[kind], cut="block:1", lora_init="default").build(0)
    assert torch.equal(halves.client.eval()(x), plain.client.eval()(x))  # B is zero
    share = energy_share(halves.client, sample_gradients(task, 0, 2, 10))
    assert 0 < share.batches < 1


def test_they_follow_from_the_texts_and_nothing_else(models: dict[str, str], data: Path) -> None:
    task = small(models["bert"])
    before = global_states()
    first = directions(task)
    assert global_states() == before
    forget(task.key)
    torch.rand(3)
    assert equal(first, directions(task))
    named = fitted(task, 1).client.named_buffers()
    assert equal(first, {name: value for name, value in named if "lora_A" in name})
    texts(data, 3)
    forget(task.key)
    assert not torch.allclose(first[A].abs(), directions(task)[A].abs(), atol=1e-2)


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "fedavg"])
def test_a_run_trains_b_and_keeps_a(method: str, models: dict[str, str]) -> None:
    task = small(models["bert"])
    trial = begin(task, method, **SETTINGS)
    before = trial.model
    after = start(trial).model
    assert trial.total("replies") and trial.notes == ""
    moved = {name for name in after if not torch.allclose(after[name], before[name], atol=1e-6)}
    assert f"{LAYER}.lora_B.default.weight" in moved and not any("lora_A" in n for n in moved)
    assert torch.equal(before[A], directions(task)[A])


@pytest.mark.flower
def test_an_auxiliary_head_of_blocks_has_them_too(models: dict[str, str]) -> None:
    trial = begin(
        small(models["bert"], cut="block:1"), "heron", **SETTINGS,
        head="blocks:block:2", head_init="copy",
    )  # fmt: skip
    strategy: Any = trial.strategy
    head = dict(strategy.head.named_buffers())[A]
    assert torch.equal(head, dict(strategy.server.module.named_buffers())[A])
    assert torch.allclose(head @ head.t(), torch.eye(2), atol=1e-5)


@pytest.mark.flower
def test_a_resumed_run_goes_on_in_the_directions_of_its_checkpoint(
    models: dict[str, str], data: Path, tmp_path: Path
) -> None:
    options = {**SETTINGS, "checkpoint_every": 1}
    whole = run(small(models["bert"]), "ho_sfl", **options)
    run(small(models["bert"]), "ho_sfl", out=tmp_path / "run", **{**options, "rounds": 1})
    # As on another machine, where they come out otherwise.
    task = small(models["bert"], public_size=40)
    again = run(task, "ho_sfl", out=tmp_path / "run", resume=True, **options)
    assert equal(whole.model, again.model)


@pytest.mark.flower
def test_clients_take_them_from_the_server(models: dict[str, str]) -> None:
    """A client computes none: it may have no public texts, or another machine's rounding."""

    def fails() -> Any:
        raise AssertionError("a client asks for them")

    task = small(models["bert"])
    trial = begin(task, **SETTINGS, sync="replay")
    other = small(models["bert"])
    object.__setattr__(other, "first_buffers", fails)
    object.__setattr__(other, "key", "of the clients")
    trial.grid._app = make_client_app(lambda context: other)
    start(trial)
    assert trial.total("replies") and trial.notes == ""
    assert equal(trial.model, train(task, **SETTINGS, sync="download").model)


def rows() -> list[tuple[str, int]]:
    return [("the film was great", 1), ("a dull plot", 0)] * 4


def own(model: str, **options: Any) -> SplitTask:
    return text_task("own", rows, rows, range(2), model=model, max_length=8, **options)


def test_where_they_cannot_be_had(models: dict[str, str]) -> None:
    bert = models["bert"]
    for options, said in (
        ({"lora_init": "olora"}, "'lora_init' of task 'sst2' is 'olora'; .* default, eva"),
        ({"lora_rank": 0}, "default where lora_rank is 0, .* no adapters; set lora_rank"),
    ):
        with pytest.raises(ConfigError, match=said):
            small(bert, **options)
    with pytest.raises(ConfigError, match=r"lora_init.*, and the task has none; give it public="):
        own(bert, lora_init="eva", lora_rank=2)
    with pytest.raises(DataError, match=r"set task\.train_size to at most 12, and the last 64"):
        fitted(small(bert, train_size=None), 0)
    with pytest.raises(ConfigError, match=r"the 16 inputs of the layer '.*'; it must be at most 8"):
        fitted(small(bert, lora_rank=9), 0)
    few = own(bert, lora_init="eva", lora_rank=4, public=lambda: [("film", 1)])
    with pytest.raises(ConfigError, match="the 3 tokens of the public texts; it must be at most 1"):
        fitted(few, 0)


def test_directions_that_never_settle_are_given_up(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfl_flower.tasks import eva

    monkeypatch.setattr(eva, "MOST", 2)
    with pytest.raises(ConfigError, match=r"on its 64 public texts .* lower task\.lora_rank, or"):
        fitted(small(models["bert"]), 0)


def test_nothing_is_said(models: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    task = small(models["bert"])
    with contextlib.suppress(KeyError):
        forget(task.key)
    fitted(task, 0)
    assert tuple(capfd.readouterr()) == ("", "")
