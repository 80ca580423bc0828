"""The section of clients: who answered, who failed, whose answers stood out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from statistics import fmean

from sfl_flower.report import RoundRecord
from sfl_flower.report.conduct import conduct
from sfl_flower.report.plots import mean_curve
from sfl_flower.report.table import NONE
from sfl_flower.reporting.charts import Axis, chart, swatches
from sfl_flower.reporting.gather import Gathered, Group
from sfl_flower.reporting.parts import Cell, Figure, Section, Sheet

__all__ = ["clients_section", "said_of_clients"]

_LEFT_OUT = re.compile(r"Client (\d+) is left out of this round")
_ASKED_AGAIN = re.compile(r"Client (\d+) is asked again")
_NOTES = 100
"""Rounds' notes that are shown, at most."""


def said_of_clients(records: Iterable[RoundRecord]) -> dict[int, Counter[str]]:
    """Count, by client, what is known of it: marks of the history, and what its notes say.

    Parameters
    ----------
    records : iterable of RoundRecord
        A run's.

    Returns
    -------
    dict of int to Counter
        Rounds by what was said, such as ``failed``, ``asked again``, ``refused``, ``outlying``.
    """
    records = list(records)
    found = {int(name): Counter(dict(each)) for name, each in conduct(records).items()}
    for record in records:
        for words, pattern in (("failed", _LEFT_OUT), ("asked again", _ASKED_AGAIN)):
            named = {int(hit[1]) for note in record.notes if (hit := pattern.match(note))}
            for client in named:
                found.setdefault(client, Counter())[words] += 1
    return dict(sorted(found.items()))


def clients_section(found: Gathered) -> Section:
    """Return how clients took part."""
    rows: list[list[Cell]] = []
    losses = {}
    tables, notes = [], []
    for group in found.groups:
        rows.append(_taken_part(group))
        lost = []
        for run in group.runs:
            rounds = [record for record in run.history if record.round]
            lost.append(([float(r.round) for r in rounds], _lost(rounds)))
            said = said_of_clients(rounds)
            where = group.label if len(group.runs) == 1 else f"{group.label}, seed {run.seed}"
            if said:
                tables.append(_by_client(where, said))
            notes += [
                [where, f"{record.round:,}", note]
                for record in run.history
                for note in record.notes
            ]
        losses[group.label] = mean_curve(lost)
    text = ["A reply is used, refused by the server's checks, or does not come at all."]
    figures, legend = [], swatches([])
    if any(curve is not None and curve.y.max() > 0 for curve in losses.values()):
        title = "Replies that were lost, up to each round"
        svg = chart("lost", title, losses, Axis("round"), "failed or refused")
        figures, legend = [Figure(svg, title)], swatches(list(losses))
    else:
        text.append("No reply was lost: all that was asked for came and was used.")
    if tables:
        text.append(
            "By client, in how many rounds: failed (no answer, or an error), asked again (the "
            "process that ran it died), and what the server found of its answers. Clients of whom "
            "nothing was found are left out; a round keeps its first hundred notes."
        )
    caption = "Participation, all runs of a row together"
    header = ["method", "clients", "in a round", "replies used", "failed", "refused", "lost"]
    header += ["rounds without a reply"]
    more = [sheet] if (sheet := _further(found)).rows else []
    if notes:
        every = f", the first {_NOTES} of {len(notes):,}" if len(notes) > _NOTES else ""
        more.append(
            Sheet(f"Notes of rounds{every}", ["run", "round", "note"], notes[:_NOTES], True)
        )
    return Section(
        "clients", "Clients", text, legend, figures, [Sheet(caption, header, rows), *tables],
        more=more,
    )  # fmt: skip


def _further(found: Gathered) -> Sheet:
    """Return what methods record beside all this, such as rates: over the rounds that have it."""
    rows: list[list[Cell]] = []
    for group in found.groups:
        for run in group.runs:
            names = sorted({name for record in run.history for name in record.extra} - {"epsilon"})
            for name in names:
                values = [r.extra[name] for r in run.history if name in r.extra]
                shown = (values[0], fmean(values), min(values), max(values), values[-1])
                rows.append([group.label, str(run.seed), name, *(f"{v:.4g}" for v in shown)])
    header = ["method", "seed", "number", "first", "mean", "least", "most", "last"]
    return Sheet("Further numbers of rounds", header, rows)


def _lost(rounds: Iterable[RoundRecord]) -> list[float]:
    """Return the replies that were lost up to each round."""
    total, found = 0.0, []
    for record in rounds:
        total += record.failures + record.rejected
        found.append(total)
    return found


def _taken_part(group: Group) -> list[Cell]:
    rounds = [record for run in group.runs for record in run.history if record.round]
    used, failed, refused = (
        sum(getattr(record, name) for record in rounds)
        for name in ("replies", "failures", "rejected")
    )
    asked = used + failed + refused
    config = group.runs[0].config
    return [
        group.label,
        str(config.get("clients") or NONE),
        str(config.get("sampled") or config.get("clients") or NONE),
        f"{used:,}",
        f"{failed:,}",
        f"{refused:,}",
        f"{(failed + refused) / asked:.1%}" if asked else NONE,
        f"{sum(record.replies == 0 for record in rounds):,}",
    ]


def _by_client(label: str, said: dict[int, Counter[str]]) -> Sheet:
    kinds = list(dict.fromkeys(kind for each in said.values() for kind in sorted(each)))
    rows = [
        [f"client {client}", *(str(each[kind] or NONE) for kind in kinds)]
        for client, each in said.items()
    ]
    return Sheet(f"By client: {label}", ["client", *kinds], rows)
