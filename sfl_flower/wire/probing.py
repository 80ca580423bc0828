"""How a `Probing` travels: its settings, the same in every request; and how a guide does."""

from __future__ import annotations

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

__all__ = ["GuideSigns", "Probes", "Seal", "along"]


def _read(reader: Reader, name: str) -> Probing:
    private = reader.has("clip")
    shy = reader.has("nopeek")
    if shy:
        reader.text("beside", MEASURES)
    return Probing(
        probes=reader.integer("probes", 1, MOST_PROBES),
        law=reader.text("law", tuple(LAWS)),
        mu=reader.number("mu", *MU_RANGE),
        estimator=reader.text("estimator", tuple(ESTIMATORS)),
        stack=reader.integer("stack", 1, MOST_PROBES) if reader.has("stack") else 1,
        channel=reader.integer("channel", 1, MOST_DIMENSIONS) if reader.has("channel") else 0,
        clip=reader.number("clip", 0.0, LARGEST_AMOUNT) if private else 0.0,
        noise=reader.number("noise", 0.0, LARGEST_AMOUNT) if private else 0.0,
        nopeek=reader.number("nopeek", 0.0, MOST_NOPEEK) if shy else 0.0,
    )


def _write(draft: Draft, name: str, probing: Probing) -> None:
    draft.setting("probes", probing.probes)
    draft.setting("law", probing.law)
    draft.setting("mu", probing.mu)
    draft.setting("estimator", probing.estimator)
    if probing.stack > 1:
        draft.setting("stack", probing.stack)
    if probing.channel:
        draft.setting("channel", probing.channel)
    if probing.clip:
        # Both or neither: a request that lost one of them would be answered with less noise.
        draft.setting("clip", probing.clip)
        draft.setting("noise", probing.noise)
    if probing.nopeek:
        # Both or neither, again: one without the other is an entry that nobody asks for.
        draft.setting("nopeek", probing.nopeek)
        draft.setting("beside", MEASURES[0])


Probes = Annotated[Probing, Codec(_read, _write, standing=True)]
"""P, law, μ and estimator, as `probes`, `law`, `mu`, `estimator`; `stack` above 1; `channel`;
`clip` and `noise` where samples are told apart; `nopeek` and `beside`, what it is the weight of."""

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
