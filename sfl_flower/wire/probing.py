"""How a `Probing` travels: its settings, the same in every request; and how a guide does."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Annotated

from sfl_flower.errors import WireError
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.fields import Codec, octets
from sfl_flower.wire.reader import Reader
from sfl_flower.zo import ESTIMATORS, LAWS, Direction, Directions, Guide, Probing
from sfl_flower.zo.probing import MOST_NOPEEK, MOST_PROBES, MU_RANGE

MOST_DIMENSIONS = 16
LARGEST_AMOUNT = 1e30
"""Of a clip, and of noise in units of it."""
MEASURES = ("dcor",)
"""What a client may measure beside the loss, by name."""
NO_DCOR = -1.0
"""What a client says that was asked for a distance correlation and took none that tells a thing."""
_BOUNDED = "+clip"
"""Behind the estimator's name where samples are bounded."""

__all__ = [
    "NO_DCOR",
    "BoundedProbes",
    "Dcor",
    "GuideSigns",
    "LocalProbes",
    "PlainProbes",
    "Probes",
    "Seal",
    "along",
]


def _read(may: Collection[str], reader: Reader, name: str) -> Probing:
    """Read how to probe; an entry that the message may not bring stays unknown to its reader."""

    def brings(name: str) -> bool:
        return name in may and reader.has(name)

    ways = [rule + more for rule in ESTIMATORS for more in ("", _BOUNDED)[: 1 + ("clip" in may)]]
    estimator = reader.text("estimator", ways)
    private, shy = estimator.endswith(_BOUNDED), brings("nopeek")
    if shy:
        reader.text("beside", MEASURES)
    return Probing(
        probes=reader.integer("probes", 1, MOST_PROBES),
        law=reader.text("law", tuple(LAWS)),
        mu=reader.number("mu", *MU_RANGE),
        estimator=estimator.removesuffix(_BOUNDED),
        stack=reader.integer("stack", 1, MOST_PROBES) if brings("stack") else 1,
        channel=reader.integer("channel", 1, MOST_DIMENSIONS) if brings("channel") else 0,
        clip=reader.number("clip", 0.0, LARGEST_AMOUNT) if private else 0.0,
        noise=reader.number("noise", 0.0, LARGEST_AMOUNT) if private else 0.0,
        nopeek=reader.number("nopeek", 0.0, MOST_NOPEEK) if shy else 0.0,
    )


def _write(may: Collection[str], draft: Draft, name: str, probing: Probing) -> None:
    own, plain = vars(probing), {"stack": 1, "channel": 0, "clip": 0.0, "nopeek": 0.0}
    for entry in plain.keys() - may:
        if own[entry] != plain[entry]:
            raise WireError(
                f"Clients that get this request know nothing of {entry}={own[entry]:g}; it must be "
                f"{plain[entry]:g}."
            )
    draft.setting("probes", probing.probes)
    draft.setting("law", probing.law)
    draft.setting("mu", probing.mu)
    # Said a third time: a request that lost clip and noise is refused by the client, not answered.
    draft.setting("estimator", probing.estimator + (_BOUNDED if probing.clip else ""))
    if probing.stack > 1:
        draft.setting("stack", probing.stack)
    if probing.channel:
        draft.setting("channel", probing.channel)
    if probing.clip:
        draft.setting("clip", probing.clip)
        draft.setting("noise", probing.noise)
    if probing.nopeek:
        # Both or neither, again: one without the other is an entry that nobody asks for.
        draft.setting("nopeek", probing.nopeek)
        draft.setting("beside", MEASURES[0])


def _codec(*may: str) -> Codec:
    """Return the codec of a message whose clients do what these entries say, and no others."""
    return Codec(partial(_read, may), partial(_write, may), standing=True)


Probes = Annotated[Probing, _codec("stack", "channel", "clip", "nopeek")]
"""P, law, μ and estimator, as `probes`, `law`, `mu`, `estimator`; `stack` above 1; `channel`;
`clip` and `noise` where samples are bounded, which `estimator` then says too; `nopeek` and
`beside`, what it is the weight of."""

LocalProbes = Annotated[Probing, _codec("stack", "clip", "nopeek")]
"""As `Probes`, for clients with a loss of their own, which no channel takes a part of."""

BoundedProbes = Annotated[Probing, _codec("clip")]
"""As `Probes`, for clients that bound samples, and have neither smashed data nor factors."""

PlainProbes = Annotated[Probing, _codec()]
"""As `Probes`, with P, law, μ and estimator alone."""


def _correlation(reader: Reader, name: str) -> float:
    value = reader.number(name, NO_DCOR, 1.0)
    if NO_DCOR < value < 0:
        raise reader.fail(f"has {name}={value!r}, expected {NO_DCOR:g} or a number in [0, 1]")
    return value


Dcor = Annotated[float, Codec(_correlation)]
"""A distance correlation in [0, 1], or `NO_DCOR`."""

_BYTES = octets(lambda data: {"keys": len(data)})

Seal = Annotated[bytes, _BYTES]
"""16 bytes without which the directions of a round are not known; booked as keys."""

GuideSigns = Annotated[
    Guide,
    Codec(
        lambda reader, name: Guide.decode(_BYTES.read(reader, name)),
        lambda draft, name, guide: _BYTES.write(draft, name, guide.encode()),
    ),
]
"""A direction that no key gives, as its bytes; booked as keys, for it names a direction."""


def along(directions: Directions, guide: Guide | None) -> list[Direction]:
    """Return what a client probes beside its drawn directions: the guide that a request brought.

    Raises
    ------
    WireError
        If it is a direction over other parameters.
    """
    if guide is None:
        return []
    if not guide.fits(directions.shapes):
        raise WireError("The guide is a direction over other parameters than this client trains.")
    return [directions.along(guide)]
