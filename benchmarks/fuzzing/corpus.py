"""What there is to damage: messages, journals, files and settings of short runs of every method."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from torch import Tensor

from benchmarks.small import METHOD_SETTINGS, small_task
from benchmarks.trial import client_app, executed
from sfl_flower.errors import SflError
from sfl_flower.methods import METHODS
from sfl_flower.report import RunDirectory
from sfl_flower.run.inline import InlineGrid
from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask
from sfl_flower.wire.draft import Encodings
from sfl_flower.wire.message import Message as Declared
from sfl_flower.wire.message import Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.terms import with_terms

__all__ = ["RUNS", "Corpus", "Example", "corpus", "small_plan"]

RUNS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *((name, METHOD_SETTINGS.get(name, {})) for name in METHODS),
    ("ho_sfl", {"pipeline": True, "smashed": "int8", "gradients": "topk:0.5+float16"}),
    ("ho_sfl", {"temporal": 0.1, "smashed": "uniform:0.5+deflate", "gradients": "int4"}),
    ("ho_sfl", {"guide": "noise", "smashed": "randtopk:0.5+bfloat16", "cone": 0.0}),
    ("heron", {"local_steps": 2, "downlink": "scalars", "head_downlink": "int8+deflate"}),
    ("heron", {"local_steps": 2, "uplink": "weights", "smashed": "topk:0.5+int8+deflate"}),
)
"""Methods and forms that are run for their messages and files."""
SHARED: Mapping[str, Any] = {"rounds": 3, "clients": 3, "batch_size": 4, "eval_every": 1}


@dataclass(frozen=True)
class Example:
    """A message that was sent.

    Attributes
    ----------
    kind : type of message
        Its class.
    content : RecordDict
        What crossed.
    encodings : Encodings
        How smashed data and cut gradients travel in it.
    """

    kind: type[Declared]
    content: RecordDict
    encodings: Encodings

    def read(self, content: RecordDict) -> Declared:
        """Read other content as a message of this kind."""
        return self.kind.from_reader(Reader(content, "fuzzed", self.encodings))


@dataclass
class Corpus:
    """What is damaged.

    Attributes
    ----------
    messages : list of Example
        One of each kind and form that was seen.
    journals : list of bytes
        Journal files.
    directories : list of Path
        Run directories, whose files stay as they are.
    checkpoints : list of (int, dict of str to Tensor, dict)
        Which of `RUNS`, tensors and values of the checkpoints that the runs wrote.
    options : list of dict
        Settings of runs.
    """

    messages: list[Example] = field(default_factory=list)
    journals: list[bytes] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    checkpoints: list[tuple[int, dict[str, Tensor], dict[str, Any]]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)


class _Listening(InlineGrid):
    """A grid that keeps requests, with the terms they name, and replies."""

    def __init__(self, app: Any, clients: int) -> None:
        super().__init__(app, clients)
        self.heard: list[tuple[str, RecordDict, RecordDict | None]] = []

    def deliver(self, message: Message) -> Message | None:
        """Pass a message on."""
        context = self.contexts[message.metadata.dst_node_id]
        asked = with_terms(context, message.content) or message.content
        reply = super().deliver(message)
        told = reply.content if reply is not None and reply.has_content() else None
        self.heard.append((message.metadata.message_type, asked, told))
        return reply


def small_plan(run: int, out: Path | None = None, **more: Any) -> tuple[SplitTask, Plan]:
    """Return task and plan of one of `RUNS`."""
    method, settings = RUNS[run]
    options = {**SHARED, **settings, **more, "method": method, "task": "small"}
    return small_task(24, 4), Plan.read(options, out)


def corpus(root: Path, runs: Iterable[int] = range(len(RUNS))) -> Corpus:
    """Train short runs and return what they sent and wrote.

    Parameters
    ----------
    root : Path
        Where their directories go.
    runs : iterable of int
        Which of `RUNS`.
    """
    found, seen = Corpus(), set[Any]()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for run in runs:
        task, plan = small_plan(run, root / str(run))
        grid = _Listening(client_app(task, plan), plan.config.clients)
        executed(grid, task, plan)
        for example in _examples(grid, plan):
            shape = (example.kind, example.encodings, *_names(example.content))
            if shape not in seen:
                seen.add(shape)
                found.messages.append(example)
        out = root / str(run)
        found.directories.append(out)
        found.options.append(plan.resolved())
        if (out / "journal.bin").exists():
            found.journals.append((out / "journal.bin").read_bytes())
        tensors, values, _ = RunDirectory(out, tensorboard=False).load_checkpoint()
        found.checkpoints.append((run, tensors, values))
    return found


def _names(content: RecordDict) -> Iterator[Any]:
    for record in ("arrays", "config", "metrics"):
        yield tuple(sorted(content[record]))


def _examples(grid: _Listening, plan: Plan) -> Iterator[Example]:
    for kind, asked, told in grid.heard:
        name = kind.partition(".")[2].removeprefix(f"{plan.method.name}_")
        below: list[Any] = _below(Request)
        requests = [each for each in below if each.ACTION == name]
        example = _first(requests, asked, None)
        if example is None:
            continue
        yield example
        request: Any = example.read(asked)
        reply = None if told is None else _first(_below(Reply), told, request.encodings)
        if reply is not None:
            yield reply


def _first(
    kinds: Iterable[type[Declared]], content: RecordDict, encodings: Encodings | None
) -> Example | None:
    """Return the content as the first kind of message that reads it."""
    for kind in kinds:
        example = Example(kind, content, encodings or Encodings())
        try:
            example.read(content)
        except SflError:
            continue
        return example
    return None


def _below(kind: type[Declared]) -> list[type[Declared]]:
    below = [each for child in kind.__subclasses__() for each in (child, *_below(child))]
    return [each for each in dict.fromkeys(below) if "WHAT" in vars(each) or "ACTION" in vars(each)]
