"""Runs rounds of the published code of others, from a checkout of it, when it is asked to.

A program of its own, ``python -P theirs.py KIND FOLDER SETTINGS``: another interpreter may run it,
which has what that code needs and not this project.  Its training is theirs, line by line.  Stood
in for are the data sets (noise of CIFAR-10's size) and wandb, which is imported there and not used.

It answers each line ``round`` on its standard input with one of JSON, and ends at any other.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

__all__ = ["FOLDERS", "main"]

FOLDERS = {"fsl_sage": "src/algos/fsl_sage.py", "ho_sfl": "src/runner/ho_sfl_runner.py"}
"""A file of each checkout, by which it is known."""
SIDE, CLASSES, TESTED = 32, 10, 1
ENDLESS = 10**9


class Turns:
    """Rounds that begin when they are asked for.

    Parameters
    ----------
    asked, answers : text files
        Where requests come from, and where answers go.
    """

    def __init__(self, asked: TextIO, answers: TextIO) -> None:
        self._asked, self._answers = asked, answers
        self._began = self._cpu = 0.0
        self.samples = 0

    def begin(self) -> None:
        """Wait for the next request.

        Raises
        ------
        SystemExit
            If there is none.
        """
        if self._asked.readline().strip() != "round":
            raise SystemExit(0)
        self.samples = 0
        self._began, self._cpu = perf_counter(), process_time()

    def end(self, bytes: float) -> None:
        """Answer how long the round took, its samples, and the bytes their code counted."""
        seconds, cpu = perf_counter() - self._began, process_time() - self._cpu
        counted = {"samples": self.samples, "bytes": int(bytes)}
        self.answer({"seconds": seconds, "cpu": cpu, **counted})

    def answer(self, said: Mapping[str, Any]) -> None:
        """Write one line."""
        self._answers.write(f"{json.dumps(said)}\n")
        self._answers.flush()


class Images(torch.utils.data.Dataset[tuple[Any, int]]):
    """Noise in place of CIFAR-10, whose files the checkout does not hold.

    Parameters
    ----------
    turns : Turns
        Told of each image that training takes.
    images : int
        How many.
    augment : callable or None
        Their transform of an image, None for images that are ready.
    """

    def __init__(self, turns: Turns | None, images: int, augment: Any) -> None:
        self._turns, self._augment = turns, augment
        draw = np.random.default_rng(0)
        if augment is None:
            drawn = draw.standard_normal((images, 3, SIDE, SIDE), dtype=np.float32)
            self._images: list[Any] = list(torch.from_numpy(drawn))
        else:
            from PIL import Image

            pixels = draw.integers(256, size=(images, SIDE, SIDE, 3), dtype=np.uint8)
            self._images = [Image.fromarray(each) for each in pixels]
        self._labels = [int(label) for label in draw.integers(CLASSES, size=images)]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self._turns is not None:
            self._turns.samples += 1
        image = self._images[index]
        return (image if self._augment is None else self._augment(image)), self._labels[index]


def fsl_sage(turns: Turns, folder: Path, settings: Mapping[str, Any]) -> None:
    """Run a method of FSL-SAGE's repository: its setup, its loop, its configuration."""
    _enter(folder / "src")
    import torchvision

    clients, each = settings["clients"], settings["images"]

    def cifar10(root: str, train: bool, download: bool, transform: Any) -> Images:
        augment = transform if settings["augment"] else None
        if not train:  # they evaluate every round: as little as their code allows
            return Images(None, TESTED * clients, augment)
        return Images(turns, clients * each, augment)

    vars(torchvision.datasets)["CIFAR10"] = cifar10
    rate = settings["lr"]
    head = "model.auxiliary"
    cfg = _configuration(
        folder / "src" / "hydra_config",
        "config",
        f"algorithm={settings['method']}",
        "model=resnet18",
        "save=false",
        "device=cpu",
        f"rounds={ENDLESS}",
        "comm_threshold_mb=null",
        f"num_clients={clients}",
        "model.client.epoch=1",
        f"model.client.batch_size={settings['batch_size']}",
        *(f"model.{side}.optimizer.options.lr={rate}" for side in ("client", "server")),
        *(f"model.{side}.optimizer.options.weight_decay=0" for side in ("client", "server")),
        f"{head}.optimizer.options.lr={rate}",
        f"{head}.options.align_epochs=1",
        *_algorithm(settings),
    )
    _seed(cfg.seed)
    theirs, algorithms = importlib.import_module("main"), importlib.import_module("algos")
    device = torch.device("cpu")
    vars(theirs)["global_torch_device"] = device
    with importlib.import_module("omegaconf").open_dict(cfg):
        server, members, test = theirs.setup_server_and_clients(cfg)
    counted = 0.0

    def end(log: Mapping[str, Any], step: int) -> None:
        nonlocal counted
        load = log["Test/load"][-1]
        turns.end(load - counted)
        counted = load
        turns.begin()

    turns.begin()
    algorithms.run_fl_algorithm(cfg, server, members, test, None, device, logger_fn=end)


