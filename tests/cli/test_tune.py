from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfl_flower.cli import tune as command
from sfl_flower.cli.main import main
from sfl_flower.comparison.tuning import Among, Between, Trials, Tried


def test_a_search_prints_its_trials_and_how_to_train_with_the_best(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--task", "digits", "--method", "frozen", "--rounds", "2", "--clients", "3"]
    own = ["--trials", "2", "--over", "server-lr=0.01..0.4", "--out", str(tmp_path / "found")]
    assert main(["tune", *words, *own, "--set", "batch-size=8"]) == 0
    said = capsys.readouterr().out
    assert "2 trials of 2 rounds, the best first" in " ".join(said.split())
    line = "sfl run --task digits --method frozen --rounds 2 --seed 0 --clients 3 --set server-lr="
    assert line in said
    assert "--set batch-size=8" in said
    assert (tmp_path / "found" / "tuning.json").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("client-lr=0.01..1", Between(0.01, 1.0)),
        ("probes=1..16", Between(1, 16, whole=True)),
        ("probes=1,4", Among((1, 4))),
        ("direction=gaussian,sphere", Among(("gaussian", "sphere"))),
        ("mu=1e-4..1e-2", Between(1e-4, 1e-2)),
    ],
)
def test_what_is_tried_is_a_range_or_a_list(given: str, wanted: Any) -> None:
    (found,) = (command._spaces([given]) or {}).values()
    assert found == wanted


@pytest.mark.parametrize("given", ["client-lr", "client-lr=0.1", "=1..2", "client-lr=a..b"])
def test_anything_else_is_answered_with_the_forms(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--task", "digits", "--over", given]) == 2
    assert "it takes KEY=LOW..HIGH" in capsys.readouterr().err


def test_a_best_at_the_end_of_a_range_is_said() -> None:
    found = Trials("ho_sfl", "validation_accuracy", True, 1, [Tried({"client_lr": 0.99}, 0.5)])
    said = command._edge(found, {"client_lr": Between(0.01, 1.0)})
    assert said == "The best lies at the end of the range of client-lr: widen it."
    assert not command._edge(found, {"client_lr": Between(0.01, 10.0)})
    assert not command._edge(found, {"server_lr": Between(0.01, 10.0)})  # of a quick search
