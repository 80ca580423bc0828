"""Differential privacy of scalars: what is bounded, what is noised, and what it costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.data import batch_indices
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.node.private import private_scalars
from sfl_flower.privacy.accounting import epsilon_of, noise_for
from sfl_flower.report.asked_file import Asked, AskedFile
from sfl_flower.server.private import PrivacySettings
from sfl_flower.task import SplitTask
from sfl_flower.zo import Probing
from tests import tiny
from tests.local_grid import values
from tests.tiny import Trial, begin, equal, train

CLIENTS, EACH, BATCH, PROBES, MU = 2, 12, 4, 3, 1e-2
CLIP, SIGMA = 0.05, 2.0
STEP = CLIP * PROBES**0.5 * MU / BATCH
"""What a sample moves the scalars of a mini-batch at most."""
OPTIONS: dict[str, Any] = {
    "clients": CLIENTS,
    "batch_size": BATCH,
    "probes": PROBES,
    "mu": MU,
    "client_lr": 0.0,
    "dp_clip": CLIP,
}
JOURNALLED = ("ho_sfl", "decomfl")
METHODS = (*JOURNALLED, "heron")


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Let clients draw their noise from known generators; return what each drew, in order."""
    drawn: list[np.ndarray] = []

    class Known:
        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            drawn.append(np.random.default_rng(len(drawn)).standard_normal(shape))
            return drawn[-1]

    monkeypatch.setattr("sfl_flower.node.private.secret_generator", Known)
    return drawn


