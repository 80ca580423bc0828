"""Others' published code, run from a checkout beside ours: with stand-ins of the same interface."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks import __main__, official, theirs
from benchmarks.official import Theirs, Turn, checkout, read
from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.report import RoundRecord

HYDRA = """
from contextlib import contextmanager
from types import SimpleNamespace

@contextmanager
def initialize_config_dir(folder, version_base):
    yield

def compose(name, overrides):
    return SimpleNamespace(seed=0, told=dict(word.split("=") for word in overrides))
"""
OMEGACONF = """
from contextlib import nullcontext as open_dict
"""
MAIN = """
import wandb
from torchvision import datasets

global_torch_device = None

def setup_server_and_clients(cfg):
    print("what they print is no answer")
    assert global_torch_device.type == "cpu"
    made = [datasets.CIFAR10("", train=t, download=True, transform=None) for t in (True, False)]
    return None, *made
"""
ALGOS = """
def run_fl_algorithm(cfg, server, clients, test, checkpointer, device, logger_fn):
    load = []
    for t in range(int(cfg.told["rounds"])):
        if t == 2:
            raise RuntimeError("the third round")
        shapes = {tuple(clients[index][0].shape) for index in range(len(clients))}
        assert shapes == {(3, 32, 32)} and test[0][0].shape == (3, 32, 32)
        load.append((load[-1] if load else 0) + 100 + t)
        logger_fn({"Test/load": load}, step=t)
"""
RUNNER = """
from types import SimpleNamespace

class HO_SFLRunner:
    def __init__(self, cfg, data_manager):
        self.cfg, self.data_manager = cfg, data_manager
        self.stats = {"total_uplink": 0, "total_downlink": 0}
        self.communicator = SimpleNamespace(get_stats=lambda: self.stats)

    def run(self):
        for _ in range(int(self.cfg.told["runner.communication_rounds"])):
            for client in (3, 1):
                x, y = next(self.data_manager.get_client_loader(client))
                self.stats["total_uplink"] += 10 * len(x)
                self.stats["total_downlink"] += 1
"""
FSL_SAGE: dict[str, Any] = {
    "method": "fsl_sage",
    "clients": 2,
    "images": 3,
    "batch_size": 2,
    "period": 5,
    "lr": 1e-3,
    "augment": False,
    "threads": 1,
}
HO_SFL: dict[str, Any] = {
    "clients": 4,
    "sampled": 2,
    "batch_size": 3,
    "probes": 1,
    "mu": 1e-3,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "threads": 1,
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def fsl_sage(root: Path) -> Path:
    """Return a checkout with what is used of FSL-SAGE's repository."""
    files = {"algos/__init__": ALGOS, "algos/fsl_sage": "", "main": MAIN}
    libraries = {"hydra/__init__": HYDRA, "omegaconf/__init__": OMEGACONF}
    return write(root, {f"src/{name}.py": text for name, text in {**files, **libraries}.items()})


def arguments(*words: str) -> argparse.Namespace:
    """Return the options of a command line."""
    return __main__.parse(["official", *words]).args


def test_a_round_of_fsl_sage_is_counted_and_an_error_of_theirs_told(tmp_path: Path) -> None:
    with Theirs("fsl_sage", fsl_sage(tmp_path), sys.executable, FSL_SAGE) as other:
        turns = [other.round(), other.round()]
        with pytest.raises(TrainingError, match=r"RuntimeError: the third round; --official-py"):
            other.round()
        with pytest.raises(TrainingError, match="ended without an answer"):
            other.round()
    # 2 clients x 3 images; the images that they evaluate on do not count.
    assert [(turn.samples, turn.bytes) for turn in turns] == [(6, 100), (6, 101)]
    assert all(turn.seconds > 0 for turn in turns)


def test_a_round_of_ho_sfl_ends_where_the_next_asks_for_data(tmp_path: Path) -> None:
    libraries = {"hydra/__init__.py": HYDRA, "src/runner/ho_sfl_runner.py": RUNNER}
    with Theirs("ho_sfl", write(tmp_path, libraries), sys.executable, HO_SFL) as other:
        turns = [other.round(), other.round()]
    # Two clients x 3 images, 10 bytes an image up and one a client down.
    assert [(turn.samples, turn.bytes) for turn in turns] == [(6, 62), (6, 62)]
    assert other._process.returncode is not None


