"""What the messages of several methods hold, and those that no method owns: join, stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from flwr.app import RecordDict

from sfl_flower.errors import WireError
from sfl_flower.training.device import DEVICES
from sfl_flower.wire.draft import Draft, Encodings
from sfl_flower.wire.fields import (
    Directions,
    EncodingName,
    Version,
    array,
    flag,
    group,
    hexadecimal,
    metric,
    number,
    octets,
    text,
    whole,
)
from sfl_flower.wire.message import Part, Reply, Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.terms import TERMS
from sfl_flower.zo import tail_bytes, tail_ends

__all__ = [
    "JoinReply",
    "JoinRequest",
    "Setup",
    "StaleReply",
    "Sync",
    "UnknownTerms",
    "check_batch",
    "is_stale",
    "lacks_terms",
]

_NONE = "none"


def _never(told: Mapping[str, Any]) -> bool:
    return False


def _state_category(name: str) -> str:
    """Return what an array of a download is booked as: weights and optimiser state as weights."""
    return "weights" if name.startswith(("weights.", "slot.")) else ""


def _tail_bytes(data: bytes) -> dict[str, int]:
    """Return the bytes of coefficients, and of what names directions, in a journal's tail."""
    try:
        return tail_bytes(data)
    except WireError:  # whoever replays it refuses it, and says why
        return {}


LONGEST_CHOICE = 2**18
"""Characters of a choice of parameters: a line for each layer and parameter."""
LARGEST_COUNT = 2**31 - 1
"""Largest number of a partition, and of samples that a node may say it holds."""


@dataclass(frozen=True)
class Sync(Part):
    """How a client comes to the server's version of the client half.

    Attributes
    ----------
    kind : {"none", "tail", "full"}
        Nothing to do, replay of missing journal entries, or download.
    base_version, base_digest : int, str
        Where the client must stand for `none` and `tail`; ignored for `full`.
    version, digest : int, str
        Where it stands afterwards; the digest is the journal's, in hex.
    tail : bytes
        For `tail`: encoded journal entries.
    state : Mapping[str, numpy.ndarray]
        For `full`: flat arrays of parameters, buffers and optimiser state.
    """

    kind: Annotated[Literal["none", "tail", "full"], text(("none", "tail", "full")).called("sync")]
    base_version: Annotated[int, whole().when(_never)] = 0
    base_digest: Annotated[str, text().when(_never)] = ""
    version: Annotated[int, whole().when(lambda sync: sync["kind"] != "tail")] = 0
    digest: Annotated[str, hexadecimal().when(lambda sync: sync["kind"] != "tail")] = ""
    tail: Annotated[bytes, octets(_tail_bytes).when(lambda sync: sync["kind"] == "tail")] = b""
    state: Annotated[
        Mapping[str, np.ndarray],
        group("state.", _state_category).when(lambda sync: sync["kind"] == "full"),
    ] = field(default_factory=dict)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the fields; what a tail says itself, and what both ends have in common, is derived.

        Raises
        ------
        WireError
            Also if the tail is none.
        """
        sync = super().read(reader)
        if sync.kind == "full":
            return sync
        if sync.kind == "none":
            return replace(sync, base_version=sync.version, base_digest=sync.digest)
        since, base, version, digest = tail_ends(sync.tail)
        return replace(
            sync,
            base_version=since,
            base_digest=base.hex(),
            version=version,
            digest=digest.hex(),
        )


@dataclass(frozen=True)
class Setup(Part):
    """What every request says of the run.

    Attributes
    ----------
    model_seed : int
        The seed of the model's first weights.
    partition : str
        The partitioning of the data as JSON, "local" for clients with data of their own.
    threads : int
        Threads that torch uses on the client.
    smashed, gradients : str
        How smashed data and cut gradients travel, names of `sfl_flower.wire.encodings`.
    device : str
        Where the client computes, one of `DEVICES`, unless its node configuration says otherwise.
    mode : {"as_built", "eval"}
        Mode of the client half, or of the whole model where there is no cut.
    micro_batch : int
        Most samples of a mini-batch that the client runs at one time, 0 for all.
    checkpointing : bool
        Whether backprop runs segments of what the client holds again.
    trained : str
        Which client parameters are trained, where the server has chosen; else the task says.
    label_epsilon : float
        ε of the labels that the client trains on; 0 for its own labels.
    key : str
        The key of the client that is asked; `Request.addressed` puts it in.
    carried : Carried or None
        Directions of subspaces, None for none and at the join.
    """

    STANDING: ClassVar[bool] = True

    model_seed: int
    partition: str
    threads: Annotated[int, whole(low=1, high=1024)] = 1
    smashed: EncodingName = "float32"
    gradients: EncodingName = "float32"
    device: Annotated[str, text(DEVICES)] = "cpu"
    mode: Annotated[str, text(("as_built", "eval"))] = "as_built"
    micro_batch: int = 0
    checkpointing: bool = False
    trained: Annotated[str, text(longest=LONGEST_CHOICE)] = ""
    label_epsilon: Annotated[float, number(0.0, 1e3)] = 0.0
    key: Annotated[str, text(longest=64)] = ""
    carried: Directions | None = None

    @property
    def encodings(self) -> Encodings:
        """How smashed data and cut gradients travel."""
        return Encodings(self.smashed, self.gradients)

    def write(self, draft: Draft) -> None:
        """Add the fields; what of the message follows travels as they say."""
        super().write(draft)
        draft.encodings = self.encodings

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the fields; what of the message follows travels as they say."""
        setup = super().read(reader)
        reader.encodings = setup.encodings
        return setup


