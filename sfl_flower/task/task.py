"""`SplitTask`: what a user brings, a model, where to cut it, a loss and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from sfl_flower.data import (
    PartitionSpec,
    Samples,
    check_samples,
    chunks,
    divided,
    seeded_draws,
)
from sfl_flower.data.identity import fingerprint
from sfl_flower.data.memory import remember
from sfl_flower.errors import DataError
from sfl_flower.task.own_data import first_node, node_key, takes_context
from sfl_flower.training.fields import called, check_functions, check_labels, check_metrics
from sfl_flower.training.measures import accuracy, cross_entropy

if TYPE_CHECKING:
    from flwr.app import Context

    from sfl_flower.split import Halves

__all__ = ["Split", "SplitTask"]

T = TypeVar("T")

Split = Literal["train", "test", "public"]


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
        ``train()`` and ``test()`` return the `Samples` of the training and the test set. A
        ``train(context)`` gets Flower's `Context` of the node and returns that node's own.
    classes : int
        Labels lie in 0 <= y < classes.
    loss : callable
        ``loss(output, y)`` is the **mean** loss of a batch, shape []; cross entropy by default.
    metrics : mapping of str to callable
        ``metric(output, y)`` gives one value a sample, shape [N]; ``{"accuracy": accuracy}`` by
        default.
    transform : callable, optional
        ``transform(x)`` turns stored inputs of a batch into the model's inputs; the same result
        every time.
    augment : callable, optional
        ``augment(x)`` changes the stored inputs of a training batch, before `transform`. What it
        draws from torch's, Python's or numpy's global generator depends on the client's key,
        the round and the step alone.
    head : callable, optional
        ``head()`` builds an auxiliary head, from smashed data z to the shape of the model's output;
        used by the methods that have one, when their option `head` is "task".
    ignore_label : int, optional
        A label that is no class and counts nowhere; with it, labels may be [N, T], one a position.
        The default loss leaves out -100; give a loss that leaves out another.
    trained : str
        Which client parameters are trained: ``all`` that the model trains, ``lora``, ``norm``,
        ``bias``, ``last:N``, ``subspace:R``, ``core:R`` or a pattern; see `split.restrict`.
    public : callable, optional
        ``public()`` returns `Samples` that are nobody's secret; a ``subspace`` is theirs.
    first_buffers : callable, optional
        ``first_buffers()`` gives first values of buffers by name; the server alone calls it.
    token : str, optional
        Names the data and the model. Tasks whose other fields are equal too then share what this
        process keeps; without one, each is on its own, so build it once, not once a message.

    Attributes
    ----------
    key : str
        Under which this process keeps what the functions returned.

    Raises
    ------
    ConfigError
        `classes` is no whole number from 1, `metrics` no dict or with one called "loss", `trained`
        no choice, or something that must be callable is not.
    """

    name: str
    model: Callable[[], nn.Module]
    cut: str
    train: Callable[[], Samples] | Callable[[Context], Samples]
    test: Callable[[], Samples]
    classes: int
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(
        default_factory=lambda: {"accuracy": accuracy}
    )
    transform: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor], Tensor] | None = None
    head: Callable[[], nn.Module] | None = None
    ignore_label: int | None = None
    trained: str = "all"
    public: Callable[[], Samples] | None = None
    first_buffers: Callable[[], Mapping[str, Tensor]] | None = None
    token: str = ""
    key: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        if self.trained != "all":
            from sfl_flower.split import check_trained

            check_trained(self.trained)
        check_labels(self.name, self.classes, self.ignore_label)
        check_metrics(self.name, self.metrics)
        measures = {f"metrics[{name!r}]": metric for name, metric in self.metrics.items()}
        needed = {name: getattr(self, name) for name in ("model", "train", "test", "loss")}
        names = ("transform", "augment", "head", "public", "first_buffers")
        optional = {name: getattr(self, name) for name in names}
        check_functions(self.name, {**needed, **measures}, optional)
        own = fingerprint([getattr(self, f.name) for f in fields(self) if f.init])
        # No argument: `dataclasses.replace` makes a task that shares nothing with this one.
        object.__setattr__(self, "key", f"{self.token}:{own}" if self.token else uuid4().hex)

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
        x_train, y_train, x_test, y_test : array
            Inputs, shape [N, ...], and labels, int, shape [N].
        **options
            Other fields of the class, such as `loss`, `transform`, `trained` and `public`.

        Raises
        ------
        DataError
            The arrays cannot be used; see `store_arrays` and `check_samples`.
        """
        from sfl_flower.data.arrays import load_arrays, store_arrays

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
        return remember(self.key, key, make)

    def with_trained(self, trained: str) -> SplitTask:
        """Return this task with another choice of parameters; it shares what the process keeps."""
        object.__setattr__(other := copy.copy(self), "trained", trained)
        return other

    @property
    def own_data(self) -> bool:
        """Whether nodes have training data of their own: `train` takes a context."""
        return takes_context(self.train)

    def samples(self, split: Split, context: Context | None = None) -> Samples:
        """Return the checked training, test or public set; loaded once a process.

        Parameters
        ----------
        split : {"train", "test", "public"}
            Which.
        context : Context, optional
            The node's, where nodes have data of their own; the first one's when left out.

        Raises
        ------
        DataError
            The set cannot be used; see `check_samples`.
        """
        node = node_key(context) if context and self.own_data else None
        return self.memo(("samples", split, node), lambda: self.load(split, context))

    def load(self, split: Split, context: Context | None = None) -> Samples:
        """Return what `samples` does, loaded anew."""
        where = f"the {'training' if split == 'train' else split} set of task {self.name!r}"
        function: Any = getattr(self, split)
        if split == "train" and self.own_data:
            function = partial(function, context or first_node(1))
        samples = called(function, f"{split}() of task {self.name!r}", DataError)
        return check_samples(samples, self.classes, where, self.ignore_label)

    def client_rows(self, spec: PartitionSpec) -> list[npt.NDArray[np.int64]]:
        """Return each client's rows of the training set, ascending; computed once a process.

        Raises
        ------
        DataError
            The training set cannot be divided so; see `partition`.
        """
        key, samples = ("rows", spec), partial(self.samples, "train")
        return self.memo(key, lambda: divided(samples(), spec, self.ignore_label))

    def batch(self, samples: Samples, rows: npt.ArrayLike | slice) -> tuple[Tensor, Tensor]:
        """Return the model's inputs and the labels of these rows."""
        chosen = samples.take(rows)
        return (chosen.x if self.transform is None else self.transform(chosen.x)), chosen.y

    def training_batch(
        self, samples: Samples, rows: npt.ArrayLike | slice, *words: str | int
    ) -> tuple[Tensor, Tensor]:
        """Return what `batch` does, of augmented inputs; `words` decide all that is drawn."""
        if self.augment is None and self.transform is None:
            return self.batch(samples, rows)
        with seeded_draws("batch", *words):
            chosen = samples.take(rows)
            x = chosen.x if self.augment is None else self.augment(chosen.x)
            return (x if self.transform is None else self.transform(x)), chosen.y

    def build(self, seed: int) -> Halves:
        """Return new halves with the initial weights of a run, the same bits in every process.

        Parameters
        ----------
        seed : int
            The model's seed; `RunConfig.model_seed` of a run.

        Raises
        ------
        CutError
            The model cannot be cut at `cut`, or (ConfigError) the model function fails or returns
            something else, or `trained` chooses nothing of it or something quantised.
        """
        from sfl_flower.task.models import construct

        make = partial(construct, self, seed)
        return copy.deepcopy(self.memo(("halves", seed, self.trained), make))

    def whole(self, seed: int) -> nn.Module:
        """Return the whole model with the initial weights of a run, not cut; see `build`."""
        from sfl_flower.task.models import construct_whole

        return construct_whole(self, seed)

    def build_head(self, seed: int, kind: str, init: str = "random") -> nn.Module:
        """Return a new auxiliary head for the run's cut, the same bits in every process.

        Its random numbers are drawn apart from the model's: a head leaves the weights of `build`
        as they are.

        Parameters
        ----------
        seed : int
            The model's seed; `RunConfig.model_seed` of a run.
        kind : str
            One of `sfl_flower.split.HEADS`.
        init : {"random", "copy"}
            Fresh weights, or those of the server half where the head has its layers.

        Returns
        -------
        nn.Module
            From z to what the server half gives; layers of the server half keep its modes.

        Raises
        ------
        CutError
            The head does not fit the cut or the model's output; see `sfl_flower.split.make_head`.
        """
        from sfl_flower.task.models import construct_head

        make = partial(construct_head, self, seed, kind, init)
        return copy.deepcopy(self.memo(("head", seed, kind, init), make))

    def evaluate(
        self,
        forward: Callable[[Tensor], Tensor],
        batch_size: int = 500,
        samples: Samples | None = None,
    ) -> dict[str, float]:
        """Return means over a set, in its order and without a graph: ``loss`` and each metric.

        Parameters
        ----------
        forward : callable
            From inputs [n, ...] to outputs; a whole model in eval mode, say.
        batch_size : int
            Samples a forward, at most; fewer where each has many outputs.
        samples : Samples, optional
            The set; the test set when left out.
        """
        from sfl_flower.training.evaluation import mean_measures, rows_at_once

        samples = samples or self.samples("test")
        size = rows_at_once(batch_size, self.classes * samples.y[0].numel())
        batches = (self.batch(samples, rows) for rows in chunks(len(samples), size))
        return mean_measures(forward, batches, self.loss, self.metrics, self.ignore_label)

    def check(self, seed: int = 0, clients: int = 1) -> None:
        """Load the data, cut the model and try both on a few samples, before anything is trained.

        Parameters
        ----------
        seed : int
            The model's seed; `RunConfig.model_seed` of a run.
        clients : int
            Its clients, as a `train` that takes a context is told.

        Raises
        ------
        CutError, DataError, ConfigError
            What does not fit together, and what to do.
        """
        from sfl_flower.task.check import check_task

        check_task(self, seed, clients)
