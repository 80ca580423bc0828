"""What every client does: find its data, build its half, and remember."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context
from torch import Tensor, nn

from sfl_flower.config import LOCAL
from sfl_flower.data import Samples, batch_indices, seeded_torch
from sfl_flower.data.identity import data_digest
from sfl_flower.data.repeats import UNREPEATED
from sfl_flower.errors import ConfigError, DataError, SflError
from sfl_flower.node.shares import divide, read_spec
from sfl_flower.node.store import LABEL_SECRET, NodeStore, keep_carried, load_kept
from sfl_flower.split import Whole, base_digest
from sfl_flower.task import NOT_DIVIDED, SplitTask
from sfl_flower.task.own_data import node_key
from sfl_flower.training.device import find_device
from sfl_flower.training.meter import PeakMemory, counting_flops, profiled
from sfl_flower.wire import JoinReply, JoinRequest, Setup, Usage
from sfl_flower.zo import ParameterVector, trained_names

if TYPE_CHECKING:
    from sfl_flower.split import Parted

__all__ = ["HeldModule", "Node", "TaskSource", "join", "metered", "node_partition"]

T = TypeVar("T")

_log = getLogger("flwr")
_DEVICE = "client-device"

TaskSource = Callable[[Context], SplitTask]
"""Gives the task of a run from the node's context."""


def node_partition(context: Context) -> int:
    """Return the number of a node's share of the data.

    Flower's simulation and the usual node configuration give a ``partition-id``; a node without
    one trains on data of its own and is numbered by its node id.

    Raises
    ------
    ConfigError
        If the node configuration has a ``partition-id`` that is no whole number in [0, 2**31).
    """
    value = context.node_config.get("partition-id")
    if value is None:
        return int(context.node_id % 2**31)
    number = int(value) if str(value).strip().isdecimal() else -1
    if not 0 <= number < 2**31:
        raise ConfigError(
            f"This node has partition-id {value!r} in its node configuration; it must be a whole "
            "number, at least 0 and below 2**31."
        )
    return number


@dataclass
class HeldModule:
    """A client half, or a whole model, that a process keeps between messages, and what is in it.

    Attributes
    ----------
    module : nn.Module
        The half.
    holds : str
        Digest of the weights that are loaded, empty for others.
    """

    module: nn.Module
    holds: str = ""

    @cached_property
    def trained(self) -> ParameterVector:
        """The zeroth-order-trained parameters, laid out at first use; maybe none."""
        from sfl_flower.split import called_layers  # clients that train by backprop need none

        names = trained_names(self.module)
        return ParameterVector(self.module, names, called_layers(self.module))

    @cached_property
    def parted(self) -> Parted | None:
        """The module in two parts, of which no probe moves the first; None where it is one."""
        from sfl_flower.split import parted  # nor this

        return parted(self.module, self.trained.parameters)


