"""A profile of cuts for a person: tables, a plot and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sfl_flower.report.files import write_json
from sfl_flower.report.plots import COLOURS, MIB
from sfl_flower.report.table import (
    NONE,
    Part,
    human_bytes,
    human_count,
    markdown_part,
    narrow,
    print_all,
    rich_part,
)

if TYPE_CHECKING:
    from sfl_flower.profiling.cuts import CutProfile
    from sfl_flower.profiling.leakage import Leakage
    from sfl_flower.profiling.peaks import Peak
    from sfl_flower.profiling.profile import Profile
    from sfl_flower.profiling.progress import Learning, LearningRow

__all__ = ["markdown_profile", "print_profile", "profile_numbers", "profile_plot", "write_profile"]


WIDTH = 80
"""Columns of what is printed; wider tables go on below."""


def print_profile(profile: Profile, console: Console | None = None) -> None:
    """Print the tables and the advice; on standard output by default."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    parts = [piece for part in _parts(profile) for piece in narrow(part, WIDTH)]
    print_all([rich_part(part) for part in parts], console)
    for sentence in profile.advice:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def markdown_profile(profile: Profile) -> str:
    """Return tables and advice as markdown."""
    blocks = [markdown_part(part) for part in _parts(profile)]
    return "\n".join([*blocks, "\n".join(f"- {said}" for said in profile.advice), ""])


