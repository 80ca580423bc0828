"""What was found of each client's answers over a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sfl_flower.report.history import RoundRecord

__all__ = ["Conduct", "conduct", "conduct_lines"]

Conduct = Mapping[str, Mapping[str, int]]
"""By client, its partition as text, in how many rounds something was found of its answers."""
_USUAL = "clipped"
"""What is found of honest clients as well, in many rounds."""


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


def conduct_lines(found: Conduct, most: int = 10) -> list[str]:
    """Return a line for each client of whose answers something is worth a look.

    Parameters
    ----------
    found : Conduct
        What was found.
    most : int
        Lines, at most; those with most to say.
    """
    worth = {client: sum(n for what, n in each.items() if what != _USUAL)
             for client, each in found.items()}  # fmt: skip
    named = sorted((client for client in worth if worth[client]), key=lambda at: -worth[at])
    lines = [
        f"Answers of client {client}: "
        + ", ".join(f"{what} in {count} rounds" for what, count in found[client].items())
        + "."
        for client in named[:most]
    ]
    if len(named) > most:
        lines.append(f"Of {len(named) - most} more clients, see the history.")
    return lines
