"""The blocks of pages are as good as printed: commands are understood, Python blocks run."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sfl_flower
from sfl_flower.cli.given import given_task
from sfl_flower.cli.main import main, parser
from sfl_flower.errors import SflError
from sfl_flower.run.run import Plan, RunResult
from sfl_flower.run.simulation import run_plan
from sfl_flower.task import SplitTask
from sfl_flower.tasks import read_task_options, task_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md")]
)
RUN = ("README.md", "docs/callbacks.md", "docs/description.md", "docs/launching.md",
       "docs/presets.md", "docs/profiling.md", "docs/reporting.md", "docs/run-directory.md",
       "docs/trained.md")  # fmt: skip
"""Pages whose blocks run here; those of tasks and cuts run in `test_doc_blocks`."""


class Understood(SflError):
    """A command got as far as its work, which would take too long here."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of each block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the words of each `sfl` command of a shell block."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "sfl " in line]
    return [each[1:] for each in words if each and Path(each[0]).name == "sfl"]


def briefly(task: SplitTask, plan: Plan, **options: Any) -> RunResult:
    """Train two rounds of what is small, inline; nothing of the rest."""
    if task.name != "digits":
        raise Understood("understood")
    config = dataclasses.replace(plan.config, rounds=2)
    return run_plan(task, dataclasses.replace(plan, config=config), backend="inline")


def named(name: str, options: Mapping[str, Any]) -> SplitTask:
    """Load a task that is here; of others, whose files may be far, check name and options."""
    if name == "digits" or ":" in name:
        return given_task(name, options)
    assert read_task_options(name, options).keys() <= task_options(name).keys()
    raise Understood("understood")


def understood(*_: Any, **__: Any) -> Any:
    """Stand for work that takes long."""
    raise Understood("understood")


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty directory, where commands do little."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("sfl_flower.cli.run.run_plan", briefly)
    monkeypatch.setattr("sfl_flower.cli.run.given_task", named)
    monkeypatch.setattr("sfl_flower.cli.profile.given_task", named)
    monkeypatch.setattr("sfl_flower.cli.attack.attack", understood)
    monkeypatch.setattr("sfl_flower.cli.attack.Trained.read", understood)
    monkeypatch.setattr("sfl_flower.cli.compare.compare", understood)
    monkeypatch.setattr("sfl_flower.cli.compare.compare_runs", understood)
    monkeypatch.setattr("sfl_flower.cli.tune.tune", understood)
    monkeypatch.setattr("sfl_flower.cli.demo.run_plan", understood)
    monkeypatch.setattr("sfl_flower.cli.warm.os.execv", understood)  # it would take our place
    simulate = sfl_flower.simulate

    def shortly(task: Any, *rest: Any, **options: Any) -> RunResult:
        return simulate(task, *rest, **{**options, "rounds": 2, "backend": "inline"})

    monkeypatch.setattr(sfl_flower, "simulate", shortly)
    return tmp_path


def follow(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Give a command as printed; it must be understood."""
    without = "--onnx" in command and find_spec("onnxruntime") is None
    if command[0] in ("report", "export") and (without or not Path(command[1]).exists()):
        parser().parse_args(command)  # of runs that other commands would have left
        return
    quick = command[0] == "profile" and ("digits" in command or "--model" in command)
    if command[0] == "profile":
        command = [*command, "--seconds", "0"]
        if not quick:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sfl_flower.cli.profile.profile", understood)
                status = main(command)
        else:
            status = main(command)
    elif command[-1] == "--help":
        with pytest.raises(SystemExit, match="0"):
            main(command)
        status = 0
    else:
        status = main(command)
    error = capsys.readouterr().err
    assert status == 0 or "understood" in error, f"sfl {shlex.join(command)}: {error}"


@pytest.mark.parametrize("page", [p for p in PAGES if p not in RUN])
@pytest.mark.usefixtures("at_work")
def test_b6_the_commands_of_a_page_are_understood(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str((ROOT / page).parent))  # what is beside it is imported there
    for language, text in blocks(page):
        if language in ("", "bash"):
            for command in commands(text):
                if "..." not in command and "$dtype" not in str(command):
                    follow(command, capsys)
        elif language == "python":
            compile(text, page, "exec")


@pytest.mark.flower
@pytest.mark.parametrize("page", RUN)
def test_a19_the_blocks_of_a_page_run_one_after_another(
    page: str, at_work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "bash":
            for command in commands(text):
                follow([part.replace("$dtype", "int8") for part in command], capsys)
        elif language == "python" and (file := re.match(r"# (\w+\.py)\n", text)):
            (at_work / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"<{page}>", "exec"), names)


@pytest.mark.flower
def test_a19_the_connections_on_the_page_are_all_that_flower_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flwr run .` wants a default connection in a config.toml that somebody else wrote."""
    config = pytest.importorskip("flwr.cli.flower_config")  # not public: where it is, it is checked
    (toml,) = [text for _, text in blocks("docs/launching.md") if "[superlink]" in text]
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(toml, encoding="utf-8")
    assert config.read_superlink_connection(None).name == "local"
    assert config.read_superlink_connection("localhost").address == "127.0.0.1:8000"


def test_a19_the_page_of_the_methods_has_lines_that_fit_a_screen() -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs/methods.md").read_text(encoding="utf-8"),
                  flags=re.DOTALL | re.MULTILINE)  # fmt: skip
    long = [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")]
    assert long == []
