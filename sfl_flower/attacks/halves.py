"""The halves that are attacked: of a task's first weights, or of a run's last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.attacks.parts import in_parts
from sfl_flower.data import derive, model_seed
from sfl_flower.errors import ConfigError, CutError, DataError
from sfl_flower.methods import METHODS
from sfl_flower.report.run_directory import MODEL, RunDirectory
from sfl_flower.server.first_buffers import put_first_buffers
from sfl_flower.split import cut
from sfl_flower.task import SplitTask
from sfl_flower.wire.encodings import FORMATS

__all__ = ["Attacked", "Trained", "attacked_at", "finite", "smashed"]


@dataclass(frozen=True)
class Trained:
    """A run whose model is attacked.

    Attributes
    ----------
    path : Path
        Its directory.
    config : Mapping[str, Any]
        Its configuration.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path | str) -> Trained:
        """Read a run directory.

        Raises
        ------
        ConfigError
            If no run is there.
        DataError
            If it is damaged.
        """
        directory = RunDirectory(path, tensorboard=False)
        if not directory.occupied:
            raise ConfigError(f"There is no run in {directory.path}; name the directory of one.")
        return cls(directory.path, directory.config)

    @property
    def task(self) -> tuple[str, dict[str, Any]]:
        """The task's name and its options."""
        options = {k[5:]: v for k, v in self.config.items() if k.startswith("task.")}
        return str(self.config["task"]), options

    @property
    def smashed(self) -> str:
        """The encoding in which its clients sent smashed data, ``float32`` where as they are."""
        return str(self.config.get("smashed", next(iter(FORMATS))))

    @property
    def sends(self) -> bool:
        """Whether clients of its method send smashed data."""
        method = METHODS.get(str(self.config.get("method")))
        return method is None or not method.facts.whole

    def whole(self, task: SplitTask) -> nn.Module:
        """Return the model as it was saved last.

        Raises
        ------
        DataError
            If it is damaged, or another task's.
        ConfigError
            If the run has saved none yet.
        """
        directory = RunDirectory(self.path, tensorboard=False)
        if not (directory.path / MODEL).exists():
            raise ConfigError(
                f"The run in {self.path} has saved no model yet, which a run does at its first "
                "checkpoint or at its end; let it come there, or begin it anew."
            )
        whole, state = task.whole(model_seed(int(self.config["seed"]))), directory.load_model()
        try:
            whole.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise DataError(
                f"The model in {self.path} is not of task '{task.name}': {first} Name the task and "
                "the options it was trained with."
            ) from error
        return whole


@dataclass(frozen=True, eq=False)
class Attacked:
    """The halves of a model at a cut, in eval mode, whose parameters do not move.

    Attributes
    ----------
    at : str
        The cut.
    client, server, whole : nn.Module
        The halves, and the model.
    fresh : callable
        Gives a client half of the same layers with weights of its own, for a word.
    """

    at: str
    client: nn.Module
    server: nn.Module
    whole: nn.Module
    fresh: Callable[[str], nn.Module]

    @property
    def given(self) -> float:
        """The share of the elements of `fresh` that are the same for every seed.

        Of the parameters that are no constant from the start, as biases and norms are; 1 where all
        are read from a checkpoint, 0 where all are drawn.
        """
        pairs = zip(*(self.fresh(word).parameters() for word in ("one", "other")), strict=True)
        same = drawn = 0
        for one, other in pairs:
            if one.numel() and not torch.equal(one, one.flatten()[:1].expand(one.shape)):
                drawn += one.numel()
                same += one.numel() * torch.equal(one, other)
        return same / max(1, drawn)


def attacked_at(
    task: SplitTask, seed: int, at: str | None = None, run: Trained | None = None
) -> Attacked:
    """Return the halves of a task's model, or of a run's, at a cut.

    Parameters
    ----------
    task : SplitTask
        The learning problem.
    seed : int
        Of the first weights where there is no run, and of those of `fresh`.
    at : str, optional
        The cut; the task's own by default.
    run : Trained, optional
        The run.

    Raises
    ------
    CutError
        If the model cannot be cut there.
    """
    where = task.cut if at is None else at
    if run is None:
        whole = task.whole(model_seed(seed))
        put_first_buffers(task, whole)
    else:
        whole = run.whole(task)
    halves = cut(whole, where)
    for half in (halves.client, halves.server):
        half.eval().requires_grad_(False)

    def fresh(word: str) -> nn.Module:
        other = task.whole(derive("attack model", word, seed) % 2**31)
        put_first_buffers(task, other)
        return cut(other, where).client.requires_grad_(True)

    x, _ = task.batch(task.samples("test"), slice(0, 2))
    with torch.no_grad():
        z = halves.client(x)
    if not isinstance(z, Tensor) or z.dtype != torch.float32 or z.dim() < 2 or len(z) != len(x):
        raise CutError(
            f"Task '{task.name}' cannot be attacked at '{where}': the layer does not give one "
            "float32 tensor with the samples first; take another cut."
        )
    return Attacked(halves.at, halves.client, halves.server, whole, fresh)


def smashed(client: nn.Module, x: Tensor) -> Tensor:
    """Return smashed data of inputs, [N, ...], without a graph and a few at a time.

    Raises
    ------
    DataError
        If some of them are not finite.
    """
    return finite(in_parts(client, x), "Smashed data of the client half")


def finite(values: Tensor, what: str) -> Tensor:
    """Return the values.

    Raises
    ------
    DataError
        If some are NaN or infinite.
    """
    if not values.isfinite().all():
        raise DataError(
            f"{what} are not all finite: NaN or infinity among them, as of a model that diverged; "
            "attack a run of a lower learning rate, or other inputs."
        )
    return values
