"""The report: one HTML file of one or several runs, or of a comparison, that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from sfl_flower.errors import ConfigError
from sfl_flower.report.files import atomic_write
from sfl_flower.reporting.figures import bytes_section, cost_section, curves_section, glance
from sfl_flower.reporting.gather import Gathered, gather
from sfl_flower.reporting.parts import Section
from sfl_flower.reporting.people import clients_section
from sfl_flower.reporting.secrets import attacks_section, privacy_section
from sfl_flower.reporting.settings import configuration_section, held_against

__all__ = ["report_page", "write_report"]


def write_report(*paths: Path | str, out: Path | str | None = None) -> Path:
    """Write a report of run directories, or of the output folder of a comparison.

    Parameters
    ----------
    *paths : Path or str
        Run directories; or one comparison; beside them, folders of attacks' results.
    out : Path or str, optional
        The file; ``report.html`` in the only directory, else in the current one, when left out.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    DataError
        If a directory is no run's, or damaged, or the file cannot be written.
    ConfigError
        If there is no run, a comparison stands beside runs, or `out` cannot be a file.
    """
    found = [Path(path).expanduser() for path in paths]
    if out is None:
        target = (found[0] if len(found) == 1 else Path()) / "report.html"
    else:
        target = Path(out).expanduser()
    page = report_page(gather(found))
    if target.is_dir():
        problem = f"{target} is a directory; name a file, such as {target / 'report.html'}"
        raise ConfigError(f"{problem}, as out=.", shell=f"{problem}, with --out.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot make {target.parent}: {error.strerror}; choose another."
        ) from error
    atomic_write(target, lambda tmp: tmp.write_text(page, encoding="utf-8"))
    return target


def report_page(found: Gathered) -> str:
    """Return the page: the same text for the same runs."""
    from jinja2 import Environment, StrictUndefined

    here = files("sfl_flower.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    css = (here / "page.css").read_text(encoding="utf-8")
    return template.render(
        title=_title(found), lead=_lead(found), sections=_sections(found), css=css
    )


def _sections(found: Gathered) -> Sequence[Section]:
    made = [
        glance(found),
        curves_section(found),
        held_against(found),
        bytes_section(found),
        cost_section(found),
        clients_section(found),
        privacy_section(found),
        attacks_section(found),
        configuration_section(found),
    ]
    return [section for section in made if section is not None]


def _title(found: Gathered) -> str:
    tasks = ", ".join(dict.fromkeys(str(run.config["task"]) for run in found.runs))
    methods = list(dict.fromkeys(group.method for group in found.groups))
    return f"{tasks}: {', '.join(methods)}"


def _lead(found: Gathered) -> str:
    runs, what = len(found.runs), "A comparison" if found.comparison else "A report"
    return f"{what} of {runs} {'run' if runs == 1 else 'runs'} of sfl_flower."
