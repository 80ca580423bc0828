"""`sfl profile`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfl_flower import profile
from sfl_flower.cli.main import main
from sfl_flower.errors import ConfigError
from sfl_flower.profiling.cuts import WHOLE
from tests import tiny

DIGITS = ["profile", "--task", "digits", "--batch-size", "8", "--seconds", "2"]


def test_tables_and_advice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "profile"
    assert (
        main([*DIGITS, "--client-memory", "1MiB", "--bandwidth", "1Mbit/s", "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    for text in ("relu2", WHOLE, "splitfed_v2", "Into 1.0 MiB fit splitfed_v2 at", "Next best: "):
        assert text in said
    assert "Recommended: " in said and "at 1 Mbit/s" in said
    assert {path.name for path in out.iterdir()} == {"profile.md", "profile.json", "profile.png"}
    numbers = json.loads((out / "profile.json").read_text())
    assert numbers["client_memory_bytes"] == 2**20
    assert numbers["bandwidth_bits_per_second"] == 1e6
    names = [row["cut"] for row in numbers["cuts"]]
    assert names[-1] == WHOLE and "relu2" in names
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    assert main([*DIGITS, "--cuts", "fc1", "--json", "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)["cuts"]
    assert [row["cut"] for row in rows] == ["fc1", WHOLE] and plot.exists()
    assert (
        rows[0]["inference_peak_bytes"]["measured"] == rows[0]["inference_peak_bytes"]["predicted"]
    )


def test_a_model_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Embedding(9, 4),"
        " nn.Flatten(), nn.Linear(12, 2))\n\n\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ["profile", "--model", "own_net:build", "--batch-size", "4"]
    assert main([*own, "--input", "3", "--tokens", "9", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cuts"]
    assert [row["smashed_shape"] for row in rows] == [[3, 4], [12], [2]]
    assert main(["profile", "--model", "own_net:wrong", "--input", "3"]) == 2
    assert main(["profile", "--model", "own_net:nothing", "--input", "3"]) == 2
    assert main(own) == 2


def test_what_fits_decides_the_advice() -> None:
    task = tiny.task()
    free = profile(task, batch_size=8)
    assert free.advice[0].startswith("Recommended: ") and len(free.advice) == 2
    least = min(cost.memory for costs in free.costs.values() for cost in costs.values())
    held = profile(task, batch_size=8, client_memory=2 * least)
    assert held.advice[0].startswith("Into ") and len(held.advice) == 3
    with pytest.raises(ConfigError, match=r"no method fits into it\. The smallest need is"):
        profile(task, batch_size=8, client_memory=16)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cuts", "nine"], "nine"),
        (["--client-memory", "much"], "--client-memory is 'much'"),
        (["--client-memory", "1B"], "The smallest need is"),
        (["--bandwidth", "fast"], "--bandwidth is 'fast'"),
        (["--batch-size", "0"], "batch-size is 0"),
        (["--set", "rounds=3"], "it takes task.KEY=VALUE"),
        (["--set", "task.nothing=3"], "has no option 'nothing'"),
        (["--model", "a:b"], "Name what to profile"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DIGITS[:3], *arguments]) in (1, 2)
    assert says in capsys.readouterr().err
