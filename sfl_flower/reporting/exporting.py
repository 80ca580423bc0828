"""The trained model of a run as a folder of files that others read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sfl_flower.data import model_seed
from sfl_flower.errors import ConfigError, DataError
from sfl_flower.report import RunDirectory
from sfl_flower.report.files import atomic_write, write_json
from sfl_flower.report.tensors import save_tensors
from sfl_flower.reporting.card import Card
from sfl_flower.reporting.gather import Gathered, Group, gather
from sfl_flower.reporting.loading import WEIGHTS, fit, state_digest
from sfl_flower.reporting.runs import ReadRun
from sfl_flower.task import SplitTask
from sfl_flower.tasks import TASKS, load_task

__all__ = ["FACTS", "export_model", "task_of"]

FACTS, CARD, ONNX, FOLDER = "export.json", "README.md", "client.onnx", "transformers"


def export_model(
    directory: Path | str,
    out: Path | str,
    *,
    task: SplitTask | None = None,
    comparison: Path | str | None = None,
    onnx: bool = False,
) -> Path:
    """Write the trained model of a run: weights, a model card, and what else others read.

    The weights are those of the whole model, client half and server half, under the names that its
    own ``state_dict()`` has.  A transformers model is written a second time, into a folder that
    ``from_pretrained`` reads, with LoRA adapters merged into the weights they move.

    Parameters
    ----------
    directory : Path or str
        The run directory; a run that is going counts as it was saved last.
    out : Path or str
        The folder, made when needed; files of an earlier export are replaced.
    task : SplitTask, optional
        The run's; needed for a task of the user's own where the model is one of transformers, or
        `onnx` is set. Ready-made tasks are known.
    comparison : Path or str, optional
        The output folder of a comparison that has this run: the card then names its control.
    onnx : bool
        Whether to write the client half as ONNX, too.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the directory is no run's, or damaged, or its model is not the task's.
    ConfigError
        If the run has saved no model yet, the folder cannot be made, the comparison has no such
        run, or something is asked for that needs the task or a package.
    """
    run, target = ReadRun.read(Path(directory).expanduser()), Path(out).expanduser()
    if not (run.path / WEIGHTS).exists():
        raise ConfigError(
            f"The run in {run.path} has saved no model yet, which a run does at its first "
            "checkpoint or at its end; let it come there."
        )
    if target.resolve() == run.path.resolve():
        problem = f"{target} is the run itself; choose another folder"
        raise ConfigError(f"{problem} as out=.", shell=f"{problem} with --out.")
    if target.is_dir() and any(target.iterdir()) and not (target / FACTS).exists():
        problem = f"{target} holds other files than those of an earlier export; choose a folder"
        raise ConfigError(
            f"{problem} that is new or empty as out=.",
            shell=f"{problem} that is new or empty with --out.",
        )
    state = RunDirectory(run.path, tensorboard=False).load_model()
    task = task or task_of(run)
    if onnx and task is None:
        name = run.config["task"]
        raise ConfigError(
            f"The run is of '{name}', which is none of the ready-made tasks, and ONNX needs its "
            "model; give it as task=.",
            shell=f"The run is of '{name}', which is none of the ready-made tasks, and --onnx "
            "needs its model; name it with --task MODULE:ATTRIBUTE.",
        )
    beside = None if comparison is None else _row(Path(comparison).expanduser(), run)
    digest, whole, half = state_digest(state), None, None
    if task is not None:
        whole = task.whole(model_seed(int(run.seed))).eval()
        fit(whole, state, run.path / WEIGHTS)
        if (found := state_digest(whole.state_dict())) != digest:
            raise DataError(f"The model of {run.path} was not read back as saved: digest {found}.")
    if onnx and task is not None:
        from sfl_flower.reporting.onnx_half import client_onnx

        half = client_onnx(task, model_seed(int(run.seed)), state)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"Cannot make the folder {target}: {error.strerror}; choose another"
        raise ConfigError(f"{problem} as out=.", shell=f"{problem} with --out.") from error
    # What an earlier export had, and this one may not.
    (target / ONNX).unlink(missing_ok=True)
    shutil.rmtree(target / FOLDER, ignore_errors=True)
    save_tensors(target / WEIGHTS, state, {"format": "pt"})
    facts: dict[str, Any] = {
        "task": run.config["task"], "method": run.method, "round": run.rounds,
        "complete": run.summary is not None, "digest": digest,
        "cut": run.facts.get("cut") or (task.cut if task else None),
    }  # fmt: skip
    if whole is not None:
        from sfl_flower.reporting.pretrained import write_pretrained

        facts["transformers"] = write_pretrained(whole, state, target / FOLDER, task)
    if half is not None:
        facts["onnx"] = half.facts
        atomic_write(target / ONNX, lambda tmp: tmp.write_bytes(half.data))
    write_json(target / FACTS, facts)
    card = Card(run, facts, *(beside or (None, None))).text()
    atomic_write(target / CARD, lambda tmp: tmp.write_text(card, encoding="utf-8"))
    return target


def task_of(run: ReadRun) -> SplitTask | None:
    """Return the ready-made task of a run with its options, None where it is another one."""
    name = str(run.config["task"])
    if name not in TASKS:
        return None
    return load_task(name, **{k[5:]: v for k, v in run.config.items() if k.startswith("task.")})


def _row(folder: Path, run: ReadRun) -> tuple[Gathered, Group]:
    """Return a comparison and its row that has the run."""
    found = gather([folder])
    for group in found.groups:
        if any(member.path.resolve() == run.path.resolve() for member in group.runs):
            return found, group
    raise ConfigError(
        f"The comparison in {folder} has no row with the run in {run.path}; name a run of it, such "
        f"as {found.groups[0].runs[0].path}."
    )