@dataclass(frozen=True)
class JoinRequest(Request):
    """Ask a node who it is and how much data it holds.

    Attributes
    ----------
    base : str or None
        Digest in hex of what the server has frozen of what clients hold, None for nothing; a node
        with another cannot take part.
    whole : bool
        With a digest: whether clients hold the whole model instead of the client half.
    head : str
        With a digest: kind of an auxiliary head that has frozen parts too, empty for none.
    moments : bool
        Whether it is asked what enters the layers that are to move in directions.
    secure : bool
        Whether it is asked for a public key, for secure sums.
    """

    ACTION: ClassVar[str] = "join"

    @classmethod
    def message_type(cls, method: str) -> str:
        """Return Flower's type of the message, the same for every method."""
        return "query.join"

    def addressed(self, key: str) -> Self:
        """Return the request as it is: whose key a node may have is known when it has answered."""
        return self

    setup: Setup
    base: Annotated[str, hexadecimal()] | None = None
    whole: Annotated[bool, flag().when(lambda request: request["base"] is not None)] = False
    head: Annotated[str, text(empty=_NONE).when(lambda request: request["base"] is not None)] = ""
    moments: bool = False
    secure: bool = False


@dataclass(frozen=True)
class JoinReply(Reply):
    """Who a node is, or why it cannot take part.

    Attributes
    ----------
    partition : int
        The number of its share of the data, in [0, 2**31); -1 with a problem only.
    samples : int
        Training samples it holds, below 2**31.
    problem : str
        Why it cannot take part, empty where it can.
    data : str
        Digest in hex of the training set it has loaded, before it is divided; empty with a problem.
    moments : numpy.ndarray or None
        What was asked for, float32, shape [n]: `sfl_flower.split.sketch_moments`.
    key : bytes or None
        The node's public key, `KEY_BYTES`, where it was asked for.
    """

    WHAT: ClassVar[str] = "join reply"
    SPOKEN: ClassVar[bool] = False

    partition: Annotated[int, whole(low=-1, high=LARGEST_COUNT).called("partition-id")]
    samples: Annotated[int, metric(high=LARGEST_COUNT).called("num-examples")]
    problem: Annotated[str, text(empty=_NONE)] = ""
    data: Annotated[str, text(empty=_NONE)] = ""
    moments: Annotated[np.ndarray, array("float32", "moments", ndim=1)] | None = None
    key: Annotated[bytes, octets(lambda data: {"secure": len(data)})] | None = None

    def check(self, reader: Reader) -> None:
        """Refuse a node without a number that says it can take part."""
        if self.partition < 0 and not self.problem:
            raise reader.fail(f"has partition-id={self.partition}, expected at least 0")


@dataclass(frozen=True)
class StaleReply(Reply):
    """A client that does not stand where the sync began: it names where it stands.

    Attributes
    ----------
    version : int
        The client's version, -1 for none.
    digest : str
        The digest of that version in hex.
    """

    WHAT: ClassVar[str] = "stale reply"
    STATUS: ClassVar[str] = "stale"

    version: Version
    digest: Annotated[str, hexadecimal()] = ""


@dataclass(frozen=True)
class UnknownTerms(Reply):
    """A client that lacks terms, or what is carried once: it needs the whole request."""

    WHAT: ClassVar[str] = "reply without terms"
    STATUS: ClassVar[str] = TERMS


def is_stale(content: RecordDict) -> bool:
    """Tell whether an arrived reply says that the client must be synced anew."""
    return _status(content) == StaleReply.STATUS


def lacks_terms(content: RecordDict) -> bool:
    """Tell whether an arrived reply says that the request must be sent whole."""
    return _status(content) == UnknownTerms.STATUS


def _status(content: RecordDict) -> object:
    config = content.config_records.get("config")
    return None if config is None else config.get("status")


def check_batch(
    reader: Reader, z: np.ndarray, y: np.ndarray, sizes: np.ndarray | None = None
) -> None:
    """Refuse smashed data, labels and mini-batch sizes that do not fit one another."""
    count = z.shape[0] if z.ndim else 0
    if z.ndim < 2 or y.ndim < 1 or y.shape[0] != count or not (z.size and y.size):
        raise reader.fail(f"has smashed data of shape {z.shape} with labels of shape {y.shape}")
    if sizes is None:
        return
    # Each size is bounded before they are summed: a sum of int64 wraps around.
    legal = sizes.size <= count and ((sizes >= 1) & (sizes <= count)).all()
    if not legal or int(sizes.sum()) != count:
        raise reader.fail(f"has mini-batches of {sizes[:8].tolist()} for {count} samples")