@dataclass(frozen=True)
class Node:
    """One client while it handles one message.

    Attributes
    ----------
    task : SplitTask
        The learning problem.
    model_seed : int
        The seed of the model's first weights, the same for everybody.
    key : str
        What everything that the client draws follows from, known to it and the server alone;
        empty at the join.
    partition : int
        The number of its share of the data.
    samples : Samples
        The training set it has loaded.
    rows : numpy.ndarray
        Its share of the data: rows of `samples`, int64, shape [n].
    store : NodeStore
        What it remembers.
    device : torch.device
        Where it computes.
    mode : {"as_built", "eval"}
        Mode of the client half, or of the whole model where there is no cut.
    micro_batch : int
        Most samples of a mini-batch that it runs at one time, 0 for all.
    checkpointing : bool
        Whether backprop runs segments of what it holds again.
    carried : str
        Names the directions of subspaces that it holds, empty for none.
    told : numpy.ndarray or None
        Labels of its share to train on in place of its own, int64 [n, ...].
    """

    task: SplitTask
    model_seed: int
    key: str
    partition: int
    samples: Samples
    rows: npt.NDArray[np.int64]
    store: NodeStore
    device: torch.device
    mode: str
    micro_batch: int = 0
    checkpointing: bool = False
    carried: str = ""
    told: npt.NDArray[np.int64] | None = None

    @classmethod
    def open(cls, source: TaskSource, context: Context, setup: Setup) -> Node:
        """Find the task, the share of the data and the memory of the node of a message."""
        task, number, device = source(context), node_partition(context), _device(context, setup)
        if setup.trained:
            task = task.with_trained(setup.trained)
        samples = task.samples("train", context)
        if setup.partition == LOCAL:
            rows = np.arange(len(samples))
        elif task.own_data:
            raise ConfigError(NOT_DIVIDED.format(task.name))
        else:
            spec = read_spec(setup.partition)
            divide(task, spec)
            parts = task.client_rows(spec)
            if not 0 <= number < len(parts):
                named = "partition-id" in context.node_config
                raise DataError(
                    f"This node has {f'partition-id {number}' if named else 'no partition-id'}; "
                    f"the run has partitions 0 to {len(parts) - 1}. Give it one of them in its "
                    "node configuration, or set clients higher."
                )
            rows = parts[number]
        store, told, own = NodeStore(context), None, context.node_config
        # Also where a later message no longer asks for it.
        if setup.label_epsilon or "label-epsilon" in own or store.get_text(LABEL_SECRET):
            from sfl_flower.node.labels import told_labels  # few runs need it

            told = told_labels(task, context, samples.y[rows], setup.label_epsilon)
        return cls(
            task, setup.model_seed, setup.key, number, samples, rows, store, device,
            setup.mode, setup.micro_batch, setup.checkpointing, keep_carried(store, setup.carried),
            told,
        )  # fmt: skip

    @property
    def half(self) -> HeldModule:
        """The client half; one a process, so load parameters before using it."""
        # Only the client half is kept: a client of a split never holds the server's.
        return self.memo(
            "client half", lambda: HeldModule(self.ready(self.task.build(self.model_seed).client))
        )

    @property
    def whole(self) -> HeldModule:
        """Both halves, for methods without a cut; one a process, as `half`."""

        def build() -> HeldModule:
            halves = self.task.build(self.model_seed)
            return HeldModule(self.ready(Whole(halves.client, halves.server)))

        return self.memo("whole model", build)

    def ready(self, module: nn.Module) -> nn.Module:
        """Return a new half, or whole model, as the run trains it: on its device, in its mode."""
        load_kept(self.store, self.carried, module)
        placed = module.to(self.device)
        return self._lean(placed.eval() if self.mode == "eval" else placed)

    def _lean(self, module: nn.Module) -> nn.Module:
        if self.checkpointing:
            from sfl_flower.split.checkpointing import checkpoint_segments  # few clients need it

            checkpoint_segments(module)
        return module

    def memo(self, what: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gave the first time this process asked for it in such a run."""
        kind = self.model_seed, self.device, self.mode, self.checkpointing, self.task.trained
        key = (what, *kind, self.carried)
        return self.task.memo(key, make)

    def new_head(self, kind: str) -> nn.Module:
        """Return a new auxiliary head; its frozen part is the server's, the rest travels."""
        from sfl_flower.split import own_init  # few clients have a head
        from sfl_flower.task.models import TAIL, new_tail

        if kind.startswith(TAIL):
            head = new_tail(self.task, self.model_seed, kind)
        else:
            head = self.task.build_head(self.model_seed, kind, own_init(kind))
        return self._lean(head.to(self.device))

    def batch(self, round: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return inputs [n, ...] and labels [n] of a mini-batch of a round, on the device."""
        chosen = batch_indices(self.key, round, step, len(self.rows), batch_size)
        rows = self.rows[chosen]
        x, y = self.task.training_batch(self.samples, rows, self.key, round, step)
        y = y if self.told is None else torch.from_numpy(self.told[chosen])
        return x.to(self.device), y.to(self.device)

    def same_batch(self, round: int, digest: str, met: str) -> None:
        """Refuse a mini-batch that is met again in a round and is another one.

        Parameters
        ----------
        round : int
            The round.
        digest, met : str
            `batch_digest` of what it is now, and of what it was.

        Raises
        ------
        DataError
            They differ.
        """
        if digest != met:
            raise DataError(
                f"Client {self.partition} finds another mini-batch than it had before in round "
                f"{round}: the data of task {self.task.name!r} change between two messages. "
                f"{UNREPEATED} What is random belongs into `augment=`."
            )

    def draws(self, round: int, step: int, first: int = 0) -> AbstractContextManager[None]:
        """Let the half's dropout, if it is active, depend on the mini-batch alone.

        Parameters
        ----------
        round, step : int
            They name the mini-batch.
        first : int
            The first of its samples that run together.
        """
        words = (round, step, first) if first else (round, step)
        return seeded_torch("client forward", self.key, *words)


def _device(context: Context, setup: Setup) -> torch.device:
    """Return the device that a node's own configuration names, or else the run's."""
    own = context.node_config.get(_DEVICE)
    if own is None:
        return find_device(setup.device, _DEVICE)
    return find_device(str(own), f"{_DEVICE} of the node configuration")


def join(source: TaskSource, context: Context, request: JoinRequest) -> JoinReply:
    """Say which share of the data a node has, or why it cannot take part."""
    number = -1
    try:
        number = node_partition(context)
        node = Node.open(source, context, request.setup)
        _check_base(node, request)
    except SflError as error:
        return JoinReply(number, 0, str(error)[:2000])
    if len(node.rows) == 0:
        return JoinReply(node.partition, 0, f"Client {node.partition} holds no samples.")
    moments = None
    held = node_key(context) if node.task.own_data else None
    data = ""  # it would tell labels
    if node.told is None or request.setup.partition != LOCAL:
        data = node.task.memo(("data digest", held), lambda: data_digest(node.samples))
    if request.moments:
        from sfl_flower.node.moments import own_moments

        moments = own_moments(node)
    key = None
    if request.secure:
        try:
            from sfl_flower.node.secure import fresh_key  # few runs need it

            key = fresh_key(node)
        except SflError as error:  # a package is missing here
            return JoinReply(number, 0, str(error))
    return JoinReply(node.partition, len(node.rows), data=data, moments=moments, key=key)


def _check_base(node: Node, request: JoinRequest) -> None:
    """Refuse to train on other frozen parameters than the server's, which are never sent."""
    if not request.base:
        return

    def compute() -> str:
        halves = node.task.build(node.model_seed)
        held = [halves.client, *([halves.server] if request.whole else [])]
        return base_digest(*held, *([node.new_head(request.head)] if request.head else []))

    which = node.task.trained, request.whole, request.head
    own = node.task.memo(("base", node.model_seed, *which), compute)
    if own != request.base:
        raise ConfigError(
            f"Client {node.partition} builds other frozen parameters than the server (digest "
            f"{own[:8] or 'none'} instead of {request.base[:8]}); give both the same task, with "
            f"the same weights in its model(){' and head()' if request.head else ''}."
        )


@contextmanager
def metered(wanted: str, device: torch.device) -> Iterator[Callable[[], Usage]]:
    """Measure what a block costs on a device, one of `METERS`; gives a function to read it."""
    if wanted == "memory" and profiled():
        _log.warning("Memory is not measured: a profiler of torch already runs in this process.")
        yield Usage
    elif wanted == "memory":
        with PeakMemory(device) as meter:
            yield lambda: Usage(peak_bytes=meter.peak)
    elif wanted == "flops":
        with counting_flops() as counter:
            yield lambda: Usage(flops=int(counter.get_total_flops()))
    else:
        yield Usage
