"""What clients hold of client half and head, and what each is sent to come up to it.

Walks come down as their scalars, to the same bits as the weights.  Encoded differences lose a
little: what clients hold is the sum of all that was sent, everybody has that sum to the bit, and
what it still lacks is part of the next difference (error feedback, as of the server's messages in
DoubleSqueeze, arXiv 1905.05957).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfl_flower.config import Settings
from sfl_flower.errors import WireError
from sfl_flower.options import Form
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from sfl_flower.server.tensors import under
from sfl_flower.split import travelling_state
from sfl_flower.wire import StaleReply, pack_state, unpack_state
from sfl_flower.wire.downlink import (
    SCALARS,
    WEIGHTS,
    Changes,
    block,
    check_way,
    decode_difference,
    encode_difference,
    flat_values,
    followed_state,
    held_digest,
)
from sfl_flower.wire.weights import Packed
from sfl_flower.zo.walks import RoundOfWalks

__all__ = ["AUTO", "Downlink", "DownlinkSettings", "Plan"]

AUTO = "auto"
"""As "scalars", of no more steps than a client's own round may be worth."""
_PREFIX = "downlink."
_ENCODED = "weights, or an encoding such as int8 or topk:0.1+int4"


@dataclass(frozen=True)
class DownlinkSettings(Settings):
    """How client half and auxiliary head come down.

    Attributes
    ----------
    downlink : str
        How the client half comes down: all of its weights, or the differences since what a client
        holds, in an encoding (`sfl_flower.wire.encodings`).
    head_downlink : str
        How the auxiliary head comes down: its weights, or such differences.
    """

    downlink: Annotated[str, Form(_ENCODED)] = WEIGHTS
    head_downlink: Annotated[str, Form(_ENCODED)] = WEIGHTS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_way("downlink", self.downlink, self.more_ways)
        check_way("head_downlink", self.head_downlink)

    @property
    def more_ways(self) -> tuple[str, ...]:
        """What `downlink` may be beside weights and encodings."""
        return ()

    @property
    def ways(self) -> dict[str, str]:
        """How each half comes down, as requests say it."""
        return {"client": self.downlink, "head": self.head_downlink}

    @property
    def bounded(self) -> bool:
        """Whether walks come down only where following them is little beside a client's round."""
        return self.downlink == AUTO


class Plan(NamedTuple):
    """What a request brings of client half and head.

    Attributes
    ----------
    weights, head_weights : Packed
        Whole, or what changes do not tell of.
    told : dict of str to value
        Further fields of a `LocalRequest`.
    """

    weights: Packed
    head_weights: Packed
    told: dict[str, Any]


