"""`SplitTask`: what a user brings, a model, where to cut it, a loss and data."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.data import PartitionSpec, chunks, partition, seeded_construction
from sfl_flower.errors import DataError

if TYPE_CHECKING:
    from sfl_flower.split import Halves

__all__ = ["Samples", "SplitTask", "accuracy", "cross_entropy"]

T = TypeVar("T")

# A task travels to Ray's workers with every message and is rebuilt there each time, so what it has
# loaded cannot live in it: it lives here, once a process, under the task's token.
_MEMORY: OrderedDict[str, dict[Hashable, Any]] = OrderedDict()
_LOCK = RLock()
_REMEMBERED_TASKS = 8


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that one process holds: inputs `x`, shape [N, ...], and labels `y`, shape [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.ArrayLike | slice) -> Samples:
        """Return the samples at these rows (int array of shape [n], or a slice)."""
        if isinstance(rows, slice):
            return Samples(self.x[rows], self.y[rows])
        index = torch.from_numpy(np.array(rows, dtype=np.int64))
        return Samples(self.x[index], self.y[index])


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, C] and labels [N]; shape []."""
    return functional.cross_entropy(logits, y)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 for each sample whose largest logit is its label, else 0.0; shape [N]."""
    return (logits.argmax(dim=-1) == y).float()


@dataclass(frozen=True, eq=False)
class SplitTask:
    """A learning problem and where its model is cut."""

    name: str
    model: Callable[[], nn.Module]
    cut: str
    train: Callable[[], Samples]
    test: Callable[[], Samples]
    classes: int
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(
        default_factory=lambda: {"accuracy": accuracy}
    )
    transform: Callable[[Tensor], Tensor] | None = None
    token: str = field(default_factory=lambda: uuid4().hex)

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gave the first time this process asked for `key` of this task."""
        with _LOCK:
            store = _MEMORY.setdefault(self.token, {})
            _MEMORY.move_to_end(self.token)
            while len(_MEMORY) > _REMEMBERED_TASKS:
                _MEMORY.popitem(last=False)
            if key not in store:
                store[key] = make()
            value: T = store[key]
            return value

    def samples(self, split: Literal["train", "test"]) -> Samples:
        """Return the checked training or test set; loaded once a process."""
        return self.memo(("samples", split), lambda: self._load(split))

    def _load(self, split: Literal["train", "test"]) -> Samples:
        return self.train() if split == "train" else self.test()

    def client_rows(self, spec: PartitionSpec) -> list[npt.NDArray[np.int64]]:
        """Return each client's rows of the training set; computed once a process."""
        return self.memo(
            ("rows", spec), lambda: partition(spec, self.samples("train").y.numpy())
        )

    def client_samples(self, client: int, spec: PartitionSpec) -> Samples:
        """Return the samples of client number `client`, 0 <= client < spec.clients."""
        rows = self.client_rows(spec)
        if not 0 <= client < len(rows):
            raise DataError(
                f"There is no client {client}; the partition has clients 0 to {len(rows) - 1}."
            )
        return self.memo(
            ("client", spec, client), lambda: self.samples("train").take(rows[client])
        )

    def batch(self, samples: Samples, rows: npt.ArrayLike | slice) -> tuple[Tensor, Tensor]:
        """Return inputs, with `transform` applied, and labels of these rows."""
        chosen = samples.take(rows)
        x = chosen.x if self.transform is None else self.transform(chosen.x)
        return x, chosen.y

    def build(self, seed: int) -> Halves:
        """Return freshly made halves with the initial weights of run `seed`."""
        return copy.deepcopy(self.memo(("halves", seed), lambda: self._construct(seed)))

    def _construct(self, seed: int) -> Halves:
        from sfl_flower.split import cut

        with seeded_construction(seed):
            model = self.model()
        return cut(model, self.cut)

    def evaluate(
        self, forward: Callable[[Tensor], Tensor], batch_size: int = 500
    ) -> dict[str, float]:
        """Return the mean loss and metrics over the test set, without a graph."""
        samples = self.samples("test")
        totals = dict.fromkeys(("loss", *self.metrics), 0.0)
        with torch.no_grad():
            for rows in chunks(len(samples), batch_size):
                x, y = self.batch(samples, rows)
                logits = forward(x)
                totals["loss"] += float(self.loss(logits, y)) * len(y)
                for name, metric in self.metrics.items():
                    totals[name] += float(metric(logits, y).sum(dtype=torch.float64))
        return {name: total / len(samples) for name, total in totals.items()}
