"""Published experiments as options: each is legal, and says where its values come from."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sfl_flower.cli.main import main
from sfl_flower.config import RunConfig
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.presets import PRESETS, load_preset
from sfl_flower.tasks import TASKS, load_task, read_task_options
from sfl_flower.tasks.checkpoints import Checkpoint


def test_the_papers_are_there() -> None:
    assert set(PRESETS) >= {
        f"{method}_resnet18_cifar10"
        for method in ("heron", "ho_sfl", "fsl_sage", "cse_fsl", "splitfed_v1", "fedavg")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_is_legal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a checkpoint that must come from the hub, the task asks for this alone.
    monkeypatch.setattr(Checkpoint, "config", lambda self: SimpleNamespace(vocab_size=50_257))
    preset = load_preset(name)
    options = preset.options
    assert len(options) == len(preset.paper) + len(preset.ours), "a value is given twice"
    assert preset.title and "arXiv" in preset.source and options["task"] in TASKS
    if options["method"] in METHODS:
        config, _, settings, task = read_options(options)
        held = {**config.to_dict(), **settings.to_dict()}
        assert {key: held[key] for key in options if "." not in key} == {
            key: value for key, value in options.items() if "." not in key
        }
        # A default may change; what a preset says must not.
        # The momentum of SGD, which none of them uses, and what is off by default.
        off = {"cone", "guide", "guide_rest", "guide_samples", "guide_form", "guide_momentum"}
        off |= {"scalars", "scale", "server_batch", "server_passes", "stack", "walk", "downlink"}
        off |= {"head_downlink", "pipeline", "temporal", "sealed", "nopeek", "label_epsilon"}
        off |= {"secure_sums", "secure_threshold", "secure_neighbours"}
        off |= {"dp_clip", "dp_noise", "dp_noise_by", "dp_epsilon", "dp_delta"}
        unused = {"client_momentum", *off}
        assert settings.to_dict().keys() - options.keys() <= unused
    else:
        RunConfig.read({key: value for key, value in options.items() if key in RunConfig.keys()})
        task = {k.removeprefix("task."): v for k, v in options.items() if k.startswith("task.")}
    load_task(options["task"], **read_task_options(options["task"], task))


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_ours_says_why(name: str) -> None:
    text = (files("sfl_flower.presets") / f"{name}.toml").read_text(encoding="utf-8")
    assert set(tomllib.loads(text)) == {"title", "source", "paper", "ours"}
    lines = [line for line in text.partition("[ours]\n")[2].splitlines() if line]
    assert lines and all(len(line.partition("#")[2]) > 10 for line in lines)


def test_ho_sfl_as_its_scripts_have_it() -> None:
    options = load_preset("ho_sfl_resnet18_cifar10").options
    config, _, settings, task = read_options(options)
    assert (config.rounds * config.sampled * config.batch_size) == 120_000
    assert (config.clients, config.server_optimizer, config.server_lr) == (100, "adamw", 1e-3)
    shown = settings.to_dict()
    assert (shown["probes"], shown["mu"], shown["direction"]) == (5, 1e-3, "gaussian")
    assert task["pretrained"] is True and task["freeze_bn"] is True


def test_the_language_experiments() -> None:
    options = load_preset("ho_sfl_opt125m_sst2").options
    config, _, settings, task = read_options(options)
    samples = config.cohort * config.batch_size
    assert (config.rounds - 1) * samples < 80_000 <= config.rounds * samples
    assert (settings.to_dict()["probes"], task["cut"], task["head"]) == (2, "block:3", "verbaliser")
    rte = load_preset("ho_sfl_opt125m_rte").options
    assert {key for key in options if options[key] != rte[key]} == {"task"}
    assert load_preset("heron_gpt2_e2e").paper["head"] == "blocks:block:4"


def test_the_baselines_of_fsl_sage_share_its_setting() -> None:
    sage = load_preset("fsl_sage_resnet18_cifar10").paper
    for method in ("cse_fsl", "splitfed_v1", "splitfed_v2", "fedavg"):
        paper = load_preset(f"{method}_resnet18_cifar10").paper
        assert {k: v for k, v in paper.items() if k != "method"}.items() <= sage.items()


def test_an_unknown_preset_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"preset 'heron'; legal are .*heron_resnet18_cifar10"):
        load_preset("heron")


@pytest.mark.flower
def test_a_run_takes_the_preset_and_what_is_given_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    y = np.arange(6, dtype=np.uint8)
    np.savez(tmp_path / "cifar10_10k_2k.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    monkeypatch.setenv("SFL_DATA_DIR", str(tmp_path))
    out, given = tmp_path / "run", ["--rounds", "1", "--clients", "2", "--sampled", "0"]
    for option in ("task.pretrained=false", "task.train_size=none", "task.test-size=6"):
        given += ["--set", option]
    given += ["--set", "probes=1", "--set", "batch-size=2", "--out", str(out)]
    preset = ["--preset", "ho_sfl_resnet18_cifar10"]
    assert main(["run", "--backend", "inline", *preset, *given]) == 0
    kept = json.loads((out / "config.json").read_text())["config"]
    wanted = {"task": "cifar10", "method": "ho_sfl", "rounds": 1, "clients": 2, "sampled": 0}
    wanted |= {"probes": 1, "batch_size": 2, "direction": "gaussian", "server_lr": 1e-3}
    assert {key: kept[key] for key in wanted} == wanted
    assert (kept["task.cut"], kept["task.pretrained"]) == ("layer2", False)


@pytest.mark.flower
def test_the_command_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
    assert main(["presets", "heron_resnet18_cifar10"]) == 0
    shown = capsys.readouterr().out
    assert "fedavg" not in shown and "ours" in shown and "upload-every" in shown
    assert main(["presets", "heron_resnet18_cifar100"]) == 2
    assert "Did you mean 'heron_resnet18_cifar10'?" in capsys.readouterr().err
