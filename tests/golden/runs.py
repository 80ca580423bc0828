"""Three recorded runs: their journals, digests and models as hashes, the same on every x86-64.

``python tests/golden/runs.py`` prints them as JSON; `tests/test_golden.py` compares with
`runs.json`.  Every option is written out, so a changed default changes nothing here, and nothing
but the public interface is used, so that the file runs on any commit.  Recorded when clients came
to draw from keys of their own, and everybody to build the model from a seed of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Kernels that every x86-64 has: sums must not depend on the machine. Read when torch is imported.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}
for _name, _value in PORTABLE.items():
    os.environ[_name] = _value

import torch  # noqa: E402
from torch import nn  # noqa: E402

from sfl_flower import Samples, SplitTask, simulate  # noqa: E402

COMMON: dict[str, Any] = {
    "backend": "inline",
    "clients": 4,
    "batch_size": 8,
    "seed": 7,
    "partition": "dirichlet",
    "alpha": 0.5,
    "mean": "samples",
    "server_optimizer": "sgd",
    "server_lr": 0.05,
    "server_momentum": 0.9,
    "eval_every": 2,
}
RUNS: dict[str, dict[str, Any]] = {
    "ho_sfl": {
        "rounds": 8, "probes": 4, "mu": 1e-3, "minibatches": 2, "direction": "rademacher",
        "directions": "own", "estimator": "forward", "client_optimizer": "momentum",
        "client_lr": 0.02, "client_momentum": 0.9, "sync": "replay", "sampled": 3,
        "server_steps": "round", "clip_norm": 0.0,
    },
    "heron": {
        "rounds": 4, "local_steps": 3, "upload_every": 2, "probes": 4, "mu": 1e-3,
        "client_lr": 0.05, "client_lr_schedule": "cosine", "client_lr_warmup": 0.25,
        "head": "linear", "head_trainer": "server", "head_lr": 0.02, "uplink": "scalars",
        "client_optimizer": "sgd", "direction": "rademacher", "estimator": "forward",
    },
    "fsl_sage": {
        "rounds": 4, "local_steps": 3, "upload_every": 2, "align_every": 2, "align_epochs": 3,
        "buffer": 32, "head": "linear", "head_optimizer": "adam", "head_lr": 1e-3,
        "client_lr": 0.05, "client_optimizer": "sgd", "client_momentum": 0.9,
    },
}  # fmt: skip


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _data(seed: int, count: int) -> Samples:
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    return Samples(x, x.reshape(count, 3, 4).sum(2).argmax(1))


TINY = SplitTask(
    "tiny", _model, "1", train=lambda: _data(0, 160), test=lambda: _data(1, 64), classes=3
)


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def record(method: str) -> dict[str, str]:
    """Return hashes of what a run of this method leaves."""
    task: Any = "digits" if method == "ho_sfl" else TINY
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        result = simulate(task, method, out=out, **COMMON, **RUNS[method])
        journal = out / "journal.bin"
        found = {
            "model": _hash(
                *(
                    part
                    for name, value in sorted(result.model.items())
                    for part in (name.encode(), value.contiguous().numpy().tobytes())
                )
            ),
            "losses": _hash(*(repr(record.loss).encode() for record in result.history)),
        }
        if journal.exists():
            found["journal"] = _hash(journal.read_bytes())
            found["digest"] = result.history[-1].digest
        return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        json.dump({method: record(method) for method in RUNS}, sys.stdout, indent=2)
    print()