def _algorithm(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings["method"] in ("cse_fsl", "fsl_sage"):
        yield f"algorithm.server_update_interval={settings['period']}"
    if settings["method"] == "fsl_sage":
        yield f"algorithm.align_interval={ENDLESS}"  # the first round alone, which is not counted


class Batches:
    """In place of their data manager, which is not published: a ready mini-batch a client.

    Parameters
    ----------
    turns : Turns
        Begun and ended where the first of a round's clients is asked for its data.
    clients, sampled, batch_size : int
        Clients, those of a round, and samples of each.
    """

    def __init__(self, turns: Turns, clients: int, sampled: int, batch_size: int) -> None:
        draw = np.random.default_rng(0)
        shape = (clients, batch_size, 3, SIDE, SIDE)
        self._x = torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))
        self._y = torch.from_numpy(draw.integers(CLASSES, size=(clients, batch_size)))
        self._turns, self._sampled, self._asked = turns, sampled, 0
        self._counted = 0
        self.communicator: Any = None

    def get_client_loader(self, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over a client's mini-batches."""
        if self._asked % self._sampled == 0:
            self._turn()
        self._asked += 1
        self._turns.samples += len(self._y[client])
        return iter([(self._x[client], self._y[client])])

    def _turn(self) -> None:
        stats = self.communicator.get_stats()
        counted = stats["total_uplink"] + stats["total_downlink"]
        if self._asked:
            self._turns.end(counted - self._counted)
        self._counted = counted
        self._turns.begin()


def ho_sfl(turns: Turns, folder: Path, settings: Mapping[str, Any]) -> None:
    """Run HO-SFL's published vision runner: its rounds, its model, its configuration."""
    _enter(folder)
    clients, sampled = settings["clients"], settings["sampled"]
    cfg = _configuration(
        folder / "conf",
        "base",
        "system.device=cpu",
        "model.use_pretrained=false",
        "model.freeze_bn=false",  # the client half's is frozen where the model is split
        f"algo.lr={settings['lr']}",
        f"+algo.weight_decay={settings['weight_decay']}",
        f"algo.zo_p={settings['probes']}",
        f"algo.zo_mu={settings['mu']}",
        f"runner.num_clients={clients}",
        f"runner.sampled_clients={sampled}",
        f"runner.communication_rounds={ENDLESS}",
        f"runner.evaluation_interval={ENDLESS}",
        f"runner.total_samples={ENDLESS}",
        "logging.use_wandb=false",
    )
    _seed(cfg.seed)
    batches = Batches(turns, clients, sampled, settings["batch_size"])
    runner = importlib.import_module("src.runner.ho_sfl_runner").HO_SFLRunner(cfg, batches)
    batches.communicator = runner.communicator
    runner.run()


def _enter(folder: Path) -> None:
    """Stand in a folder and import from it first."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.modules.setdefault("wandb", ModuleType("wandb"))


def _configuration(folder: Path, name: str, *changed: str) -> Any:
    hydra = importlib.import_module("hydra")
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose(name, overrides=list(changed))


def _seed(seed: int) -> None:
    """Seed the global generators, from which their code draws, as their main programs do."""
    random.seed(seed)  # noqa: TID251
    np.random.seed(seed)  # noqa: TID251
    torch.manual_seed(seed)  # noqa: TID251


def main(kind: str, folder: str, settings: str) -> None:
    """Run rounds of a checkout until no more are asked for."""
    # What their code prints, progress bars above all, goes nowhere: the pipe is for answers.
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    turns = Turns(sys.stdin, answers)
    told = json.loads(settings)
    torch.set_num_threads(told["threads"])
    try:
        {"fsl_sage": fsl_sage, "ho_sfl": ho_sfl}[kind](turns, Path(folder), told)
    except (Exception, SystemExit) as error:
        if getattr(error, "code", None) != 0:  # not the end that was asked for
            turns.answer({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
