"""`sfl attack`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfl_flower import simulate
from sfl_flower.attacks.halves import Trained
from sfl_flower.cli.main import main

QUICK = ["--set", "auxiliary=60", "--set", "observed=40", "--set", "epochs=2", "--set", "rounds=2"]
QUICK += ["--set", "victims=12", "--set", "clients=2"]


@pytest.mark.flower
def test_tables_numbers_and_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "attack"
    asked = ["attack", "digits", "--cut", "fc1,tanh1", "--defence", "int4", "--out", str(out)]
    assert main([*asked, *QUICK]) == 0
    said = capsys.readouterr().out
    for text in ("fc1, int4, simulator", "tanh1, none, decoder", "gradient cosine", "share"):
        assert text in said
    names = {path.name for path in out.iterdir()}
    assert names == {"attack.md", "attack.json", "fc1.png", "tanh1.png"}
    numbers = json.loads((out / "attack.json").read_text())
    assert [cut["cut"] for cut in numbers["cuts"]] == ["fc1", "tanh1"]
    assert len(numbers["cuts"][0]["findings"]) == 2 * 10
    for found in numbers["cuts"][0]["findings"]:
        assert found["guess"] and found["reached"]
    assert (out / "fc1.png").read_bytes().startswith(b"\x89PNG")
    assert "![fc1](fc1.png)" in (out / "attack.md").read_text()


@pytest.mark.flower
def test_a_run_is_attacked_with_its_own_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    simulate(
        "digits", "splitfed_v2", backend="inline", out=run, rounds=20, clients=2, local_steps=4,
        smashed="int8",
    )  # fmt: skip
    learned = json.loads((run / "summary.json").read_text())["metrics"]["accuracy"]
    out = tmp_path / "attack"
    asked = ["attack", "--run", str(run), "--attacks", "labels", "--out", str(out), *QUICK]
    assert main(asked) == 0
    assert str(run) in capsys.readouterr().out.replace("\n", "")
    written = json.loads((out / "attack.json").read_text())
    cut = written["cuts"][0]
    assert cut["cut"] == "tanh1"
    assert list(cut["defences"]) == ["int8", "none"]
    assert any("sent smashed data as 'int8'" in note for note in written["notes"])
    (server,) = (
        found["reached"]["accuracy"]
        for found in cut["findings"]
        if (found["attack"], found["defence"]) == ("server half", "none")
    )
    assert abs(server - learned) < 0.25 and learned > 0.5
    assert cut["defences"]["none"]["accuracy"] == pytest.approx(learned, abs=1e-6)
    assert main(["attack", "digits", "--run", str(run), "--set", "task.model=conv", *QUICK]) == 1
    assert "is not of task 'digits'" in " ".join(capsys.readouterr().err.split())
    config = json.loads((run / "config.json").read_text())
    for changed, says in (
        ({"task": "mine"}, f"sfl attack MODULE:ATTRIBUTE --run {run}"),
        ({"method": "fedavg"}, "Clients of 'fedavg' hold the whole model and send no smashed data"),
    ):
        other = Trained(run, {**config["config"], **changed})
        monkeypatch.setattr(Trained, "read", lambda _, other=other: other)
        main(["attack", "--run", str(run), "--attacks", "labels", *QUICK])
        said = capsys.readouterr()
        assert says in " ".join((said.out + said.err).split())
    monkeypatch.undo()
    (run / "model.safetensors").unlink()
    assert main(["attack", "--run", str(run), *QUICK]) == 2
    assert "has saved no model yet" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name what to attack"),
        (["digits", "--cut", "nine", *QUICK], "nine"),
        (["digits", "--cut", "fc1,", *QUICK], "--cut is 'fc1,'; it must be names of layers"),
        (["digits", "--out", f"{__file__}/attack", *QUICK], "Cannot write to the directory"),
        (["digits", "--defence", "fog"], "whose step 'fog' is none"),
        (["digits", "--attacks", "magic"], "must be one of decoder"),
        (["digits", "--set", "victims=0"], "victims is 0"),
        (["digits", "--set", "auxiliary=2000"], "1437 training samples"),
        (["digits", "--set", "speed=3"], "Unknown option of attacks 'speed'"),
        (["--run", "nothing-here"], "There is no run in nothing-here"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attack", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
