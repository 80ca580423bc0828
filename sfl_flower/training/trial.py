"""A model, its loss and its metrics tried on a few samples, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, CutError, SflError
from sfl_flower.training.logits import are_probabilities, sigmoid_before_logits
from sfl_flower.training.measures import check_measures, check_outputs, cross_entropy

__all__ = ["Trial"]

_log = getLogger("flwr")


@dataclass(frozen=True)
class Trial:
    """What of a task is tried.

    Attributes
    ----------
    task : str
        Its name.
    at : str
        The layer it is cut behind.
    client, server : nn.Module
        The halves, in eval mode.
    loss : callable
        Mean loss of outputs and labels.
    metrics : mapping of str to callable
        One value a sample each.
    classes : int
        Labels lie in 0 <= y < classes.
    """

    task: str
    at: str
    client: nn.Module
    server: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    classes: int

    def run(
        self,
        batch: Callable[[], tuple[Tensor, Tensor]],
        stored: Tensor,
        where: str,
        fed: Mapping[str, tuple[int, ...]],
        warn: bool = False,
    ) -> None:
        """Try one mini-batch.

        Parameters
        ----------
        batch : callable
            Gives inputs and labels, as a step of training or of an evaluation does.
        stored : Tensor
            The inputs as they are stored.
        where : str
            Which set they are from, "the training set".
        fed : mapping of str to tuple of int
            Shapes of an input of the sets that were tried before, by `where`; compared in errors.
        warn : bool
            Whether to warn of smashed data larger than the inputs, and of outputs that are
            probabilities already.

        Raises
        ------
        ConfigError, CutError, DataError
            What does not fit together, and what to do.
        """
        what = f"{list(stored.shape)} {stored.dtype} inputs"
        try:
            x, y = batch()
            what = f"{list(x.shape)} {x.dtype} batch"
            with torch.no_grad():
                z = self.client(x)
                self._check_z(x, z)
                output = self.server(z)
                loss = self.loss(output, y)
                values = {name: metric(output, y) for name, metric in self.metrics.items()}
        except SflError:
            raise
        except Exception as error:
            like = fed.get("the training set", ())
            if where == "the public set" and like not in ((), tuple(stored.shape[1:])):
                raise ConfigError(
                    f"The public set of task {self.task!r} has inputs of "
                    f"{list(stored.shape[1:])}, the training set of {list(like)}; public() must "
                    "return samples like train()."
                ) from error
            others = "".join(
                f" {name.capitalize()} has inputs of {list(shape)}."
                for name, shape in fed.items()
                if shape != tuple(stored.shape[1:])
            )
            raise ConfigError(
                f"The model, loss and metrics cannot be applied to a {what} of task "
                f"{self.task!r}, from {where}: {_first_line(error)}{others} Change the model, or "
                "give a `transform` that makes its inputs (for pixels: lambda x: x.float() / 255)."
            ) from error
        check_measures(self.task, loss, values, len(y))
        check_outputs(self.task, output, y, self.loss, self.metrics, self.classes)
        if warn:
            self._remark(z, output, y)
        # Numbers of a text are far fewer than those of any layer's output.
        if warn and x.is_floating_point() and z.numel() > x.numel():
            _log.warning(
                "Task '%s' is cut at '%s', which gives %d numbers a sample (%s) for an input of %d "
                "(%s): more crosses the network than the inputs hold. A later cut may send less.",
                self.task, self.at, z[0].numel(), list(z.shape[1:]), x[0].numel(),
                list(x.shape[1:]),
            )  # fmt: skip

    def _remark(self, z: Tensor, output: Tensor, y: Tensor) -> None:
        """Warn of outputs that are probabilities under a loss of logits."""
        if self.loss is cross_entropy:
            if self.classes > 1 and are_probabilities(output):
                _log.warning(
                    "The outputs of task '%s' are probabilities (they sum to 1), and cross entropy "
                    "applies a softmax of its own; leave the softmax out of the model.", self.task
                )  # fmt: skip
        elif sigmoid_before_logits(self.server, self.loss, z, y):
            _log.warning(
                "The model of task '%s' ends in a sigmoid, and its loss, binary cross entropy of "
                "logits, applies one of its own; leave the sigmoid out of the model, or take the "
                "loss of probabilities.", self.task
            )  # fmt: skip

    def _check_z(self, x: Tensor, z: Any) -> None:
        here = f"Task {self.task!r} cannot be cut at {self.at!r}: the layer gives"
        if not isinstance(z, Tensor):
            raise CutError(
                f"{here} a {type(z).__name__}, and only one tensor can cross; cut behind the layer "
                "that picks one tensor out of it."
            )
        if z.dtype != torch.float32:
            kind = str(z.dtype).removeprefix("torch.")
            raise CutError(
                f"{here} {kind}, and smashed data must be float32; end the layer with .float(), or "
                "call .float() on what model() returns."
            )
        if z.ndim < 2 or z.shape[0] != len(x):
            raise CutError(
                f"{here} a tensor of shape {list(z.shape)} for {len(x)} samples; the first axis "
                "must count the samples (batch first), with at least one more behind it. Cut at "
                "another layer, or move the axes inside the layer."
            )


def _first_line(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."