Hidden = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Hidden:
    """Return what the server hides: numbers, deviations, and the normal numbers drawn for them."""
    found: Hidden = []

    def spy(values: np.ndarray, deviation: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
        normal = drawn.standard_normal(values.shape)
        found.append((values.copy(), deviation, normal))
        noised: np.ndarray = values + deviation * normal
        return noised

    monkeypatch.setattr("sfl_flower.server.spending.gaussian", spy)
    return found


def trained(method: str = "ho_sfl", each: int = EACH, **options: Any) -> Trial:
    return train(tiny.task(clients=CLIENTS, each=each), method, **{**OPTIONS, **options})


def sent(trial: Trial) -> np.ndarray:
    """Return all scalars that clients sent, in order, [replies, mini-batches, probes]."""
    return np.stack(
        [
            values(content["arrays"]["scalars"]).astype(np.float64)
            for _, _, content in trial.grid.replies
            if "scalars" in content.array_records.get("arrays", {})
        ]
    )


def journal(trial: Trial) -> np.ndarray:
    entries = trial.strategy.journal.entries
    return np.stack([entry.coefficients.astype(np.float64) for entry in entries])


def epsilons(trial: Trial) -> list[float]:
    return [r.extra["epsilon"] for r in trial.strategy.records if r.round]


def test_each_sample_is_bounded_over_its_probes_before_the_sum() -> None:
    """Two probes, three samples, S = 2 √2 · 1 / 4: the first is scaled, the others are not."""
    probing = Probing(2, mu=1.0, clip=2.0)
    limit = 2.0 * 2**0.5 / 4
    each = torch.tensor([[[3.0], [0.1], [0.0]], [[4.0], [0.0], [-0.2]]])  # [P, n, 1]
    # A mini-batch of 3 where 4 are asked for counts 3/4; the first sample's norm is 3.75 then.
    expected = [0.6 * limit + 0.075, 0.8 * limit - 0.15]
    assert private_scalars([each], probing, 4).tolist() == pytest.approx(expected, rel=1e-6)
    apart = private_scalars([each[:, :2], each[:, 2:]], probing, 4)
    assert torch.equal(apart, private_scalars([each], probing, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", ["forward", "central", "jvp"])
def test_a_bound_that_nobody_meets_leaves_scalars_as_they_are(method: str, estimator: str) -> None:
    plain = trained(method, dp_clip=0.0, estimator=estimator, rounds=1)
    bounded = trained(method, dp_clip=1e6, estimator=estimator, rounds=1)
    size = np.abs(sent(plain)).max()
    assert np.allclose(sent(bounded), sent(plain), rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_moves_what_its_client_sends_by_no_more_than_it_may(method: str) -> None:
    """The largest sample there can be, in place of one: at most 2 S, and nobody else moves."""
    shares = [tiny.samples(BATCH, seed) for seed in (0, 1)]
    x = shares[0].x.clone()
    x[1] = 1e6
    other = [dataclasses.replace(shares[0], x=x), shares[1]]
    options = {**OPTIONS, "rounds": 1}
    if method == "ho_sfl":  # λ of the others would move with the sample: what is in the clear
        options["server_steps"] = "round"
    a, b = (sent(train(tiny.task(share), method, **options)) for share in (shares, other))
    assert np.array_equal(a[1], b[1])
    assert 0.0 < np.linalg.norm(a[0] - b[0]) <= 2 * STEP * (1 + 1e-5)


@pytest.mark.parametrize("method", JOURNALLED)
def test_noise_of_clients_reaches_the_journal_with_the_stated_variance(
    method: str, draws: list[np.ndarray]
) -> None:
    """Exactly, draw by draw: σ S on each scalar, over P μ and the clients that are averaged."""
    shared: dict[str, Any] = (
        {} if method == "decomfl" else {"directions": "shared", "clip_norm": 0.0}
    )
    quiet = journal(trained(method, **shared))
    assert not draws
    noisy = journal(trained(method, dp_noise=SIGMA, **shared))
    assert len(draws) == 3 * CLIENTS and draws[0].shape == (PROBES,)
    mean = np.stack(draws).reshape(3, CLIENTS, PROBES).mean(axis=1)
    expected = SIGMA * STEP * mean / (PROBES * MU)
    found = (noisy - quiet).reshape(3, PROBES)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_clients_of_heron_walk_along_what_they_send(draws: list[np.ndarray]) -> None:
    """The second step's scalars are of where noised ones led, and the server comes there too."""
    options: dict[str, Any] = {
        "local_steps": 2,
        "client_lr": 1.0,
        "client_momentum": 0.0,
        "rounds": 1,
    }
    noisy = trained("heron", dp_noise=SIGMA, **options)
    assert noisy.total("rejected") == noisy.total("failures") == 0
    quiet = sent(trained("heron", **options))
    each = np.stack(draws).reshape(CLIENTS, 2, PROBES)
    first, second = (sent(noisy) - quiet - SIGMA * STEP * each).transpose(1, 0, 2)
    rounding = 1e-4 * SIGMA * STEP
    assert np.abs(first).max() <= rounding and np.abs(second).max() > 10 * rounding
    still = trained("heron", dp_noise=SIGMA, **{**options, "client_lr": 0.0})
    assert not equal(noisy.model, still.model)


@pytest.mark.parametrize("upload_every", [1, 2])
def test_heron_tells_the_loss_of_samples_that_it_sends_alone(upload_every: int) -> None:
    own = {"local_steps": 2, "upload_every": upload_every}
    options: dict[str, Any] = {**own, "client_lr": 0.0, "rounds": 1}
    with_clip, plain = (
        [
            c["config"]["loss"]
            for _, _, c in trained("heron", **options, dp_clip=clip).grid.replies
            if "loss" in c.config_records.get("config", {})
        ]
        for clip in (CLIP, 0.0)
    )
    assert len(plain) == CLIENTS and (with_clip == pytest.approx(plain)) == (upload_every == 1)


@pytest.mark.parametrize("directions", ["own", "shared"])
def test_noise_of_the_server_is_once_on_what_is_journalled(directions: str, hidden: Hidden) -> None:
    """Of a mean over K clients a sample moves 1/K; along own directions each client's is noised."""
    options: dict[str, Any] = {"directions": directions, "clip_norm": 0.0, "outlier_factor": 0.0}
    central: dict[str, Any] = {"dp_noise_by": "server", "dp_noise": SIGMA}
    quiet, trial = journal(trained(**options)), trained(**options, **central)
    assert len(hidden) == len(quiet)
    for own, (told, deviations, drawn), before in zip(journal(trial), hidden, quiet, strict=True):
        assert drawn.shape == (CLIENTS if directions == "own" else 1, 1, PROBES)
        assert np.allclose(deviations, SIGMA * STEP / (CLIENTS * PROBES * MU), rtol=1e-12)
        assert np.allclose(told, before, rtol=1e-6)
        assert np.abs(own - before - deviations * drawn).max() <= 1e-4 * np.abs(own - before).max()
    first = [drawn for _, _, drawn in hidden]
    hidden.clear()
    assert journal(trained(**options, **central)).tolist() == journal(trial).tolist()
    assert all(np.array_equal(a, b) for a, (_, _, b) in zip(first, hidden, strict=True))
    assert "scalar_rms" not in trial.strategy.records[-1].extra  # of scalars that nobody noised


def test_other_numbers_are_hidden_by_other_noise(hidden: Hidden) -> None:
    """Two runs of one seed and secret would else tell both by the difference of their journals."""
    central: dict[str, Any] = {"dp_noise_by": "server", "directions": "shared", "rounds": 1}
    for sigma in (SIGMA, 2 * SIGMA):
        trained(**central, dp_noise=sigma, outlier_factor=0.0, clip_norm=0.0)
    (one, _, a), (two, _, b) = hidden
    assert np.array_equal(one, two) and not np.isclose(a, b).any()


def test_the_noise_of_a_sum_is_that_of_the_client_that_counts_most(hidden: Hidden) -> None:
    trial = trained(
        dp_noise_by="server", dp_noise=SIGMA, directions="shared", outlier_factor=0.0, rounds=1
    )
    hidden.clear()
    spending, scale = trial.strategy.spending, np.array([0.1, 0.3])
    spending.noised(np.zeros((1, 1, 2)), scale, Probing(PROBES, mu=MU, clip=CLIP), 1, [0, 1])
    ((_, deviations, _),) = hidden
    assert np.allclose(deviations, SIGMA * STEP * 0.3, rtol=1e-12)


def test_the_server_tells_clients_of_noise_that_they_are_to_add_and_of_no_other() -> None:
    for by, told in (("client", SIGMA), ("server", 0.0)):
        trial = trained(dp_noise=SIGMA, dp_noise_by=by, outlier_factor=0.0, rounds=1)
        asked = [content["config"] for kind, _, content in trial.grid.asked if kind == "probe"]
        assert [(a["clip"], a["noise"]) for a in asked] == [(CLIP, told)] * CLIENTS


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_is_that_of_the_sample_that_was_in_the_most_mini_batches(method: str) -> None:
    trial = trained(method, dp_noise=SIGMA, rounds=6)
    counts, most = np.zeros((CLIENTS, EACH), int), []
    for round in range(1, 7):
        for client in range(CLIENTS):
            key = trial.strategy.config.client_key(client)
            counts[client, batch_indices(key, round, 0, EACH, BATCH)] += 1
        most.append(int(counts.max()))
    assert most[-1] < 6  # nobody is in every one
    assert epsilons(trial) == [epsilon_of(SIGMA, times, 1e-5) for times in most]


def test_a_client_that_is_not_asked_spends_nothing() -> None:
    problem = tiny.task(clients=4, each=BATCH)
    trial = train(problem, "decomfl", **{**OPTIONS, "clients": 4, "sampled": 1, "dp_noise": SIGMA})
    asked = [client for kind, client, _ in trial.grid.asked if kind == "walk"]
    spent = {at: int(own.max()) for at, own in trial.strategy.spending._counts.items()}
    assert spent == {client: asked.count(client) for client in set(asked)}


@pytest.mark.parametrize(
    ("method", "more"), [(m, {}) for m in METHODS] + [("ho_sfl", {"pipeline": True})]
)
def test_the_budget_ends_the_run_before_the_round_that_would_exceed_it(
    method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """All samples are in every mini-batch; σ allows two of them."""
    limit = epsilon_of(SIGMA, 2, 1e-5) * 1.01
    own = {"dp_noise": SIGMA, "dp_epsilon": limit, "rounds": 9, "eval_every": 9}
    options = {**OPTIONS, **more, **own}
    problem, out = tiny.task(clients=CLIENTS, each=BATCH), tmp_path / "run"
    result = tiny.run(problem, method, out=out, **options)
    last = result.history[-1]
    assert (last.round, last.version) == (2, 2)
    assert last.extra["epsilon"] == epsilon_of(SIGMA, 2, 1e-5) <= limit
    assert last.metrics and result.summary.metrics == last.metrics
    assert "Round 3 would bring a sample of client 0, which holds 4, to epsilon" in last.notes[-1]
    clear = "the scalars alone; smashed data and labels are sent in the clear"
    covers = clear if method != "decomfl" else "all that clients tell of their samples"
    assert last.notes[-1].endswith(f"it covers {covers}.")
    assert result.summary.terms["privacy"] == last.notes[-1].partition("At its end ")[2]
    again = tiny.run(problem, method, out=out, resume=True, **{**options, "rounds": 12})
    assert again.history[-1].round == 2 and equal(again.model, result.model)


def test_noise_that_is_left_to_a_budget_spends_it_in_the_last_round() -> None:
    trial = trained(dp_epsilon=2.0, rounds=5)
    most = max(int(own.max()) for own in trial.strategy.spending._counts.values())
    assert trial.strategy.spending.noise == noise_for(2.0, most, 1e-5)
    assert len(trial.strategy.records) == 6 and epsilons(trial)[-1] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"micro_batch": "3"},
        {"direction": "rank_one", "stack": 3},
        {"pipeline": True},
        {"minibatches": 2},
        {"scalars": "channel", "task": {"cut": "first"}},
    ],
)
def test_other_forms_of_a_step_bound_the_same_samples(
    more: dict[str, Any], draws: list[np.ndarray]
) -> None:
    own = {**more}
    cut = own.pop("task", {})
    plain = {k: v for k, v in own.items() if k not in ("micro_batch", "stack")}
    problem = tiny.task(clients=CLIENTS, each=EACH, **cut)
    a, b = (
        train(problem, **{**OPTIONS, "dp_noise": SIGMA, "rounds": 2, **form})
        for form in (own, plain)
    )
    assert a.total("rejected") == a.total("failures") == 0
    assert len(draws) == 2 * 2 * CLIENTS * more.get("minibatches", 1)
    # Both drew anew; what is left without the noise is the same.
    half = len(draws) // 2
    free = [
        np.concatenate([row.reshape(-1) for row in sent(trial).reshape(half, -1)])
        - SIGMA * STEP * np.concatenate(drawn)
        for trial, drawn in ((a, draws[:half]), (b, draws[half:]))
    ]
    assert np.allclose(free[0], free[1], atol=1e-3 * STEP)
    assert 0 < np.abs(free[0]).max() <= BATCH * STEP * (1 + 1e-5)


def test_scalars_are_noised_anew_in_a_resumed_run_and_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done to round 3 of 4, and again from the checkpoint of round 2."""
    options: dict[str, Any] = {**OPTIONS, "dp_noise": SIGMA, "rounds": 4, "checkpoint_every": 2}
    problem, out = tiny.task(clients=CLIENTS, each=BATCH), tmp_path / "run"

    def broken(record: Any) -> None:
        if record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(problem, out=out, observer=broken, **options)
    said: list[str] = []
    monkeypatch.setattr(
        "sfl_flower.run.resume._log.warning", lambda text, *args: said.append(text % args)
    )
    result = tiny.run(problem, out=out, resume="previous", **options)
    assert [r.round for r in result.history] == [0, 1, 2, 3, 4]
    assert "does not go on to the same bits" in said[0] and "asked for round 3;" in said[1]
    assert result.history[-1].extra["epsilon"] == epsilon_of(SIGMA, 5, 1e-5)


def killed(
    out: Path, behind: int, resume: bool | str = False, problem: SplitTask | None = None, **own: Any
) -> None:
    """Run until the record of a round is written, and leave what SIGKILL would leave."""
    saved: dict[Path, bytes] = {}

    def broken(record: Any) -> None:
        if record.round == behind:
            saved.update({path: path.read_bytes() for path in out.glob("checkpoint*")})
            raise tiny.Stop

    problem = problem or tiny.task(clients=CLIENTS, each=BATCH)
    with pytest.raises(tiny.Stop):
        tiny.run(problem, out=out, resume=resume, observer=broken, **{**OPTIONS, **own})
    for left in out.glob("checkpoint*"):
        left.unlink()
    for path, content in saved.items():
        path.write_bytes(content)


def spent(out: Path, resume: bool | str = True, **own: Any) -> int:
    """Go on to the end; return in how many mini-batches a sample was, of those that are in all."""
    problem = tiny.task(clients=CLIENTS, each=BATCH)
    result = tiny.run(problem, out=out, resume=resume, **{**OPTIONS, **own})
    epsilon = result.history[-1].extra["epsilon"]
    return next(n for n in range(1, 50) if epsilon_of(SIGMA, n, 1e-5) == epsilon)


@pytest.mark.parametrize("lost", ["", "history.jsonl", "config.json"])
def test_rounds_behind_a_checkpoint_count_each_time_they_were_asked(
    tmp_path: Path, lost: str
) -> None:
    """1, 2, 3; 3, 4, 5 behind the checkpoint of 2; 5 behind that of 4; and 3 to 6 behind 2."""
    own: dict[str, Any] = {"dp_noise": SIGMA, "rounds": 6, "checkpoint_every": 2}
    out = tmp_path / "run"
    killed(out, 3, **own)
    for behind in (5, 5):
        if lost:  # as an error advises, of what cannot be read
            (out / lost).unlink()
        killed(out, behind, resume=True, **own)
    (out / (lost or "none")).unlink(missing_ok=True)
    assert spent(out, "previous", **own) == 3 + 3 + 1 + 4


def test_rounds_before_the_first_checkpoint_count_and_the_noise_stays(tmp_path: Path) -> None:
    """Noise that spends a budget in three rounds does so though more rounds are asked for later."""
    own: dict[str, Any] = {"dp_epsilon": 6.0, "eval_every": 9}
    out = tmp_path / "run"
    killed(out, 2, rounds=3, **own)
    result = tiny.run(
        tiny.task(clients=CLIENTS, each=BATCH), out=out, resume=True, **{**OPTIONS, **own}, rounds=9
    )
    assert [record.round for record in result.history] == [0, 1]
    assert result.history[-1].extra["epsilon"] == pytest.approx(6.0, rel=1e-6)
    assert f"noise of {noise_for(6.0, 3, 1e-5):.4g}" in result.summary.terms["privacy"]


def test_a_pipelined_run_counts_the_probes_that_it_asks_for_twice(tmp_path: Path) -> None:
    """Those of round 2, asked for with round 3, are asked for once more with it: 3, 1, 2."""
    own: dict[str, Any] = {"dp_noise": SIGMA, "rounds": 4, "checkpoint_every": 2, "pipeline": True}
    killed(tmp_path / "run", 3, **own)
    assert spent(tmp_path / "run", **own) == 3 + 1 + 2
    assert [each.round for each in AskedFile(tmp_path / "run" / "asked.jsonl").load()] == [
        *(1, 2, 3),
        *(2, 3, 4),
    ]


def test_a_client_that_comes_back_later_has_spent_what_it_was_asked_for() -> None:
    problem = tiny.task(clients=CLIENTS, each=BATCH)
    spending = begin(problem, "decomfl", **OPTIONS, dp_noise=SIGMA).strategy.spending
    spending.go_on([Asked(round, SIGMA, {0: BATCH, 1: BATCH}) for round in (1, 2)])
    spending.ask(Asked(1, SIGMA, {0: BATCH}))
    spending.ask(Asked(2, SIGMA, {1: BATCH}))
    assert {at: own.tolist() for at, own in spending._counts.items()} == {0: [3] * 4, 1: [3] * 4}


@pytest.mark.parametrize("damage", ["gone", "short", "behind", "other"])
def test_a_run_does_not_go_on_without_what_it_spent(tmp_path: Path, damage: str) -> None:
    own: dict[str, Any] = {"dp_noise": SIGMA, "rounds": 4, "checkpoint_every": 2}
    out = tmp_path / "run"
    killed(out, 3, **own)
    path = out / "asked.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        left = {"short": lines[:1], "other": [lines[0].replace(":4", ":1"), *lines[1:]]}
        path.write_text("".join(left.get(damage, lines[:2])))
    before = {each: each.read_bytes() for each in out.iterdir() if each.is_file()}
    with pytest.raises(DataError, match=r"asked.jsonl: .* epsilon would be too low. Put it back"):
        spent(out, **own)
    assert {each: each.read_bytes() for each in before} == before


def test_a_torn_line_is_of_a_round_that_nobody_was_asked_for(tmp_path: Path) -> None:
    file, told = AskedFile(tmp_path / "asked.jsonl"), Asked(1, SIGMA, {0: 4, 3: 7})
    file.append(told)
    with file.path.open("ab") as torn:
        torn.write(b'{"round": 2')
    again = AskedFile(file.path)
    assert again.load() == [told]
    again.append(replaced := Asked(2, SIGMA, {3: 7}))
    assert AskedFile(file.path).load() == [told, replaced]


def test_a_finished_run_that_goes_back_counts_what_it_does_again(tmp_path: Path) -> None:
    """From the checkpoint of round 2 of 4: rounds 3 and 4 twice, and nothing behind them."""
    options: dict[str, Any] = {**OPTIONS, "dp_noise": SIGMA, "rounds": 4, "checkpoint_every": 2}
    problem, out = tiny.task(clients=CLIENTS, each=BATCH), tmp_path / "run"
    tiny.run(problem, out=out, **options)
    result = tiny.run(problem, out=out, resume="previous", **options)
    assert result.history[-1].extra["epsilon"] == epsilon_of(SIGMA, 6, 1e-5)


def test_lines_that_cannot_be_read_are_counted_and_lose_no_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {**OPTIONS, "dp_noise": SIGMA, "rounds": 4, "checkpoint_every": 2}
    problem, out = tiny.task(clients=CLIENTS, each=BATCH), tmp_path / "run"

    def broken(record: Any) -> None:
        if record.round == 3:
            raise tiny.Stop

    with pytest.raises(tiny.Stop):
        tiny.run(problem, out=out, observer=broken, **options)
    with (out / "history.jsonl").open("ab") as file:
        file.write(b"junk\n")
    result = tiny.run(problem, out=out, resume=True, **options)
    assert [record.round for record in result.history] == [0, 1, 2, 3, 4]


class Mixed(nn.Module):
    """Gives each sample the mean of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(dim=0, keepdim=True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dp_clip": 0.0, "dp_noise": 1.0}, "dp_noise=1 with dp_clip=0: .* set dp_clip above 0"),
    ({"dp_clip": 0.0, "dp_epsilon": 1.0}, "dp_epsilon=1 with dp_clip=0"),
    ({"guide": "noise"}, "dp_clip=0.05 with guide=noise: that is made of .*; use none"),
    (
        {"dp_noise": 1.0, "subspace_from": "clients"},
        "with subspace_from=clients: that asks clients for a sketch .* use public or noise",
    ),
    (
        {"directions": "shared", "aggregator": "median"},
        "aggregator=median: that is no",
    ),
    ({"scale": "spread"}, "scale=spread: that divides .*; use none, or dp_noise_by=client"),
    ({"outlier_factor": 4.0}, "outlier_factor=4: that chooses replies .*; use 0"),
    (
        {"method": "decomfl", "local_steps": 2},
        "local_steps=2: that lets clients step along scalars without noise; use 1",
    ),
    ({"method": "heron"}, "clients step along their scalars themselves, .* dp_noise_by=client"),
    ({"scalar_limit": 0.1}, r"scalar_limit=0.1: that refuses .*; use 0\.1732, which none"),
    (
        {"dp_noise": 0.5, "dp_epsilon": 1.0},
        r"sample epsilon = 9\.997 at delta = 1e-05; set dp_noise to at least 3\.731, or",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_what_is_not_private_is_refused_before_training(
    options: dict[str, Any], sentence: str
) -> None:
    own = {**OPTIONS, "dp_noise_by": "server", "dp_noise": 1.0, "outlier_factor": 0.0, **options}
    if options.get("dp_clip") == 0.0 or "guide" in options or "subspace_from" in options:
        own |= {"dp_noise_by": "client", "dp_noise": options.get("dp_noise", 0.0)}
    method = own.pop("method", "ho_sfl")
    with pytest.raises(ConfigError, match=sentence):
        begin(tiny.task(clients=CLIENTS), method, **own)


def test_a_first_round_that_is_too_much_is_refused() -> None:
    """Four mini-batches of a client that holds one: each sample is in all of them."""
    options: dict[str, Any] = {"minibatches": 4, "dp_noise": 2.0, "dp_epsilon": 3.0}
    with pytest.raises(ConfigError, match=r"Round 1 would bring .*; raise dp_epsilon or dp_noise"):
        trained(each=BATCH, **options)


@pytest.mark.parametrize("method", METHODS)
def test_samples_that_are_mixed_are_refused(method: str) -> None:
    def mixed() -> nn.Module:
        return nn.Sequential(Mixed(), nn.Linear(6, 5), nn.Linear(5, 3))

    with pytest.raises(ConfigError, match=r"depends on other samples .*; set client_mode=eval"):
        begin(tiny.task(clients=CLIENTS, build=mixed, cut="1"), method, **OPTIONS)
    begin(tiny.task(clients=CLIENTS, build=mixed, cut="1"), method, **{**OPTIONS, "dp_clip": 0.0})


def test_what_to_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = PrivacySettings(dp_clip=1.0).warnings()
    assert "no differential privacy" in alone
    assert not PrivacySettings(dp_clip=1.0, dp_noise=1.0).warnings()
    by_server = PrivacySettings(dp_clip=1.0, dp_noise=1.0, dp_noise_by="server")
    monkeypatch.delenv("SFL_SECRET", raising=False)
    assert "set SFL_SECRET on the server" in by_server.warnings()[0]
    monkeypatch.setenv("SFL_SECRET", "0123")
    assert not by_server.warnings()
