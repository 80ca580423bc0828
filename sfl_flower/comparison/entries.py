"""The rows that a comparison trains: the methods asked for, and controls of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sfl_flower.comparison.rows import CEILING, CONTROL
from sfl_flower.config import ENCODED, LOCAL
from sfl_flower.errors import ConfigError
from sfl_flower.methods import Method, find_method
from sfl_flower.run.run import Plan
from sfl_flower.server.facts import BACKPROP
from sfl_flower.task import SplitTask
from sfl_flower.training.modes import changes_by_mode

__all__ = ["VALIDATION", "Entry", "controls", "method_entries", "read", "twin_entries"]

VALIDATION = 0.1
"""Share of the training data that a comparison holds back, unless it is told another."""
FOLLOWS = {
    "method": "methods",
    "task": "task",
    "rounds": "samples",
    "seed": "seeds",
}
"""Options that a comparison sets itself, and what they follow from."""


@dataclass(frozen=True)
class Entry:
    """A method with its options, to be trained with every seed and server rate.

    Attributes
    ----------
    label : str
        Its name in the table.
    folder : str
        Where its runs are, below the comparison's directory.
    options : Mapping[str, Any]
        Flat options of its runs; seed, rounds and server rate come later.
    role : {"method", "control", "walk", "still"}
        What it is in the table; "walk" is a method whose clients walk at random, "still" one at a
        client rate of 0.
    of : str
        The label of the row that a "walk" or "still" entry belongs to.
    """

    label: str
    folder: str
    options: Mapping[str, Any]
    role: Literal["method", "control", "walk", "still"] = "method"
    of: str = ""


def method_entries(
    methods: Sequence[str | Method] | Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    task: str,
    tuned: bool,
) -> tuple[list[Entry], dict[str, Any]]:
    """Return an entry for each method asked for and for the ceiling, and the control's options.

    Parameters
    ----------
    methods : sequence of str or Method, or mapping of str to mapping
        As for `compare`.
    options : Mapping[str, Any]
        Options of every run.
    task : str
        The task's name.
    tuned : bool
        Whether server rates are tried, so that none may be among the options.

    Raises
    ------
    ConfigError
        If a method is named twice, or an option is one that the comparison sets itself.
    """
    found = [find_method(named) for named in methods]
    given = list(methods.values()) if isinstance(methods, Mapping) else [{} for _ in found]
    own = {method.name: options for method, options in zip(found, given, strict=True)}
    values: dict[str, str | Method] = {method.name: method for method in found}
    if len(own) < len(found):
        twice = ", ".join(method.name for method in found)
        raise ConfigError(f"methods are {twice}; name each once.")
    shared = {"validation": VALIDATION, **_underscored(options)}
    read = {}
    for name in {CONTROL: {}, **own, CEILING: {}}:
        facts = find_method(values.get(name, name)).facts
        lacks = (*(ENCODED if facts.whole else ()), *(() if facts.backprop else BACKPROP))
        common = {k: v for k, v in shared.items() if k not in lacks}
        read[name] = {**common, **_underscored(own.get(name, {}))}
        for key, source in FOLLOWS.items():
            if key in read[name]:
                raise ConfigError(f"{key} of a comparison follows from {source}; leave it out.")
        if tuned and "server_lr" in read[name]:
            raise ConfigError("server_lr is given twice; leave it out where server_lrs are given.")
        if read[name].get("partition") == LOCAL:
            raise ConfigError("partition is 'local'; a comparison divides the task's own data.")
        read[name] |= {"method": values.get(name, name), "task": task}
    for key in ("server_steps", "server_passes"):
        if key in _underscored(own.get(CONTROL, {})):
            raise ConfigError(
                f"{key} of {CONTROL} follows from the methods that it is held against; leave it "
                "out."
            )
    control = read.pop(CONTROL)
    return [Entry(name, name, found) for name, found in read.items()], control


def _underscored(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in options.items()}


def controls(plans: Sequence[Plan], given: Mapping[str, Any], task: SplitTask) -> list[Entry]:
    """Return the frozen clients that the methods of a comparison are held against.

    There is one for each pace of the server half, number of its passes, number of mini-batches and
    mode of the client half that a method has; `given` goes before the last two.

    Parameters
    ----------
    plans : sequence of Plan
        The methods.
    given : Mapping[str, Any]
        Options of every control.
    task : SplitTask
        Tells whether the mode changes anything.
    """
    modal = changes_by_mode(task.build(plans[0].config.model_seed).client)
    forms: list[dict[str, Any]] = []
    for plan in plans:
        form = {"minibatches": 1, "server_passes": 1, **plan.settings.control}
        if not modal:
            form["client_mode"] = "as_built"
        form |= {key: given[key] for key in form if key in given}
        if form not in forms:
            forms.append(form)
    may = ("minibatches", "client_mode", "server_passes")
    apart = [key for key in may if len({form[key] for form in forms}) > 1]
    found = []
    for form in sorted(forms, key=lambda form: [str(form[k]) for k in ("server_steps", *apart)]):
        named = {key: form[key] for key in ("server_steps", *apart)}
        label = f"{CONTROL} ({', '.join(f'{key}={value}' for key, value in named.items())})"
        parts = [f"{v}passes" if key == "server_passes" else str(v) for key, v in named.items()]
        folder = "-".join([CONTROL, *parts])
        found.append(Entry(label, folder, {**given, **form}, "control"))
    return found


def twin_entries(
    entries: Sequence[Entry], plans: Sequence[Plan], walk_rates: Sequence[float]
) -> list[Entry]:
    """Return, for each method with forward-only clients, itself where they learn nothing.

    A method that has the option `walk` is trained as a walk, with steps as long that tell nothing.
    One that has not is trained at a client rate of 0.

    Parameters
    ----------
    entries : sequence of Entry
        The methods of the comparison.
    plans : sequence of Plan
        Their settings.
    walk_rates : sequence of float
        Client rates of walks, as multiples of the method's own.
    """
    found = []
    for entry, plan in zip(entries, plans, strict=True):
        own = plan.settings.to_dict()
        rate = float(own.get("client_lr", 0))
        if plan.method.facts.client != "zeroth order" or rate == 0 or own.get("walk", False):
            continue
        if "walk" not in own:
            options = {**entry.options, "client_lr": 0.0}
            label, folder = f"{entry.label} at rate 0", f"{entry.folder}-rate0"
            found.append(Entry(label, folder, options, "still", entry.label))
            continue
        for factor in walk_rates:
            options = {**entry.options, "walk": True, "client_lr": rate * factor}
            label, folder = f"{entry.label} walk", f"{entry.folder}-walk"
            if factor != 1:
                label, folder = f"{label} (client_lr={rate * factor:g})", f"{folder}-x{factor:g}"
            found.append(Entry(label, folder, options, "walk", entry.label))
    return found


def read(options: Mapping[str, Any], seed: int) -> Plan:
    """Check the options of an entry.

    Raises
    ------
    ConfigError
        If one is unknown or out of range.
    """
    try:
        return Plan.read({**options, "seed": seed})
    except ConfigError as error:
        if str(error).startswith("Unknown option of method"):
            raise ConfigError(
                f"{error} Every method is given this option; one that only some methods have "
                "is written METHOD:KEY=VALUE on the command line, or methods={METHOD: {KEY: "
                "VALUE}} in Python."
            ) from None
        raise
