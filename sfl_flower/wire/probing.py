"""How a `Probing` travels: four settings, the same in every request of a method with probes."""

from __future__ import annotations

from typing import Annotated

from sfl_flower.wire.draft import Draft
from sfl_flower.wire.fields import Codec
from sfl_flower.wire.reader import Reader
from sfl_flower.zo import ESTIMATORS, LAWS, Probing
from sfl_flower.zo.probing import MOST_PROBES, MU_RANGE

__all__ = ["Probes"]


def _read(reader: Reader, name: str) -> Probing:
    return Probing(
        probes=reader.integer("probes", 1, MOST_PROBES),
        law=reader.text("law", tuple(LAWS)),
        mu=reader.number("mu", *MU_RANGE),
        estimator=reader.text("estimator", tuple(ESTIMATORS)),
    )


def _write(draft: Draft, name: str, probing: Probing) -> None:
    draft.setting("probes", probing.probes)
    draft.setting("law", probing.law)
    draft.setting("mu", probing.mu)
    draft.setting("estimator", probing.estimator)


Probes = Annotated[Probing, Codec(_read, _write, standing=True)]
"""P, direction law, μ and estimator, as `probes`, `law`, `mu` and `estimator`."""