def write_profile(profile: Profile, out: Path | str) -> None:
    """Write ``profile.md``, ``profile.json`` and ``profile.png`` into a directory."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.md").write_text(markdown_profile(profile), encoding="utf-8")
    write_json(folder / "profile.json", profile_numbers(profile))
    profile_plot(profile, folder / "profile.png")


def profile_numbers(profile: Profile) -> dict[str, Any]:
    """Return every number of the profile as plain values."""
    setting = profile.setting
    return {
        "model": profile.name,
        "batch_size": setting.batch_size,
        "bandwidth_bits_per_second": setting.bandwidth,
        "probes": setting.probes,
        "sampled": setting.sampled,
        "local_steps": setting.local_steps,
        "slowdown": setting.slowdown,
        "smashed": setting.smashed,
        "gradients": setting.gradients,
        "client_memory_bytes": profile.client_memory,
        "cuts": [
            {
                "cut": row.at,
                "client_parameters": row.parameters,
                "trainable_parameters": row.trainable,
                "client_bytes": row.state_bytes,
                "travelling_bytes": row.travelling_bytes,
                "forward_flops_per_sample": row.flops,
                "probe_flops_per_sample": _probe_flops(row),
                "smashed_shape": list(row.smashed_shape),
                "smashed_bytes_per_sample": row.smashed_bytes,
                "inference_peak_bytes": _peak(row.inference),
                "probe_peak_bytes": _peak(row.rerun.peak if row.rerun else row.inference),
                "backprop_peak_bytes": _peak(row.backprop),
                "methods": {
                    name: {
                        "up_bytes": cost.up,
                        "down_bytes": cost.down,
                        "memory_bytes": cost.memory,
                        "compute_seconds": cost.compute_seconds,
                        "transfer_seconds": cost.transfer_seconds,
                    }
                    for name, cost in profile.costs[row.at].items()
                },
            }
            for row in profile.cuts
        ],
        "learning_samples": profile.learning.samples if profile.learning else None,
        "learning": [_numbers(row) for row in (profile.learning.rows if profile.learning else ())],
        "error_left_of_guess": dict(profile.leakage.shares) if profile.leakage else None,
        "advice": list(profile.advice),
    }


def profile_plot(profile: Profile, path: Path | str) -> Path:
    """Draw memory and bytes of each cut, and write a PNG of 1200 x 900 pixels.

    Above, the peak of forwards alone and of backprop; below, smashed data of a mini-batch and the
    weights that would travel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, size = profile.cuts, profile.setting.batch_size
    places = range(len(rows))
    figure = Figure(figsize=(12, 9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    memory, traffic = figure.subplots(2, 1, sharex=True)
    drawn = (
        (memory, "forwards alone", [row.inference.bytes for row in rows]),
        (memory, "backprop", [row.backprop.bytes for row in rows]),
        (traffic, "smashed data", [size * row.smashed_bytes for row in rows]),
        (traffic, "weights that travel", [row.travelling_bytes for row in rows]),
    )
    for number, (axes, label, values) in enumerate(drawn):
        shown = [value / MIB for value in values]
        axes.plot(places, shown, "o-", color=COLOURS[number], label=label)
    if profile.client_memory is not None:
        memory.axhline(profile.client_memory / MIB, color="#333333", ls=":", label="client memory")
    memory.set_ylabel("peak beyond parameters (MiB)")
    traffic.set_ylabel("a mini-batch (MiB)")
    traffic.set_yscale("log")
    traffic.set_xticks(list(places), [row.at for row in rows], rotation=60, ha="right")
    for axes in (memory, traffic):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    memory.set_title(f"{profile.name}, batch {size}")
    path = Path(path)
    figure.savefig(path)
    return path


def _parts(profile: Profile) -> list[Part]:
    again = any(row.rerun is not None for row in profile.cuts)
    header = ["cut", "parameters", "trained", "FLOPs", *(["a probe"] if again else [])]
    header += ["z", "z bytes", "forwards", "backprop"]
    lines = [
        [
            row.at,
            f"{row.parameters:,}",
            f"{row.trainable:,}",
            human_count(row.flops),
            *([human_count(_probe_flops(row))] if again else []),
            "x".join(map(str, row.smashed_shape)) or "1",
            human_bytes(row.smashed_bytes),
            _shown(row.inference),
            _shown(row.backprop),
        ]
        for row in profile.cuts
    ]
    title = (
        f"Client half of {profile.name} by cut; FLOPs and z a sample, peaks beyond parameters at "
        f"batch {profile.setting.batch_size} (~: predicted)"
    )
    parts: list[Part] = [(title, header, lines)]
    setting = profile.setting
    for what, title in (
        ("memory", "Client memory by method, parameters included (!: more than the client has)"),
        ("seconds", f"Seconds a step at {setting.bandwidth / 1e6:g} Mbit/s, P = {setting.probes}"),
        ("bytes", "Bytes a step, up and down"),
    ):
        names = list(dict.fromkeys(name for row in profile.cuts for name in profile.costs[row.at]))
        lines = [
            [row.at, *(_cost(profile, row.at, name, what) for name in names)]
            for row in profile.cuts
        ]
        parts.append((title, ["cut", *names], lines))
    if profile.learning is not None:
        parts.append(_learning(profile.learning, setting.probes, setting.sampled))
    if profile.leakage is not None:
        parts.append(_shown_part(profile.leakage))
    return parts


def _learning(found: Learning, probes: int, sampled: int) -> Part:
    header = ["cut, trained", "d", "energy", "d/(PK)", "progress", "by channel"]
    header += ["a probe", "best P", "a forward"]
    lines = [
        [
            f"{row.at}, {row.trained}",  # one column: it stands before what goes on below
            f"{row.size:,}",
            f"{row.share:.3f}",
            f"{row.ratio:.3g}",
            f"{row.progress:.2g}",
            "" if row.by_channel is None else f"{row.by_channel:.2g}",
            f"{row.probe:.2g}",
            f"{row.best_probes:,}",
            f"{row.per_forward:.2g}",
        ]
        for row in found.rows
    ]
    title = (
        f"What forwards learn: share of the energy of the gradient on {found.samples}, progress of "
        f"a step (P = {probes}, K = {sampled}) and, at the best P, of a forward; backprop on all "
        "weights is 1"
    )
    return title, header, lines


def _shown_part(found: Leakage) -> Part:
    """Return the table of what smashed data show."""
    lines = [[at, f"{share:.3g}"] for at, share in found.shares.items()]
    title = "What smashed data show: a decoder's error, over that of the better guess"
    return title, ["cut", "error left"], lines


def _numbers(row: LearningRow) -> dict[str, Any]:
    return {
        "cut": row.at,
        "trained": row.trained,
        "chosen": row.chosen,
        "trained_parameters": row.size,
        "energy_share": row.share,
        "share_of_whole_gradient": row.weight,
        "dimensions_per_direction": row.ratio,
        "progress": row.progress,
        "progress_by_channel": row.by_channel,
        "noise_dimensions_by_channel": row.apart or None,
        "anchor_forwards": row.anchor,
        "probe_forwards": row.probe,
        "scalars": row.scalars,
        "best_probes": row.best_probes,
        "progress_per_forward": row.per_forward,
        "progress_of_whole_model": row.whole,
    }


def _cost(profile: Profile, at: str, method: str, what: str) -> str:
    cost = profile.costs[at].get(method)
    if cost is None:
        return NONE
    if what == "memory":
        over = profile.client_memory is not None and cost.memory > profile.client_memory
        return human_bytes(cost.memory) + (" !" if over else "")
    return f"{cost.seconds:.3g}" if what == "seconds" else human_bytes(cost.up + cost.down)


def _probe_flops(row: CutProfile) -> float:
    return row.flops if row.rerun is None else row.rerun.flops


def _shown(peak: Peak) -> str:
    return ("~" if peak.measured is None else "") + human_bytes(peak.bytes)


def _peak(peak: Peak) -> dict[str, int | None]:
    return {"predicted": peak.predicted, "measured": peak.measured}