def test_a_library_that_they_miss_is_named(tmp_path: Path) -> None:
    root = fsl_sage(tmp_path)
    (root / "src/hydra/__init__.py").write_text("import no_such_library")
    with (
        Theirs("fsl_sage", root, sys.executable, FSL_SAGE) as other,
        pytest.raises(TrainingError, match="'no_such_library'; --official-python names an"),
    ):
        other.round()


def test_rounds_begin_when_asked_and_end_at_anything_else() -> None:
    answers = io.StringIO()
    turns = theirs.Turns(io.StringIO("round\nend\n"), answers)
    turns.begin()
    turns.samples += 4
    turns.end(7.0)
    with pytest.raises(SystemExit):
        turns.begin()
    turn = read(answers.getvalue(), "it")
    assert (turn.samples, turn.bytes) == (4, 7)


def test_images_are_ready_or_go_through_their_transform() -> None:
    turns = theirs.Turns(io.StringIO(), io.StringIO())
    ready = theirs.Images(turns, 3, None)
    image, label = ready[1]
    assert image.dtype is torch.float32 and 0 <= label < theirs.CLASSES
    assert theirs.Images(None, 3, lambda image: image.size)[0][0] == (32, 32)
    assert turns.samples == 1


@pytest.mark.parametrize("name", ["fsl_sage", "ho_sfl"])
def test_a_folder_without_their_code_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--official-{name} is .*where no src/.* it must be "):
        checkout(name, tmp_path)


def test_without_checkouts_it_says_what_to_give_and_yields_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(official.run(arguments())) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("nothing is measured without --official-" in line for line in said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--official-methods", "heron"), "names 'heron'; there are splitfed_v2, cse_fsl"),
        (("--official-probes", "5,0"), "has '0'; it must be whole numbers from 1"),
        (("--official-probes", "x"), "has 'x'; it must be"),
    ],
)
def test_options_out_of_range(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        next(official.run(arguments(*words)))


class Other:
    """Rounds of theirs that take 3 s and so many samples."""

    def __init__(self, samples: int) -> None:
        self._turn = Turn(3.0, 6.0, samples, 5)

    def round(self) -> Turn:
        """Return the round."""
        return self._turn


def watched(samples: int, **last: Any) -> official._Watch:
    """Return what watched a run of two rounds of 10 samples, of which the second counts."""
    watch = official._Watch(1, cast(Theirs, Other(samples)))
    for round in (0, 1):
        watch(RoundRecord(round, 10 * round, 0, 0.0, bytes_up=round))
    watch(RoundRecord(2, 20, 0, 0.0, bytes_up=4, bytes_down=5, **last))
    return watch


def test_a_figure_is_their_seconds_over_ours() -> None:
    watch = watched(10)
    # The round itself took no time to speak of: what it is held against is put in its place.
    assert [(turn.samples, turn.bytes) for turn in watch.ours] == [(10, 8)]
    watch.ours = [Turn(2.0, 4.0, 10, 8)]
    figure = watch.figure("official_x", "setting", "inline")
    assert (figure.value, figure.target, figure.met) == (1.5, 1.2, True)
    assert "(4 s and 6 s of processors)" in figure.setting
    assert "5 and 3 samples/s" in figure.setting
    assert "of processors" not in watch.figure("official_x", "setting", "ray").setting


def test_a_limit_is_their_seconds_over_those_of_the_arithmetic() -> None:
    watch = watched(10)
    watch.ours, watch.bare = [Turn(2.0, 4.0, 10, 8)], [1.0, 1.6, 1.25]
    figure = watch.limit("official_x_limit")
    assert (figure.value, figure.met) == (2.4, None)
    assert "ours takes 1.600 times the bare loop" in figure.setting


def test_other_work_and_lost_replies_are_no_comparison() -> None:
    with pytest.raises(TrainingError, match="took 10 samples, one of theirs 9; they must be"):
        watched(9)
    with pytest.raises(TrainingError, match="lost a reply: a note"):
        watched(10, failures=1, notes=("a note",))


def test_an_answer_that_is_none_and_an_error() -> None:
    with pytest.raises(TrainingError, match=r"^The code ended .* what it prints is not kept"):
        read("", "The code")
    with pytest.raises(TrainingError, match=r"^The code stopped: E: why; --official-python"):
        read(json.dumps({"error": "E: why"}), "The code")