class Downlink:
    """Follows what clients hold, and plans how each comes up to date.

    Parameters
    ----------
    modules : Mapping[str, nn.Module]
        Client half and head, by "client" and "head", or one of them.
    ways : Mapping[str, str]
        How each comes down, as requests say it.
    here : collection of str
        Which of them the server trains itself: of these clients hold what was sent, and the server
        its own exact weights.  Of others the server has what clients hold.
    most_steps : int
        With scalars, the most steps of all walks together that a client follows in place of a
        download, for each of its own steps of a round; 0: any number.
    first : callable, optional
        Gives the halves as clients build them; where a run begins with these bits, a new client
        need not be sent them.
    held : Mapping[str, numpy.ndarray], optional
        The flat parameters that clients hold to begin with, by half; otherwise those that the
        halves have at the first request.
    who : str
        Whom a note about a download names.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        ways: Mapping[str, str],
        here: Collection[str] = (),
        most_steps: int = 0,
        first: Callable[[], Mapping[str, nn.Module]] | None = None,
        held: Mapping[str, np.ndarray] | None = None,
        who: str = "All clients download",
    ) -> None:
        self._modules, self._ways, self._here = modules, ways, here
        self._most_steps, self._build = most_steps, first
        self._first = ""
        self._followed = [name for name, way in ways.items() if way != WEIGHTS]
        self._held: dict[str, np.ndarray] = dict(held or {})
        self._who = who
        self._lacks: dict[str, np.ndarray] = {}
        self._digests: list[str] = []
        self._changes: list[tuple[bytes, int]] = []
        self._stands: dict[int, str] = {}

    def plans(self, steps: Mapping[Member, int]) -> dict[Member, Plan]:
        """Return what each client of a round is sent.

        Parameters
        ----------
        steps : Mapping[Member, int]
            The clients, and the steps that each takes in the round.
        """
        told: dict[str, Any] = {}
        if self._followed:
            self._begin()
            told = {
                "downlink": self._ways.get("client", WEIGHTS),
                "head_downlink": self._ways.get("head", WEIGHTS),
                "holds": self._digests[-1],
            }
        found = {}
        # Of this round alone; clients that stand at one version are sent the same object.
        packed, joined = cache(self._packed), cache(self._joined)
        for member, own in steps.items():
            changes = self._since(member, own, joined)
            if changes is None:
                found[member] = Plan(*packed(True), told)
            else:
                base = self._stands.get(member.node_id, self._first)
                more = {"base": base, "changes": changes or None}
                found[member] = Plan(*packed(False), {**told, **more})
        return found

    def _packed(self, whole: bool) -> tuple[Packed, Packed]:
        """Return client half and head packed, whole or without what changes tell of."""
        of = self._state if whole else self._rest
        return pack_state(of("client")), pack_state(of("head"))

    def synced(self, members: Iterable[Member]) -> None:
        """Note that clients showed that they hold what the requests of the round named."""
        for member in members if self._followed else ():
            self._stands[member.node_id] = self._digests[-1]

    def lost(self, member: Member, reply: StaleReply) -> None:
        """Note what a client says that it holds, "" for nothing."""
        self._stands[member.node_id] = reply.digest

    def advance(self, tally: Tally, walks: RoundOfWalks | None = None) -> None:
        """Make what the round led to what clients are brought up to.

        Of a half that comes as differences and is not trained here, the module is given what
        clients will hold: their next steps begin there, and so does everything that the server
        rebuilds, evaluates and keeps.

        Parameters
        ----------
        tally : Tally
            Is told where differences cannot be written.
        walks : RoundOfWalks, optional
            Those whose mean has been loaded into what walks; None where nothing was.
        """
        if not self._held:  # nothing is followed, or nobody was sent anything yet
            return
        self._begin()
        found, steps, fits = list[bytes](), 0, True
        for name in self._followed:
            own = flat_values(followed_state(self._modules[name]))
            if self._ways[name] == SCALARS:
                # What moved without walks that tell of it is downloaded.
                fits &= walks is not None or np.array_equal(own, self._held[name])
                self._held[name] = own
                continue
            try:
                found.append(self._difference(name, own))
            except WireError as error:
                tally.note(f"{self._who} the {name} half again: {error}")
                self._held[name], fits = own, False
                self._lacks.pop(name, None)
        if walks is not None and SCALARS in self._ways.values():
            found, steps = [block(SCALARS, walks.encode()), *found], walks.steps
        if not fits:
            self._digests, self._changes = [], []
        else:
            self._changes.append((b"".join(found), steps))
        self._digests.append(held_digest(self._held))
        self._forget()

    @property
    def follows(self) -> bool:
        """Whether clients keep a half between rounds, and are sent what changed of it."""
        return bool(self._followed)

    def _difference(self, name: str, own: np.ndarray) -> bytes:
        """Return the next difference of a half as a change; what clients hold then has it."""
        held, way = self._held[name], self._ways[name]
        trained_here = name in self._here
        lacked = self._lacks.get(name)
        wanted = own if trained_here or lacked is None else own + lacked
        data = encode_difference(way, wanted - held)
        self._held[name] = held + decode_difference(way, data, held.size)
        if not trained_here:
            self._lacks[name] = wanted - self._held[name]
            self._load(name)
        return block(name, data)

    def _load(self, name: str) -> None:
        state = followed_state(self._modules[name])
        packed = {"float32": self._held[name]} if state else {}
        with torch.no_grad():
            for key, value in unpack_state(packed, state).items():
                state[key].copy_(value)

    def _begin(self) -> None:
        """Take the halves as they are for what clients are brought up to, at the first request."""
        if self._digests:
            return
        for name in self._followed:
            self._held.setdefault(name, flat_values(followed_state(self._modules[name])))
        self._digests = [held_digest(self._held)]
        if self._build is not None:
            built = self._build()
            own = {name: flat_values(followed_state(built[name])) for name in self._followed}
            self._first = held_digest(own)

    def _joined(self, at: int) -> tuple[Changes, int]:
        """Return what changed since a version that is remembered, and the steps of its walks."""
        missing = self._changes[at:]
        return Changes(b"".join(data for data, _ in missing)), sum(n for _, n in missing)

    def _since(
        self, member: Member, own_steps: int, joined: Callable[[int], tuple[Changes, int]]
    ) -> Changes | None:
        """Return what changed since a client's version, None where it is sent all of it."""
        stands = self._stands.get(member.node_id, self._first)
        if not self._followed or stands not in self._digests:
            return None
        at = len(self._digests) - 1 - self._digests[::-1].index(stands)
        changes, walked = joined(at)
        if len(changes) > self._whole_bytes():
            return None
        if self._most_steps and walked > self._most_steps * own_steps:
            return None
        return changes

    def _whole_bytes(self) -> int:
        return sum(value.nbytes for value in self._held.values())

    def _forget(self) -> None:
        """Forget changes that nobody is sent, because all of it is fewer bytes."""
        size = sum(len(data) for data, _ in self._changes)
        while size > self._whole_bytes():
            size -= len(self._changes.pop(0)[0])
            del self._digests[0]

    def _state(self, name: str) -> dict[str, Tensor]:
        """Return a half as clients are to have it."""
        if name not in self._modules:
            return {}
        module = self._modules[name]
        if name not in self._followed or name not in self._here:
            return travelling_state(module)
        told = followed_state(module)
        packed = {"float32": self._held[name]} if told else {}
        return {**travelling_state(module), **unpack_state(packed, told)}

    def _rest(self, name: str) -> dict[str, Tensor]:
        """Return what changes do not tell of a half."""
        if name not in self._modules:
            return {}
        state = travelling_state(self._modules[name])
        told = followed_state(self._modules[name]) if name in self._followed else {}
        return {key: value for key, value in state.items() if key not in told}

    def tensors(self) -> dict[str, Tensor]:
        """Return what goes on from a checkpoint: what clients hold, and what they still lack."""
        found = {f"{_PREFIX}held.{k}": torch.from_numpy(v) for k, v in self._held.items()}
        return found | {f"{_PREFIX}lacks.{k}": torch.from_numpy(v) for k, v in self._lacks.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; every client then downloads once.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Of a checkpoint; other names are passed over.
        """
        own = under(_PREFIX, tensors)
        self._held, self._lacks = (
            {k: v.cpu().numpy().copy() for k, v in under(kind, own).items() if k in self._followed}
            for kind in ("held.", "lacks.")
        )
        self._digests, self._changes = [], []
        self._stands.clear()
