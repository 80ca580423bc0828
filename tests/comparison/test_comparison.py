"""Comparisons: equal samples, nothing trained twice, and no row that does not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfl_flower import Samples, SplitTask, compare, compare_runs
from sfl_flower.comparison.budget import Budget, fit
from sfl_flower.comparison.entries import method_entries, read
from sfl_flower.comparison.finished import FinishedRun
from sfl_flower.comparison.jobs import Job
from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.methods import METHODS
from sfl_flower.report import RunDirectory
from sfl_flower.run.run import Plan
from sfl_flower.run.simulation import placed
from sfl_flower.server.settings import LocalStepsSettings
from sfl_flower.strategies.frozen import FrozenSettings
from sfl_flower.task import accuracy
from tests import tiny
from tests.report.runs import finished

SHARED: dict[str, Any] = {
    "clients": 4, "batch_size": 4, "partition": "iid", "join_timeout": 0.2, "validation": 0.0,
}  # fmt: skip
"""Of 48 training samples each client holds 12, so one mini-batch a client is 16 samples a round."""
OWN_METHOD = Path(__file__).resolve().parents[2] / "examples" / "own_method"
OWN = "own_method.method:METHOD"
ROUND, BATCH = (f"frozen (server_steps={pace})" for pace in ("round", "batch"))


def task(**options: Any) -> SplitTask:
    return SplitTask(
        name="tiny",
        model=tiny.model,
        cut="act",
        train=lambda: tiny.samples(48),
        test=lambda: tiny.samples(40, 1),
        classes=tiny.CLASSES,
        **options,
    )


def test_rounds_come_nearest_to_the_samples() -> None:
    config = RunConfig(clients=2, batch_size=4)
    one, three = FrozenSettings(), LocalStepsSettings(local_steps=3)
    assert fit(64, [10, 10], config, one) == Budget(8, 64)
    assert fit(67, [10, 10], config, one) == Budget(8, 64)
    assert fit(69, [10, 10], config, one) == Budget(9, 72)
    assert fit(64, [10, 10], config, three) == Budget(3, 60)
    assert fit(20, [10, 10], config, three) == Budget(1, 20)
    with pytest.raises(ConfigError, match=r"one round of ho_sfl is 20 samples.*at least 20"):
        fit(19, [10, 10], config, three)


def test_the_count_is_that_of_a_run_with_sampled_clients_of_different_size() -> None:
    shares = [tiny.samples(n, n) for n in (3, 9, 14, 22)]
    config: dict[str, Any] = {
        "clients": 4,
        "sampled": 2,
        "batch_size": 4,
        "local_steps": 3,
        "seed": 5,
    }
    trial = tiny.train(tiny.task(shares), "splitfed_v2", rounds=4, **config)
    wanted = trial.strategy.ledger.samples
    settings = LocalStepsSettings(local_steps=3)
    assert fit(wanted, [3, 9, 14, 22], trial.strategy.config, settings) == Budget(4, wanted)


def test_control_and_ceiling_are_added_and_all_train_on_the_same(tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {
        "ho_sfl": {"server-steps": "round"},
        "splitfed_v2": {"local-steps": 3},
    }
    found = compare(task(), methods, samples=96, seeds=2, out=tmp_path, **SHARED)
    assert [row.label for row in found.rows] == [BATCH, ROUND, "ho_sfl", "splitfed_v2"]
    runs = [run for row in found.rows for run in row.runs]
    assert [run.summary.samples for run in runs] == [96] * 8
    assert [run.config["rounds"] for run in runs] == [6, 6, 6, 6, 6, 6, 2, 2]
    by_seed = [{r.facts["initial_weights"] for r in runs if r.seed == seed} for seed in (0, 1)]
    assert [len(weights) for weights in by_seed] == [1, 1] and by_seed[0] != by_seed[1]
    assert {run.facts["training_samples"] for run in runs} == {48}
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"table.md", "results.json", "accuracy-bytes.png", "accuracy-seconds.png"}
    assert (tmp_path / "frozen-round" / "lr0.05-seed1" / "model.safetensors").exists()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    scores = [run.score("accuracy") for run in found["ho_sfl"].runs]
    assert rows[2]["mean"] == pytest.approx(sum(scores) / 2)
    assert rows[2]["runs"][1]["directory"] == "ho_sfl/lr0.05-seed1"


def test_every_method_counts_at_its_own_best_rate(tmp_path: Path) -> None:
    found = compare(
        task(), [], samples=160, seeds=1, server_lrs=[0.01, 0.5], out=tmp_path, **SHARED
    )
    for row in found.rows:
        assert row.server_lr is not None and set(row.rates) == {0.01, 0.5}
        assert row.mean == max(row.rates.values()) == row.rates[row.server_lr]
        for rate, value in row.rates.items():
            folder = "frozen-batch" if row.method == "frozen" else row.method
            run = FinishedRun.load(tmp_path / folder / f"lr{rate:g}-seed0")
            assert run.score("accuracy") == value and run.server_lr == rate


def test_rates_are_tried_with_the_first_seeds_and_the_others_run_at_the_best(
    tmp_path: Path,
) -> None:
    rates = [0.01, 0.5]
    found = compare(
        task(), ["fedavg"], samples=144, seeds=3, server_lrs=rates, tune_seeds=1, out=tmp_path,
        **SHARED,
    )  # fmt: skip
    for label, name in ((BATCH, "frozen-batch"), ("splitfed_v2", "splitfed_v2")):
        tried = {
            rate: FinishedRun.load(tmp_path / name / f"lr{rate:g}-seed0").score("accuracy")
            for rate in rates
        }
        row = found[label]
        assert row.server_lr == max(rates, key=lambda rate: tried[rate])
        assert set(row.rates) == {row.server_lr} and [run.seed for run in row.runs] == [0, 1, 2]
        assert sum(1 for _ in (tmp_path / name).iterdir()) == 4
    names = sorted(path.name for path in (tmp_path / "fedavg").iterdir())
    assert names == ["seed0", "seed1", "seed2"] and found["fedavg"].server_lr is None
    assert "| fedavg |" in (tmp_path / "table.md").read_text()
    with pytest.raises(ConfigError, match="tune_seeds is 4"):
        compare(task(), [], samples=160, seeds=3, tune_seeds=4, out=tmp_path / "b", **SHARED)


def test_first_order_at_equal_memory_is_a_row_of_its_own(tmp_path: Path) -> None:
    options = {**SHARED, "batch_size": 12}
    found = compare(
        task(), ["ho_sfl"], samples=96, seeds=1, out=tmp_path, memory_matched=True, **options
    )
    (label,) = (row.label for row in found.rows if "micro_batch" in row.label)
    size = found[label].summary.terms["micro_batch"]
    assert label == f"splitfed_v2 (micro_batch={size})" and 1 <= size < 12
    peaks = {row.label: row.summary.client_peak_bytes or 0 for row in found.rows}
    assert peaks[label] <= peaks["ho_sfl"] < peaks["splitfed_v2"]
    assert found[label].mean == pytest.approx(found["splitfed_v2"].mean, abs=0.05)
    with pytest.raises(ConfigError, match="no method of the comparison has forward-only clients"):
        compare(task(), [], samples=96, seeds=1, out=tmp_path, memory_matched=True, **options)


def test_a_rate_that_fails_does_not_count(tmp_path: Path) -> None:
    rates = [0.05, 1e38]
    found = compare(task(), [], samples=320, seeds=1, server_lrs=rates, out=tmp_path, **SHARED)
    assert [row.server_lr for row in found.rows] == [0.05, 0.05]
    assert any(f"{BATCH} lr 1e+38 seed 0 failed" in note for note in found.notes)
    only = compare(
        task(), {"ho_sfl": {"server_lr": 1e38}}, samples=320, seeds=1, out=tmp_path / "b", **SHARED
    )
    assert [row.label for row in only.rows if "frozen" not in row.label] == ["splitfed_v2"]
    assert "at no server rate" in only.refused["ho_sfl"]


def test_what_is_complete_is_not_trained_again_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(task(), ["ho_sfl"], samples=96, seeds=1, out=tmp_path / "a", **SHARED)
    seen: list[tuple[str, int]] = []

    def stop(job: Any, record: Any) -> None:
        seen.append((job.row, record.round))
        if seen[-1] == ("ho_sfl", 3):
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"samples": 96, "seeds": 1, "out": tmp_path / "b", **SHARED}
    with pytest.raises(KeyboardInterrupt):
        compare(task(), ["ho_sfl"], on_round=stop, **arguments)
    assert not (tmp_path / "b" / "ho_sfl" / "lr0.05-seed0" / "summary.json").exists()
    later: list[tuple[str, int]] = []
    found = compare(
        task(),
        ["ho_sfl"],
        on_round=lambda job, record: later.append((job.row, record.round)),
        **arguments,
    )
    assert not any("frozen" in row for row, _ in later)
    assert [n for row, n in later if row == "ho_sfl"] in ([3, 4, 5, 6], [4, 5, 6])
    for one, two in zip(whole.rows, found.rows, strict=True):
        # Not all bytes: clients that were started again are asked who they are.
        assert one.mean == two.mean and one.summary.samples == two.summary.samples == 96
        assert one.summary.ledger["scalars"] == two.summary.ledger["scalars"]

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sfl_flower.comparison.jobs.run_plan", refuse)
    compare(task(), ["ho_sfl"], **arguments)


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    compare(task(), [], samples=64, seeds=1, out=tmp_path, **SHARED)
    with pytest.raises(ConfigError, match=r"frozen-batch.lr0\.05-seed0.*rounds: 4 -> 6"):
        compare(task(), [], samples=96, seeds=1, out=tmp_path, **SHARED)
    with pytest.raises(ConfigError, match=r"server_momentum: 0\.9 -> 0\.5"):
        compare(task(), [], samples=64, seeds=1, out=tmp_path, **SHARED, server_momentum=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["ho_slf"]}, "'ho_slf'.*mean 'ho_sfl'"),
        ({"methods": ["ho_sfl", "ho_sfl"]}, "name each once"),
        ({"methods": {"ho_sfl": {"probs": 2}}}, "'probs'.*mean 'probes'"),
        ({"methods": {"ho_sfl": {"probes": 0}}}, r"probes is 0.*\[1, 4096\]"),
        ({"probes": 2}, "of method '.*' 'probes'.*METHOD:KEY=VALUE"),
        ({"methods": {"ho_sfl": {"batch_size": 8}}}, "batch_size is 8, not 4"),
        ({"methods": {"ho_sfl": {"sampled": 2}}}, "sampled is 2, not 4"),
        ({"methods": {"frozen": {"partition": "linear"}}}, "partition is 'iid', not 'linear'"),
        ({"samples": 8}, "samples is 8.*one round of frozen is 16"),
        (
            {"methods": {"frozen": {"server-steps": "round"}}},
            "server_steps of frozen follows from the methods",
        ),
        ({"samples": 0}, "samples is 0.*at least 1"),
        ({"methods": {"splitfed_v2": {"local_steps": 3}}}, "splitfed_v2 trains 48.*frozen, 64.*2%"),
        (
            {"methods": {"cse_fsl": {"local_steps": 0, "upload_every": 4}}},
            r"upload_every is 4.*takes 3 local steps.*\[1, 3\]",
        ),
        ({"seeds": 0}, "seeds is 0.*at least 1"),
        ({"seeds": [3, 3]}, "list of different seeds"),
        ({"rounds": 3}, "rounds of a comparison follows from samples"),
        ({"seed": 3}, "seed of a comparison follows from seeds"),
        ({"server_lrs": [0.1], "server_lr": 0.2}, "server_lr is given twice"),
        ({"server_lrs": [-0.1]}, r"server_lr is -0\.1"),
        ({"partition": "local"}, "partition is 'local'"),
        ({"workers": 2}, "workers is 2.*must be 1"),
        ({"backend": "rays"}, "backend is 'rays'"),
        ({"metric": "f1"}, "metric is 'f1'; task 'tiny' has accuracy"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    arguments: dict[str, Any] = {"methods": ["ho_sfl"], "samples": 64, **SHARED, **changes}
    with pytest.raises(ConfigError, match=words):
        compare(task(), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_another_metric_of_the_task(tmp_path: Path) -> None:
    mine = task(metrics={"right": accuracy})
    found = compare(mine, [], samples=64, seeds=1, metric="right", out=tmp_path, **SHARED)
    assert found.metric == "right" and (tmp_path / "right-samples.png").exists()


def test_runs_side_by_side_train_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 64, "seeds": 1, "clients": 2, "partition": "iid"}
    one = compare("digits", [], out=tmp_path / "1", **options)
    seen: list[str] = []
    two = compare(
        "digits",
        [],
        out=tmp_path / "2",
        workers=2,
        on_round=lambda job, record: seen.append(f"{job.row} {record.round}"),
        **options,
    )
    assert [row.mean for row in one.rows] == [row.mean for row in two.rows]
    assert [row.summary.ledger for row in one.rows] == [row.summary.ledger for row in two.rows]
    assert sorted(seen) == [f"{BATCH} 0", f"{BATCH} 1", "splitfed_v2 0", "splitfed_v2 1"]


def test_a1_the_control_has_the_form_of_each_method_beside_it(tmp_path: Path) -> None:
    """HO-SFL steps once a round with two mini-batches, HERON and SplitFed V2 after every batch."""
    methods = {"ho_sfl": {"server_steps": "round", "minibatches": 2}, "heron": {}}
    found = compare(task(), methods, samples=96, seeds=1, out=tmp_path, **SHARED)
    labels = ["frozen (server_steps=batch, minibatches=1)", f"{ROUND[:-1]}, minibatches=2)"]
    assert [row.label for row in found.rows] == [*labels, "ho_sfl", "heron", "splitfed_v2"]
    steps = {row.label: row.term("server_steps") for row in found.rows}
    assert steps == {labels[0]: 24, labels[1]: 3, "ho_sfl": 3, "heron": 24, "splitfed_v2": 24}
    assert "| ho_sfl † | 0.05 | 1 | 3 | round |" in (tmp_path / "table.md").read_text("utf-8")


def test_a1_every_method_says_its_pace_and_counts_its_servers_steps() -> None:
    """Two rounds of four clients with one mini-batch each; MU-SplitFed takes two steps on each."""
    paces, counted = {}, {}
    for name, method in METHODS.items():
        options: dict[str, Any] = {}
        if "local_steps" in vars(method.settings()):
            options["local_steps"] = 1
        run = tiny.run(tiny.task(), name, rounds=2, server_lr=1e-4, **options)
        paces[name] = run.summary.terms["server_pace"]
        counted[name] = run.summary.terms["server_steps"]
    assert set(paces.values()) == {"round", "batch"}
    assert (paces["splitfed_v2"], paces["decomfl"], paces["frozen"]) == ("batch", "round", "round")
    each = {name: 8 if pace == "batch" else 2 for name, pace in paces.items()}
    assert counted == {**each, "mu_splitfed": 16, "fedavg": 0, "decomfl": 0}


def test_a1_the_control_takes_the_mode_of_a_client_half_that_has_one(tmp_path: Path) -> None:
    plain = task()
    norm = SplitTask(
        "norm", tiny.with_batch_norm, "act", plain.train, plain.test, classes=tiny.CLASSES
    )
    found = compare(
        norm, {"ho_sfl": {"client_mode": "eval"}}, samples=32, seeds=1, out=tmp_path, **SHARED
    )
    modes = [row.term("client_mode") for row in found.rows if row.method == "frozen"]
    assert set(modes) == {"train", "eval"}
    assert any("client mode: eval, not train" in row.apart for row in found.rows)


def apart(one: FinishedRun, other: FinishedRun) -> dict[str, Any]:
    """Return the options in which a run differs from another, with its values."""
    theirs = one.config
    return {key: value for key, value in other.config.items() if theirs[key] != value}


@pytest.mark.parametrize("method", ["ho_sfl", "heron", "zo_sfl", "mu_splitfed", "decomfl"])
def test_a_forward_only_row_has_its_own_walk_beside_it(tmp_path: Path, method: str) -> None:
    options = {"local_steps": 1} if method == "zo_sfl" else {}
    shared = {**SHARED, "server_lr": 0.01}
    found = compare(task(), {method: options}, samples=32, seeds=1, out=tmp_path, **shared)
    row = found[method]
    (path,) = (tmp_path / f"{method}-walk").iterdir()
    walk = FinishedRun.load(path)
    assert apart(row.runs[0], walk) == {"walk": True}
    assert row.walk == walk.score("accuracy") and row.at_rate_0 is None
    control = max(each.mean for each in found.rows if each.method == "frozen")
    assert row.margin == row.mean - max(row.walk, control)
    assert found["splitfed_v2"].margin is None and found["splitfed_v2"].walk is None
    labels = [each.label for each in found.rows]
    assert f"{method} walk" not in labels and not (tmp_path / f"{method}-rate0").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["walk"] for each in results["rows"] if each["label"] == method] == [row.walk]


def test_walks_are_tried_at_multiples_of_their_rows_client_rate(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"samples": 32, "seeds": 1, "out": tmp_path, **SHARED}
    methods = {"ho_sfl": {"client_lr": 0.4}}
    found = compare(task(), methods, walk_rates=[0.5, 1, 2], **arguments)
    runs = {
        factor: FinishedRun.load(next((tmp_path / f"ho_sfl-walk{factor}").iterdir()))
        for factor in ("", "-x0.5", "-x2")
    }
    rates = {factor: run.config["client_lr"] for factor, run in runs.items()}
    assert rates == {"": 0.4, "-x0.5": 0.2, "-x2": 0.8}
    assert found["ho_sfl"].walk == max(run.score("accuracy") for run in runs.values())
    assert any("the best of 0.2, 0.4, 0.8." in note for note in found.notes)
    again = compare_runs([tmp_path])
    assert [(row.label, row.walk, row.margin) for row in again.rows] == [
        (row.label, row.walk, row.margin) for row in found.rows
    ]
    for wrong in ([], [0.0], [1, 1], [-1.0]):
        with pytest.raises(ConfigError, match=r"walk_rates is .*each above 0 and given once"):
            compare(task(), methods, walk_rates=wrong, **arguments)


def test_d1_a_method_without_walks_has_its_own_run_at_a_client_rate_of_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(OWN_METHOD))
    found = compare(task(), [OWN], samples=32, seeds=1, out=tmp_path, **SHARED)
    row = found["sign_sfl"]
    (path,) = (tmp_path / "sign_sfl-rate0").iterdir()
    still = FinishedRun.load(path)
    assert apart(row.runs[0], still) == {"client_lr": 0}
    assert row.at_rate_0 == still.score("accuracy") and row.walk is None
    assert not (tmp_path / "sign_sfl-walk").exists()


def test_what_learns_nothing_itself_is_held_against_nothing(tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {"ho_sfl": {"walk": True}, "heron": {"client_lr": 0.0}}
    found = compare(task(), methods, samples=32, seeds=1, out=tmp_path, **SHARED)
    assert [found[name].margin for name in methods] == [None, None]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "frozen-batch", "ho_sfl", "heron", "splitfed_v2",
    }  # fmt: skip


def test_d1_runs_read_back_are_held_against_their_own_walks_and_at_rate_0(tmp_path: Path) -> None:
    terms = {"client": "zeroth order"}
    finished(tmp_path / "a", "heron", 0.5, client_lr=0.1, terms=terms)
    finished(tmp_path / "b", "heron", 0.6, client_lr=0.2, walk=False, terms=terms)
    finished(tmp_path / "c", "heron", 0.4, client_lr=0.0, terms=terms)
    finished(tmp_path / "d", "ho_sfl", 0.4, client_lr=0.0, terms=terms)
    finished(tmp_path / "e", "splitfed_v2", 0.7, client_lr=0.0)
    finished(tmp_path / "f", "heron", 0.45, client_lr=0.3, walk=True, terms=terms)
    finished(tmp_path / "g", "heron", 0.3, client_lr=0.1, walk=True, terms=terms)
    finished(tmp_path / "h", "decomfl", 0.2, client_lr=0.1, walk=True, terms=terms)
    found = compare_runs([tmp_path])
    margins = {row.label: row.margin for row in found.rows}
    assert margins == {
        "heron (client_lr=0.1)": pytest.approx(0.05),
        "heron (client_lr=0.2, walk=False)": pytest.approx(0.15),
        "ho_sfl": None,  # nothing beside it but itself
        "splitfed_v2": None,
        "decomfl": None,
    }
    assert [row.walk for row in found.rows] == [0.45, 0.45, None, None, None]
    assert [row.at_rate_0 for row in found.rows] == [0.4, 0.4, None, None, None]


def test_d3_a_comparison_holds_back_a_tenth_and_chooses_rates_on_it(tmp_path: Path) -> None:
    options = {key: value for key, value in SHARED.items() if key != "validation"}
    found = compare(
        task(), [], samples=96, seeds=1, server_lrs=[0.01, 0.5], out=tmp_path, **options
    )
    for row in found.rows:
        folder = tmp_path / ("frozen-batch" if row.method == "frozen" else row.method)
        tried = {run.server_lr: run for run in map(FinishedRun.load, folder.iterdir())}
        held = {rate: run.score("validation_accuracy") for rate, run in tried.items()}
        assert row.rates == held and held[row.server_lr or 0] == max(held.values())
        assert row.mean == tried[row.server_lr or 0].score("accuracy")
        assert row.runs[0].config["validation"] == 0.1
    assert not any("test set" in note for note in found.notes)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"][0]["rates_chosen_by"] == "validation_accuracy"


def test_runs_that_exist_are_put_side_by_side(tmp_path: Path) -> None:
    for seed, (low, mid, high) in enumerate([(0.4, 0.5, 0.8), (0.5, 0.7, 0.8)]):
        finished(tmp_path / f"f{seed}", "frozen", low, seed=seed)
        finished(tmp_path / f"h{seed}", "ho_sfl", mid, seed=seed, samples=1010)
        finished(tmp_path / "s" / str(seed), "splitfed_v2", high, seed=seed)
    names = ["f0", "f1", "h0", "h1", "s"]
    found = compare_runs([tmp_path / name for name in names], tmp_path / "out")
    assert found["ho_sfl"].mean == pytest.approx(0.6)
    assert found["ho_sfl"].gap_closed == pytest.approx((0.6 - 0.45) / (0.8 - 0.45))
    assert "| ho_sfl | 0.6000 | 0.1414 | 0.43 |" in (tmp_path / "out" / "table.md").read_text(
        encoding="utf-8"
    )


def test_two_settings_of_a_method_are_two_rows(tmp_path: Path) -> None:
    finished(tmp_path / "a", "ho_sfl", 0.5, probes=4)
    finished(tmp_path / "b", "ho_sfl", 0.6, probes=8)
    found = compare_runs([tmp_path])
    assert [row.label for row in found.rows] == ["ho_sfl (probes=4)", "ho_sfl (probes=8)"]
    assert "There is no frozen among the rows, so no gap is known." in found.notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "synthetic"}, "task is 'synthetic', not 'fashion_mnist'"),
        ({"task.train_size": 600}, "task.train_size is 600, not 60000"),
        ({"clients": 5}, "clients is 5, not 10; sampled is 5, not 10"),
        ({"batch_size": 64}, "batch_size is 64, not 32"),
        ({"partition": "iid"}, "partition is 'iid', not 'dirichlet'"),
        ({"alpha": 0.1}, r"alpha is 0\.1, not 0\.5"),
        ({"validation": 0.1}, r"validation is 0\.1, not 0\.0"),
        ({"facts": {"cut": "b"}}, "cut is 'b', not 'a'"),
        ({"facts": {"training_samples": 9}}, "training_samples is 9, not 100"),
        ({"facts": {"initial_weights": "ff"}}, "initial_weights is 'ff', not '00'"),
        ({"samples": 1021}, r"samples is 1,021 with seed 0, not 1,000 as for frozen \(\+2\.1%"),
        ({"seed": 1}, "frozen has no run with seed 1"),
    ],
)
def test_runs_that_are_not_comparable_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    finished(tmp_path / "a", "frozen", 0.5)
    finished(tmp_path / "b", "ho_sfl", 0.5, **changes)
    with pytest.raises(ConfigError, match=words):
        compare_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_percent_and_options_without_effect_do_not_matter(tmp_path: Path) -> None:
    finished(tmp_path / "a", "frozen", 0.5)
    options: dict[str, Any] = {"classes_per_client": 3}
    finished(tmp_path / "b", "ho_sfl", 0.5, samples=1020, server_lr=0.1, **options)
    assert [row.label for row in compare_runs([tmp_path]).rows] == ["frozen", "ho_sfl"]


def test_where_runs_compute_tells_no_rows_apart(tmp_path: Path) -> None:
    places: list[dict[str, Any]] = [{}, {"client_device": "auto", "client_gpus": 0.5}]
    for seed, more in enumerate(places):
        finished(tmp_path / f"frozen-{seed}", "frozen", 0.5, seed=seed)
        finished(tmp_path / f"own-{seed}", "ho_sfl", 0.5, seed=seed, server_lr=0.1, **more)
    assert [row.label for row in compare_runs([tmp_path]).rows] == ["frozen", "ho_sfl"]


def test_a_run_on_ray_that_was_told_auto_is_found_done_again(tmp_path: Path) -> None:
    """Its directory says where clients computed: without a share of a GPU on the CPU."""
    options: dict[str, Any] = {"method": "ho_sfl", "task": "digits", "client_device": "auto"}
    job = Job("ho_sfl", "ho_sfl", options, tmp_path / "run", 100)
    config = placed(Plan.read(options), "ray").resolved()
    assert config["client_device"] == "cpu"
    RunDirectory.create(tmp_path / "run", config).close()
    assert not job.done("ray")  # begun, not complete, and of this configuration
    with pytest.raises(ConfigError, match="client_device: 'cpu' -> 'auto'"):
        job.done("inline")


def test_encodings_that_every_method_is_given_are_for_those_with_a_cut() -> None:
    asked: list[str] = ["ho_sfl", "fedavg"]
    entries, control = method_entries(asked, {"smashed": "float16"}, "digits", tuned=False)
    assert control["smashed"] == "float16"
    found = {entry.label: entry.options.get("smashed") for entry in entries}
    assert found == {"ho_sfl": "float16", "fedavg": None, "splitfed_v2": "float16"}
    own = {"fedavg": {"smashed": "float16"}}
    entries, _ = method_entries(own, {}, "digits", tuned=False)
    with pytest.raises(ConfigError, match="there is no cut"):
        read(entries[0].options, 0)


def test_an_option_that_is_written_out_at_its_default_changes_nothing() -> None:
    short, long = (
        Plan.read({"task": "fashion_mnist", "clients": 3, **more})
        for more in ({}, {"task.train_size": "60000", "task.data_dir": None, "probes": 16})
    )
    assert short.resolved()["task.train_size"] == 60_000
    assert short.resolved() == long.resolved()


def test_a_run_that_is_not_complete_or_named_twice_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a", "frozen", 0.5)
    finished(tmp_path / "b", "frozen", 0.5)
    with pytest.raises(ConfigError, match="are the same run: frozen with seed 0"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    assert len(compare_runs([tmp_path / "a", tmp_path / "a"]).rows) == 1
    with pytest.raises(DataError, match="no run in"):
        compare_runs([tmp_path / "c"])
    with RunDirectory.create(tmp_path / "d", {"method": "frozen"}, tensorboard=False):
        pass
    with pytest.raises(DataError, match=r"cannot read .*summary\.json"):
        compare_runs([tmp_path / "a", tmp_path / "d"])


def test_the_samples_of_a_task_are_checked_first(tmp_path: Path) -> None:
    empty = SplitTask(
        "none", tiny.model, "act", lambda: Samples(*_none()), lambda: tiny.samples(4), classes=3
    )
    with pytest.raises(DataError):
        compare(empty, [], samples=64, out=tmp_path / "out", **SHARED)
    assert not (tmp_path / "out").exists()


def _none() -> tuple[Any, Any]:
    some = tiny.samples(4)
    return some.x[:0], some.y[:0]
