"""What was found of each client's answers over a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sfl_flower.report.history import RoundRecord

__all__ = ["Conduct", "conduct", "conduct_lines", "rounds_each"]

Conduct = Mapping[str, Mapping[str, int]]
"""By client, its partition as text, in how many rounds something was found of its answers."""
_CLIPPED, _OUTLYING = "clipped", "outlying"
"""What is found of honest clients as well: in many rounds, and in some."""
_SHARE, _FEWEST = 0.5, 3
"""Of the average client's rounds, and in number: from where on being outlying is no honest chance.

What honest ones and liars come to: ``python -m benchmarks trust --trust-parts robust``.
"""


def conduct(records: Iterable[RoundRecord]) -> dict[str, dict[str, int]]:
    """Count what was found of clients' answers.

    Parameters
    ----------
    records : iterable of RoundRecord
        A run's.

    Returns
    -------
    dict of str to dict of str to int
        As `Conduct`, clients ascending; those of whom nothing was found are left out.
    """
    found: dict[int, Counter[str]] = {}
    for record in records:
        for what, clients in record.clients.items():
            for client in clients:
                found.setdefault(client, Counter())[what] += 1
    return {str(client): dict(sorted(found[client].items())) for client in sorted(found)}


def rounds_each(records: Iterable[RoundRecord], share: float) -> float:
    """Return in how many rounds a client was, on average.

    Parameters
    ----------
    records : iterable of RoundRecord
        A run's; that before training is no round.
    share : float
        Of all clients, how many are in a round.
    """
    return share * sum(record.round > 0 for record in records)


def conduct_lines(found: Conduct, rounds: float, most: int = 10) -> list[str]:
    """Return a line for each client of whose answers something is worth a look.

    Parameters
    ----------
    found : Conduct
        What was found.
    rounds : float
        In how many rounds a client was, on average, as `rounds_each`: who was in fewer has fewer to
        be outlying in, and is named later.
    most : int
        Lines, at most; those with most to say.
    """
    worth = {client: _worth(each, rounds) for client, each in found.items()}
    named = sorted((client for client in worth if worth[client]), key=lambda at: -worth[at])
    lines = [
        f"Answers of client {client}: "
        + ", ".join(f"{what} in {_rounds(count)}" for what, count in found[client].items())
        + "."
        for client in named[:most]
    ]
    if len(named) > most:
        lines.append(f"Of {len(named) - most} more clients, see the history.")
    return lines


def _worth(found: Mapping[str, int], rounds: float) -> int:
    """Return in how many rounds something was found of a client that is not of honest ones."""
    few = found.get(_OUTLYING, 0) < max(_FEWEST, _SHARE * rounds)
    usual = (_CLIPPED, _OUTLYING) if few else (_CLIPPED,)
    return sum(count for what, count in found.items() if what not in usual)


def _rounds(count: int) -> str:
    return f"{count} round" if count == 1 else f"{count} rounds"
