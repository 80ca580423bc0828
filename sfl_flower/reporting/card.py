"""The model card of an exported model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sfl_flower.methods import METHODS
from sfl_flower.report.table import human_bytes
from sfl_flower.reporting.figures import number
from sfl_flower.reporting.gather import Gathered, Group
from sfl_flower.reporting.runs import ReadRun
from sfl_flower.server.evaluation import VALIDATION
from sfl_flower.tasks import TASKS, task_options

__all__ = ["Card"]

_OWN = {"dirichlet": "alpha", "pathological": "classes_per_client"}
"""The option of a partition."""


@dataclass(frozen=True)
class Card:
    """What a model card is made of.

    Attributes
    ----------
    run : ReadRun
        The run.
    facts : Mapping[str, Any]
        Those of ``export.json``.
    comparison : Gathered or None
        A comparison that has the run.
    row : Group or None
        Its row.
    """

    run: ReadRun
    facts: Mapping[str, Any]
    comparison: Gathered | None = None
    row: Group | None = None

    def text(self) -> str:
        """Return the card as markdown, with the head that model hubs read."""
        tags = "tags:\n- sfl-flower\n- split-learning\n- federated-learning\n"
        run = self.run
        title = f"# {run.config['task']}, trained with {run.method}"
        return "\n".join([f"---\n{tags}---\n", title, "", *self._lines()]) + "\n"

    def _lines(self) -> Iterator[str]:
        run, config = self.run, self.run.config
        up, down = run.both_ways()
        yield self._what()
        yield ""
        if run.summary is None:
            yield f"**The run is not complete ({run.state})**: the model is as it was saved last.\n"
        yield "## How it was trained\n"
        yield "| | |"
        yield "|:--|:--|"
        told = {
            "task": config["task"],
            "cut": self.facts["cut"] and f"`{self.facts['cut']}`, the client half's last layer",
            "method": f"{run.method}, clients: {run.terms.get('client', 'not known')}",
            "rounds": f"{run.rounds:,}",
            "clients": self._clients(),
            "training samples": self._samples(),
            "test samples": run.facts.get("test_samples"),
            "data": self._data(),
            "trained client parameters": self._trained(),
            "bytes": f"{human_bytes(up)} up, {human_bytes(down)} down, all clients",
            "client memory": human_bytes(run.client_peak),
            "seed": run.seed,
        }
        yield from (f"| {k} | {value} |" for k, value in told.items() if value not in (None, ""))
        yield "\n## Result\n"
        yield from self._result()
        yield "\n## Privacy\n"
        said = run.terms.get("privacy")
        yield f"{said[0].upper()}{said[1:]}" if said else self._unprotected()
        yield "\n## How to load it\n"
        yield from self._loading()

    def _clients(self) -> str:
        clients, sampled = self.run.config.get("clients"), self.run.config.get("sampled")
        return f"{clients}, {sampled or 'all'} in a round" if clients else ""

    def _samples(self) -> str:
        there = self.run.facts.get("training_samples")
        known = f" of the {there:,} that there are" if isinstance(there, int) else ""
        return f"{self.run.samples:,}{known}, counted as often as clients ran them"

    def _data(self) -> str:
        config = self.run.config
        partition = str(config.get("partition", ""))
        own = _OWN.get(partition, "")
        tail = f" ({own} {config[own]})" if own in config else ""
        held = config.get("validation")
        back = f", {held:.0%} of the training data held back" if held else ""
        return f"divided among clients: {partition}{tail}{back}" if partition else ""

    def _what(self) -> str:
        """Say which part of the model was trained where."""
        method = METHODS.get(self.run.method)
        if method is None:
            told = "A model that was trained by split federated learning"
        elif method.facts.whole:
            told = "A model that clients trained as a whole, by federated learning"
        elif method.facts.client == "nothing":
            told = (
                "A model whose upper half was trained on a server, on what an untrained lower "
                "half on clients made of their data,"
            )
        else:
            told = (
                "A model whose lower half was trained on clients and whose upper half on a server, "
                "by split federated learning"
            )
        return f"{told} with `sfl_flower`. All of it is here together, as one."

    def _unprotected(self) -> str:
        """Say what the server saw of a run without noise."""
        method, epsilon = METHODS.get(self.run.method), self.run.config.get("label_epsilon")
        if method is None:
            sent = ""
        elif method.facts.whole:
            sent = "Clients held the whole model and sent no smashed data."
        elif method.facts.labels:
            sent = f"The server saw smashed data{'' if epsilon else ' and labels'}."
        else:
            sent = "The server saw smashed data, and gradients that tell labels to whoever looks."
        if epsilon:
            hidden = (
                "Labels were replaced at random before anything was computed of them, with "
                f"label_epsilon = {epsilon} for each; inputs were not hidden."
            )
            return f"{hidden} {sent}".strip()
        return f"No noise was added to what clients told, so there is no epsilon. {sent}".strip()

    def _trained(self) -> str:
        count, choice = self.run.facts.get("client_trained"), self.run.facts.get("trained")
        return f"{count:,} ({choice})" if isinstance(count, int) else ""

    def _result(self) -> Iterator[str]:
        run = self.run
        last = next((record for record in reversed(run.history) if record.metrics), None)
        metrics = run.summary.metrics if run.summary else last.metrics if last else {}
        if not metrics:
            yield "It was not evaluated."
            return
        where = f" after round {last.round:,}" if last else ""
        for what, prefix in (("the test set", ""), ("training samples held back", VALIDATION)):
            shown = [
                f"{name.removeprefix(prefix)} {number(value, name)}"
                for name, value in metrics.items()
                if name.startswith(VALIDATION) == bool(prefix)
            ]
            if shown:
                yield f"Of {what}{where}: {', '.join(shown)}.\n"
        if self.comparison is None or self.row is None:
            yield (
                "What the clients' training adds is not known without a control, the same model "
                "whose clients are never trained (`sfl compare`)."
            )
            return
        metric, control = self.comparison.metric, self.comparison.control
        mean, spread = self.row.score(metric)
        tail = f" ± {number(spread, metric)}" if spread is not None else ""
        yield (
            f"In a comparison of {len(self.comparison.groups)} rows its row, {self.row.label}, "
            f"has {metric} {number(mean, metric)}{tail} over {len(self.row.runs)} seeds"
            + (
                f"; the control, whose clients are never trained, has {number(control, metric)}."
                if control is not None
                else "; there is no control in it."
            )
        )
        margin = self.row.row.get("margin")
        if isinstance(margin, int | float):
            yield f"\nIts margin over control and walk is {margin:+.4f}."

    def _loading(self) -> Iterator[str]:
        task = str(self.run.config["task"])
        if task in TASKS:
            usual = task_options(task)
            given = {k[5:]: v for k, v in self.run.config.items() if k.startswith("task.")}
            own = [f"{k}={v!r}" for k, v in given.items() if usual.get(k, v) != v]
            built = f"load_task({', '.join([repr(task), *own])}).model()"
            names = "load_exported, load_task"
            yield "Into the model of the task:\n"
        else:
            built, names = "MyModel()", "load_exported"
            yield "Into the model that the task's `model()` builds, here called `MyModel`:\n"
        yield f"```python\nfrom sfl_flower import {names}"
        yield f'model = load_exported("FOLDER", {built}).eval()\n```\n'
        yield f"The digest of its weights is `{self.facts['digest']}` (`export.json`)."
        yield "Without `sfl_flower`, `model.safetensors` is a `state_dict` of the whole model."
        if folder := self.facts.get("transformers"):
            yield ""
            if folder.get("class"):
                module, _, kind = str(folder["class"]).rpartition(".")
                yield f"{folder['says']}\n"
                yield "```python"
                yield f"from {module} import {kind}"
                yield f'model = {kind}.from_pretrained("FOLDER/transformers")'
                yield "```"
            else:
                yield folder["says"]
        if half := self.facts.get("onnx"):
            yield (
                "\n`client.onnx` is the client half in eval mode, from inputs to smashed data, for "
                f"any number of samples: input `{half['input']}`, output `{half['output']}`. In "
                f"onnxruntime it differs from torch by {half['largest_difference']:.2g} at most "
                f"(largest value {half['largest_value']:.3g}) on {half['samples']} test samples."
            )
