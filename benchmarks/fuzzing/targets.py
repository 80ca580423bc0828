"""The decoders: each takes damage and either reads what comes of it or refuses it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.fuzzing.corpus import Corpus, small_plan
from benchmarks.fuzzing.damage import (
    Draw,
    damaged_bytes,
    damaged_content,
    damaged_json,
    damaged_tensors,
)
from sfl_flower.errors import ConfigError
from sfl_flower.methods import read_options
from sfl_flower.report import History, RoundRecord, RunDirectory
from sfl_flower.report.asked_file import ASKED, Asked, AskedFile
from sfl_flower.report.checkpoints import Checkpoints
from sfl_flower.report.files import config_digest
from sfl_flower.report.tensors import _sum, load_tensors
from sfl_flower.run.run_config import read_run_config
from sfl_flower.server.checkpoint import Progress
from sfl_flower.tasks import read_task_options
from sfl_flower.wire.downlink import blocks, change_bytes, decode_difference
from sfl_flower.zo import Entry, Guide, Journal, JournalHeader, Tail
from sfl_flower.zo.header import header_bytes
from sfl_flower.zo.journal import _checksum, tail_bytes, tail_ends
from sfl_flower.zo.walks import RoundOfWalks

__all__ = ["Target", "targets"]

Target = Callable[[Draw], object]
SEAL = 16
"""Bytes of the checksum behind a journal file."""
BYTES: Mapping[str, Callable[[bytes], object]] = {
    "tail": Tail.decode,
    "tail_ends": tail_ends,
    "tail_bytes": tail_bytes,
    "entry": Entry.decode,
    "header": JournalHeader.decode,
    "guide": Guide.decode,
    "walks": RoundOfWalks.decode,
    "walks_bytes": RoundOfWalks.bytes_of,
    "changes": lambda data: [*blocks(data)],
    "change_bytes": change_bytes,
    "difference": lambda data: decode_difference("topk:0.5+int8", data, 40),
    "deflated difference": lambda data: decode_difference("int8+deflate", data, 40),
}
"""Decoders of bytes that stand in messages and journals."""


def targets(found: Corpus, scratch: Path) -> dict[str, Target]:
    """Return the decoders by kind, over a corpus.

    Parameters
    ----------
    found : Corpus
        What is damaged; nothing in it changes.
    scratch : Path
        A directory for damaged files.
    """
    pieces = _pieces(found)
    return {
        "messages": partial(_message, found),
        "journals": partial(_journal, found, pieces),
        "checkpoints": partial(_checkpoint, found, scratch),
        "resumes": partial(_resume, found),
        "configurations": partial(_configuration, found, scratch),
    }


def _pieces(found: Corpus) -> list[bytes]:
    """Return what stands in messages and journals as bytes: heads, tails, entries, changes."""
    pieces = []
    for data in found.journals:
        body = data[:-SEAL]
        at = header_bytes(body)
        pieces += [body[:at], body[at:]]
        pieces += [entry.encode() for entry in Journal.decode(data).entries]
        pieces += [e.guide.encode() for e in Journal.decode(data).entries if e.guide is not None]
    for example in found.messages:
        pieces += [a.data for a in example.content.array_records["arrays"].values()]
    return [*dict.fromkeys(pieces)]


def _message(found: Corpus, draw: Draw) -> object:
    example = draw.one(found.messages)
    return example.read(damaged_content(example.content, draw))


def _journal(found: Corpus, pieces: list[bytes], draw: Draw) -> object:
    if draw.below(4):
        name = draw.one(sorted(BYTES))
        return BYTES[name](damaged_bytes(draw.one(pieces), draw))
    data = draw.one(found.journals)
    if draw.below(4):  # with a checksum that fits, so that what is behind it is read
        body = damaged_bytes(data[:-SEAL], draw)
        return Journal.decode(body + _checksum(body))
    return Journal.decode(damaged_bytes(data, draw))


def _checkpoint(found: Corpus, scratch: Path, draw: Draw) -> object:
    out, names = draw.one(found.directories), ("checkpoint.safetensors", "model.safetensors")
    name, path = draw.one(names), scratch / "fuzzed.safetensors"
    data = (out / name).read_bytes()
    size = int.from_bytes(data[:8], "little")
    kind = draw.below(4)
    if kind == 0:
        data = damaged_bytes(data, draw)
    elif kind == 1:  # in the head, whose length then fits again
        head = damaged_bytes(data[8 : 8 + size], draw)
        data = len(head).to_bytes(8, "little") + head + data[8 + size :]
    else:
        table = json.loads(data[8 : 8 + size])
        if kind == 2:
            table = damaged_json(table, draw)
        else:  # with a digest of the metadata that fits, so that what is behind it is read
            meta = damaged_json(table["__metadata__"], draw)
            meta = meta if isinstance(meta, dict) else {}
            meta = {k: v for k, v in meta.items() if isinstance(v, str) and v.isprintable()}
            table["__metadata__"] = {**meta, "sha256": _sum(meta)}
        head = json.dumps(table).encode()
        data = len(head).to_bytes(8, "little") + head + data[8 + size :]
    path.write_bytes(data)
    if name == names[1]:
        return load_tensors(path, "the model")
    checkpoints = Checkpoints(scratch)
    checkpoints.last = path
    _, meta = checkpoints.load()
    return Progress.read(meta)


def _resume(found: Corpus, draw: Draw) -> object:
    run, tensors, values = draw.one(found.checkpoints)
    task, plan = small_plan(run)
    strategy = plan.method.server(task, plan.config, plan.settings)
    if draw.below(4):
        tensors = damaged_tensors(tensors, draw)
    else:
        changed = damaged_json(json.loads(json.dumps(values)), draw)
        values = changed if isinstance(changed, dict) else values
    strategy.resume(tensors, values)
    return strategy.round


def _configuration(found: Corpus, scratch: Path, draw: Draw) -> object:
    kind = draw.below(8)
    if kind == 7:
        return _asked(scratch, draw)
    if kind < 3:
        options = damaged_json(draw.one(found.options), draw)
        return read_options(options if isinstance(options, dict) else {"rounds": options})
    if kind == 3:
        text = damaged_bytes(b"probes=8 client-lr=0.01 task.train-size='5 0'", draw)
        read = read_run_config({"options": text.decode(errors="replace"), "rounds": 3})
        own = {k.removeprefix("task."): v for k, v in read.items() if k.startswith("task.")}
        return read_task_options("digits", own)
    out = draw.one(found.directories)
    name = {4: "config.json", 5: "history.jsonl", 6: "summary.json"}[kind]
    data = (out / name).read_bytes()
    if draw.below(2) and kind != 5:
        text = json.dumps(_sealed(damaged_json(json.loads(data), draw), kind)).encode()
    else:
        text = damaged_bytes(data, draw)
    (scratch / name).write_bytes(text)
    directory = RunDirectory(scratch, tensorboard=False)
    if kind == 4:
        return directory.config, directory.measured
    if kind == 5:
        line = text.split(b"\n")[0].decode(errors="replace")
        History.load(scratch / name)
        return RoundRecord.from_json(line)
    return directory.load_summary()


def _asked(scratch: Path, draw: Draw) -> object:
    """Read what a run says it asked clients for, damaged; in half of the cases sealed again."""
    path = scratch / ASKED
    path.unlink(missing_ok=True)
    file = AskedFile(path)
    for round in range(1, 4):
        file.append(Asked(round, 0.5, {0: 8, 1: 9}))
    lines, seal = path.read_bytes(), ""
    if draw.below(2):
        path.write_bytes(damaged_bytes(lines, draw))
        return file.load()
    found, struck = list[str](), draw.below(3)
    for at, line in enumerate(lines.splitlines()):
        values = {k: v for k, v in json.loads(line).items() if k != "sha256"}
        changed = damaged_json(values, draw) if at == struck else values
        values = changed if isinstance(changed, dict) else values
        with contextlib.suppress(ConfigError):  # NaN has no digest
            seal = config_digest({**values, "before": seal})
        found.append(json.dumps({**values, "sha256": seal}))
    path.write_text("\n".join(found) + "\n")
    return file.load()


def _sealed(document: object, kind: int) -> object:
    """Return a document with digests that fit, so that what is behind them is read."""
    with contextlib.suppress(ConfigError):  # NaN has no digest
        if kind == 4 and isinstance(document, dict) and isinstance(document.get("config"), dict):
            return {**document, "sha256": config_digest(document["config"])}
        if kind == 6 and isinstance(document, dict):
            rest = {key: value for key, value in document.items() if key != "sha256"}
            return {**rest, "sha256": config_digest(rest)}
    return document
