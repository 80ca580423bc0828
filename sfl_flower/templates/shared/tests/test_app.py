"""What must hold whatever model and data you put in: python -m pytest."""

import tomllib
from importlib import import_module
from pathlib import Path

from sfl_flower import simulate

from my_app.task import task

APP = Path(__file__).resolve().parents[1]
FLOWER = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]


def test_model_cut_loss_and_data_fit_each_other():
    task.check()


def test_what_flower_starts_is_there():
    for reference in FLOWER["components"].values():
        module, _, name = reference.partition(":")
        assert hasattr(import_module(module), name), reference


def test_it_learns_with_the_settings_of_the_project():
    pairs = (pair.split("=") for pair in FLOWER["config"]["options"].split())
    options = {key.replace("-", "_"): value for key, value in pairs}
    result = simulate(task, "ho_sfl", backend="inline", rounds=30, clients=3, **options)
    _, losses = result.history.series(metric="loss")
    assert losses[-1] < losses[0], "smaller rates, more probes or more rounds may help"
