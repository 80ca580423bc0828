"""`SplitTask`: what a user brings, a model, where to cut it, a loss and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfl_flower.data import (
    PartitionSpec,
    Samples,
    check_samples,
    chunks,
    partition,
    seeded_construction,
    seeded_torch,
)
from sfl_flower.data.labels import row_labels
from sfl_flower.data.memory import remember
from sfl_flower.data.samples import load_arrays, store_arrays
from sfl_flower.errors import ConfigError, CutError, DataError, SflError
from sfl_flower.training.measures import accuracy, check_measures, check_output, cross_entropy

if TYPE_CHECKING:
    from sfl_flower.split import Halves

__all__ = ["Samples", "SplitTask", "accuracy", "cross_entropy"]

T = TypeVar("T")

_LOGITS = 2**26
"""Most outputs of one forward of an evaluation: 256 MiB, of a vocabulary's logits for one."""


@dataclass(frozen=True, eq=False)
class SplitTask:
    """A learning problem, and where its model is cut.

    A task holds functions, never arrays: it is sent to the simulation's workers with every message.
    What the functions return is kept once a process (`memo`).

    Parameters
    ----------
    name : str
        Shown in tables and file names.
    model : callable
        ``model()`` builds the whole model on the CPU. Its initial weights follow the run's seed,
        whatever it draws them with from torch; it must not seed torch itself.
    cut : str
        Name of the layer whose output is the smashed data z; the last layer of the client half.
    train, test : callable
        ``train()`` and ``test()`` return the `Samples` of the training and the test set.
    classes : int
        Labels lie in 0 <= y < classes.
    loss : callable
        ``loss(output, y)`` is the **mean** loss of a batch, shape []; cross entropy by default.
    metrics : mapping of str to callable
        ``metric(output, y)`` gives one value a sample, shape [N]; ``{"accuracy": accuracy}`` by
        default.
    transform : callable, optional
        ``transform(x)`` turns stored inputs of a batch into the model's inputs.
    head : callable, optional
        ``head()`` builds an auxiliary head, from smashed data z to the shape of the model's output;
        used by the methods that have one, when their option `head` is "task".
    ignore_label : int, optional
        A label that is no class and counts nowhere; with it, labels may be [N, T], one a position.
        The default loss leaves out -100; give a loss that leaves out another.
    trained : str
        Which client parameters are trained: ``all`` that the model trains, ``lora``, ``norm``,
        ``bias``, ``last:N`` or a pattern over names, as `sfl_flower.split.restrict` takes them.
    token : str
        Names what this process keeps for the task; tasks with equal tokens and `trained` share it.
        Unique to the object by default, so build a task once, not once a message.

    Raises
    ------
    ConfigError
        `classes` is below 1, a metric is called "loss", `trained` is no choice, or something that
        must be callable is not.
    """

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
    head: Callable[[], nn.Module] | None = None
    ignore_label: int | None = None
    trained: str = "all"
    token: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if self.trained != "all":
            from sfl_flower.split import check_trained

            check_trained(self.trained)
        if self.classes < 1:
            raise ConfigError(
                f"Task {self.name!r} has classes={self.classes}; it must be at least 1."
            )
        if self.ignore_label is not None and 0 <= self.ignore_label < self.classes:
            raise ConfigError(
                f"Task {self.name!r} ignores label {self.ignore_label}, which is one of its "
                f"classes 0 to {self.classes - 1}; choose another, such as -100."
            )
        if "loss" in self.metrics:
            raise ConfigError(
                f"Task {self.name!r} calls a metric 'loss'; that name is taken, choose another."
            )
        wanted: dict[str, Any] = {
            "model": self.model, "train": self.train, "test": self.test, "loss": self.loss,
            **{f"metrics[{name!r}]": metric for name, metric in self.metrics.items()},
        }  # fmt: skip
        if self.head is not None:
            wanted["head"] = self.head
        for name, value in wanted.items():
            built = name in ("model", "head") and isinstance(value, nn.Module)
            if not callable(value) or built:
                raise ConfigError(
                    f"In task {self.name!r}, {name} is a {type(value).__name__}; it must be a "
                    "function (lambda: ... makes one of a value)."
                )

    @classmethod
    def from_arrays(
        cls,
        name: str,
        model: Callable[[], nn.Module],
        cut: str,
        x_train: npt.ArrayLike,
        y_train: npt.ArrayLike,
        x_test: npt.ArrayLike,
        y_test: npt.ArrayLike,
        classes: int,
        **options: Any,
    ) -> SplitTask:
        """Make a task of arrays (or CPU tensors) in memory.

        The arrays are checked, and written once to a temporary file of this machine that goes when
        the process ends; workers on other machines cannot read it. For a deployment, write `train`
        and `test` functions that load each node's data.

        Parameters
        ----------
        name, model, cut, classes
            As for the class.
        x_train, x_test : array, shape [N, ...]
            Inputs.
        y_train, y_test : array of int, shape [N]
            Labels.
        **options
            `loss`, `metrics`, `transform`, `head`, `trained`, as for the class.

        Raises
        ------
        DataError
            The arrays cannot be used; see `check_samples`.
        """
        path = store_arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        task = cls(
            name=name, model=model, cut=cut, classes=classes,
            train=partial(load_arrays, path, "train"), test=partial(load_arrays, path, "test"),
            **options,
        )  # fmt: skip
        task.samples("train")
        task.samples("test")
        return task

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gave the first time this process asked for `key` of this task."""
        token = self.token if self.trained == "all" else f"{self.token}:{self.trained}"
        return remember(token, key, make)

    def samples(self, split: Literal["train", "test"]) -> Samples:
        """Return the checked training or test set; loaded once a process.

        Raises
        ------
        DataError
            The set cannot be used; see `check_samples`.
        """

        def load() -> Samples:
            what = "training" if split == "train" else "test"
            samples = self.train() if split == "train" else self.test()
            where = f"the {what} set of task {self.name!r}"
            return check_samples(samples, self.classes, where, self.ignore_label)

        return self.memo(("samples", split), load)

    def client_rows(self, spec: PartitionSpec) -> list[npt.NDArray[np.int64]]:
        """Return each client's rows of the training set, ascending; computed once a process.

        Raises
        ------
        DataError
            The training set cannot be divided so; see `partition`.
        """
        return self.memo(("rows", spec), lambda: self.compute_rows(spec))

    def compute_rows(self, spec: PartitionSpec) -> list[npt.NDArray[np.int64]]:
        """Return what `client_rows` does, computed anew."""
        labels = self.samples("train").y.numpy()
        return partition(spec, row_labels(labels, self.ignore_label, spec.by_class))

    def client_samples(self, client: int, spec: PartitionSpec) -> Samples:
        """Return a copy of the samples of client number `client`, 0 <= client < spec.clients.

        Raises
        ------
        DataError
            There is no such client, or the training set cannot be divided so.
        """
        rows = self.client_rows(spec)
        if not 0 <= client < len(rows):
            raise DataError(
                f"There is no client {client}; the partition has clients 0 to {len(rows) - 1}."
            )
        return self.samples("train").take(rows[client])

    def batch(self, samples: Samples, rows: npt.ArrayLike | slice) -> tuple[Tensor, Tensor]:
        """Return the model's inputs and the labels of these rows."""
        chosen = samples.take(rows)
        x = chosen.x if self.transform is None else self.transform(chosen.x)
        return x, chosen.y

    def build(self, seed: int) -> Halves:
        """Return new halves with the initial weights of a run, the same bits in every process.

        Parameters
        ----------
        seed : int
            The run's seed.

        Raises
        ------
        CutError
            The model cannot be cut at `cut`, or (ConfigError) `trained` chooses nothing of it or
            something quantised.
        """
        return copy.deepcopy(self.memo(("halves", seed), lambda: self._construct(seed)))

    def whole(self, seed: int) -> nn.Module:
        """Return the whole model with the initial weights of a run, not cut.

        Raises
        ------
        ConfigError
            The task's model function returns something else.
        """
        with seeded_construction(seed):
            model = self.model()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"The model function of task {self.name!r} returned a {type(model).__name__}; it "
                "must return a torch.nn.Module."
            )
        return model

    def _construct(self, seed: int) -> Halves:
        from sfl_flower.split import cut, restrict, stay_frozen

        halves = cut(self.whole(seed), self.cut)
        restrict(halves.client, self.trained)
        stay_frozen(halves.client, halves.server)
        return halves

    def build_head(self, seed: int, kind: str, init: str = "random") -> nn.Module:
        """Return a new auxiliary head for the run's cut, the same bits in every process.

        Its random numbers are drawn apart from the model's: a head leaves the weights of `build`
        as they are.

        Parameters
        ----------
        seed : int
            The run's seed.
        kind : str
            One of `sfl_flower.split.HEADS`.
        init : {"random", "copy"}
            Fresh weights, or those of the server half where the head has its layers.

        Returns
        -------
        nn.Module
            From z to what the server half gives, in train mode.

        Raises
        ------
        CutError
            The head does not fit the cut or the model's output; see `sfl_flower.split.make_head`.
        """
        make = partial(self._construct_head, seed, kind, init)
        return copy.deepcopy(self.memo(("head", seed, kind, init), make))

    def _construct_head(self, seed: int, kind: str, init: str) -> nn.Module:
        from sfl_flower.split import make_head

        halves = self.build(seed)
        with torch.no_grad():
            z = halves.client.eval()(self.batch(self.samples("test"), slice(0, 2))[0])
            output = copy.deepcopy(halves.server).eval()(z)
        if output.ndim != 2 and not output.ndim == z.ndim == 3:
            raise CutError(
                f"The model of task {self.name!r} gives an output of shape {list(output.shape)}; "
                "an auxiliary head needs one of shape [N, outputs], or [N, T, outputs] of texts."
            )
        with seeded_torch("head", seed), torch.device("cpu"):
            return make_head(
                kind, halves.server, tuple(z.shape[1:]), tuple(output.shape[1:]), init=init,
                custom=self.head,
            )  # fmt: skip

    def evaluate(
        self,
        forward: Callable[[Tensor], Tensor],
        batch_size: int = 500,
        samples: Samples | None = None,
    ) -> dict[str, float]:
        """Return the mean loss and metrics over a set, in its order and without a graph.

        Parameters
        ----------
        forward : callable
            From inputs [n, ...] to outputs; a whole model in eval mode, say.
        batch_size : int
            Samples a forward, at most; fewer where each has many outputs.
        samples : Samples, optional
            The set; the test set when left out.

        Returns
        -------
        dict of str to float
            ``"loss"``, the mean over all labels that count, and one entry for each metric.
        """
        samples = samples or self.samples("test")
        outputs = self.classes * samples.y[0].numel()
        batch_size = max(1, min(batch_size, _LOGITS // outputs))
        labels = 0
        totals = dict.fromkeys(("loss", *self.metrics), 0.0)
        with torch.no_grad():
            for rows in chunks(len(samples), batch_size):
                x, y = self.batch(samples, rows)
                output = forward(x)
                counted = (
                    y.numel() if self.ignore_label is None else int((y != self.ignore_label).sum())
                )
                labels += counted
                totals["loss"] += float(self.loss(output, y)) * counted
                for name, metric in self.metrics.items():
                    totals[name] += float(metric(output, y).sum(dtype=torch.float64))
        shared = {name: total / len(samples) for name, total in totals.items()}
        return {**shared, "loss": totals["loss"] / labels}

    def check(self, seed: int = 0) -> None:
        """Load the data, cut the model and try both on two samples, before anything is trained.

        Raises
        ------
        CutError, DataError, ConfigError
            What does not fit together, and what to do.
        """
        self.samples("train")
        samples, halves = self.samples("test"), self.build(seed)
        client, server = halves.client.eval(), halves.server.eval()
        stored = samples.take(slice(0, 2))
        what = f"{list(stored.x.shape)} {stored.x.dtype} inputs of task {self.name!r}"
        try:
            x, y = self.batch(samples, slice(0, 2))
            what = f"{list(x.shape)} {x.dtype} batch of task {self.name!r}"
            with torch.no_grad():
                output = server(client(x))
                loss = self.loss(output, y)
                values = {name: metric(output, y) for name, metric in self.metrics.items()}
        except SflError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The model, loss and metrics cannot be applied to a {what}: {error} Change the "
                "model, or give a `transform` that makes its inputs (for pixels: "
                "lambda x: x.float() / 255)."
            ) from error
        if self.loss is cross_entropy:
            check_output(self.name, output, y, self.classes)
        check_measures(self.name, loss, values, len(y))
