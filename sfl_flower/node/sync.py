"""Bringing a client to the server's version: nothing to do, replay, or download."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import torch

from sfl_flower.errors import JournalError, WireError
from sfl_flower.node.node import HeldModule, Node
from sfl_flower.split import carried_state, load_travelling, travelling_state
from sfl_flower.training.device import to_array
from sfl_flower.wire import StaleReply, Sync, pack_state, unpack_state
from sfl_flower.zo import JournalHeader, Replica, manifest_digest
from sfl_flower.zo.journal import Tail

__all__ = ["bring_up", "forget_recent", "journal_key", "stand_still", "standing"]

_REST, _REPLICA, _POSITION = "rest", "replica", "position"
_WEIGHTS = "weights."

# A digest names parameters to the bit, whoever computed them.  The virtual clients that share a
# process therefore replay each update once, not once each; their own state is what decides
# whether they may.
_RECENT: OrderedDict[str, Replica] = OrderedDict()
_RECENT_REPLICAS = 2


def forget_recent() -> None:
    """Forget the replicas this process shares among its clients."""
    _RECENT.clear()


def bring_up(node: Node, sync: Sync, half: HeldModule | None = None) -> int | StaleReply:
    """Bring a client's parameters to the version a request names, and load them.

    Parameters
    ----------
    node : Node
        The client.
    sync : Sync
        From where, to where, and what is missing in between.
    half : HeldModule, optional
        What the journal trains; the client half by default.

    Returns
    -------
    int or StaleReply
        The version the client stood on before, -1 for none; or, where the sync does not continue
        from there, the reply that says so.

    Raises
    ------
    WireError
        If the two sides run different models, or a download does not hold what it declares.
    """
    half = half or node.half
    version, digest = _position(node, half, recover=sync.kind != "full")
    if sync.kind == "full":
        replica = _download(node, sync, half)
    else:
        if (version, digest) != (sync.base_version, sync.base_digest):
            return StaleReply(version, digest)
        found = _follow(node, sync, half)
        if found is None:
            return StaleReply(-1)
        replica = found
    if digest != sync.digest or sync.kind == "full":
        if sync.kind == "full" or not node.store.share(_REPLICA, sync.digest):
            node.store.put(_REPLICA, replica.to_arrays(), content=sync.digest)
        node.store.put_text(_POSITION, {"version": sync.version, "digest": sync.digest})
    _remember(replica, sync.digest)
    return version if _load(node, half, replica, sync.digest) else StaleReply(-1)


def stand_still(node: Node) -> int | StaleReply:
    """Load the version that a client stands at; the reply that says so where it is lost.

    Returns
    -------
    int or StaleReply
        As `bring_up`.
    """
    version, digest = _position(node, node.half, recover=True)
    if version < 0:
        return StaleReply(-1)
    return bring_up(node, Sync("none", version, digest, version, digest))


def journal_key(node: Node) -> bytes:
    """Return the key of the run's directions, as the journal's header gave it at the download."""
    rest = node.store.get(_REST)
    if rest is None:
        raise WireError("The client has no journal header; it must be synced before it probes.")
    return JournalHeader.decode(rest["header"].tobytes()).run_key


def standing(node: Node) -> Replica:
    """Return the replica that a client stands on, just brought up; not to be changed."""
    return _RECENT[str(node.store.get_text(_POSITION)["digest"])]


def _position(node: Node, half: HeldModule, recover: bool) -> tuple[int, str]:
    """Return the version and the digest where a client stands, -1 for none."""
    position = node.store.get_text(_POSITION)
    if not position and recover and (replica := _recovered(node, half)) is not None:
        position = {"version": replica.version, "digest": replica.digest.hex()}
        node.store.put_text(_POSITION, position)
    return int(position.get("version", -1)), str(position.get("digest", ""))


def _recovered(node: Node, half: HeldModule) -> Replica | None:
    """Return the replica in the files of a client that was started again, None without one."""
    rest, arrays = node.store.recover(_REST), node.store.recover(_REPLICA)
    if rest is None or arrays is None:
        return None
    try:
        header = JournalHeader.decode(rest["header"].tobytes())
        return Replica.from_arrays(arrays, header, half.trained.shapes)
    except (JournalError, KeyError):
        return None


def _remember(replica: Replica, digest: str) -> None:
    _RECENT[digest] = replica
    _RECENT.move_to_end(digest)
    while len(_RECENT) > _RECENT_REPLICAS:
        _RECENT.popitem(last=False)


def _download(node: Node, sync: Sync, half: HeldModule) -> Replica:
    vector = half.trained
    half.holds = ""
    packed = {k.removeprefix(_WEIGHTS): v for k, v in sync.state.items() if k.startswith(_WEIGHTS)}
    state = unpack_state(packed, travelling_state(half.module))
    load_travelling(half.module, state)
    header = JournalHeader.decode(sync.state["header"].tobytes())
    basis = carried_state(half.module)
    if header.manifest_digest != manifest_digest(vector.manifest(), basis):
        along = ", or moves them along other directions of a subspace" if basis else ""
        raise WireError(
            f"The server trains other parameters than this client's model has{along}; the two "
            "sides run different models."
        )
    if sync.version == 0:
        replica = Replica.initial(vector.anchor, header, vector.shapes)
    else:
        known = {k: v for k, v in sync.state.items() if not k.startswith((_WEIGHTS, "header"))}
        expected = known.pop("params").tobytes()
        known["theta"] = to_array(vector.anchor)
        replica = Replica.from_arrays(known, header, vector.shapes)
        if replica.params_digest() != expected:
            raise WireError("The downloaded parameters do not match their digest.")
    if (replica.version, replica.digest.hex()) != (sync.version, sync.digest):
        raise WireError("The download holds another version than the request names.")
    rest = pack_state({k: v for k, v in state.items() if k not in vector.names})
    rest["header"] = sync.state["header"]
    node.store.put(_REST, rest, content=_content(rest))
    return replica


def _content(arrays: Mapping[str, np.ndarray]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _follow(node: Node, sync: Sync, half: HeldModule) -> Replica | None:
    """Return the replica at the version asked for, None where the client lost what it had."""
    if sync.digest in _RECENT:
        return _RECENT[sync.digest]
    try:
        tail = Tail.decode(sync.tail) if sync.kind == "tail" else None
        replica = _nearest(node, tail, half)
        if replica is not None and tail is not None:
            replica.replay_tail(tail.after(replica.version))
    except (JournalError, WireError, KeyError):
        return None
    if replica is None:
        return None
    at = (replica.version, replica.digest.hex())
    return replica if at == (sync.version, sync.digest) else None


def _nearest(node: Node, tail: Tail | None, half: HeldModule) -> Replica | None:
    """Return a replica of the client's own to replay a tail from, None where all is lost.

    A shared replica on the tail's way, the further the better, saves the entries before it.
    """
    for digest in reversed(tail.digests() if tail is not None else ()):
        if near := _RECENT.get(digest.hex()):
            return near.clone()
    rest, arrays = node.store.get(_REST), node.store.get(_REPLICA)
    if rest is None or arrays is None:
        return None
    header = JournalHeader.decode(rest["header"].tobytes())
    return Replica.from_arrays(arrays, header, half.trained.shapes)


def _load(node: Node, half: HeldModule, replica: Replica, digest: str) -> bool:
    """Put the parameters into the half; False where the client lost what goes with them."""
    if half.holds == digest:
        return True
    vector = half.trained
    vector.load(replica.theta)
    rest = node.store.get(_REST)
    if rest is None:
        half.holds = ""
        return False
    rest.pop("header")
    own = travelling_state(half.module)
    like = {k: v for k, v in own.items() if k not in vector.names}
    with torch.no_grad():
        for name, value in unpack_state(rest, like).items():
            own[name].copy_(value)
    half.holds = digest
    return True
