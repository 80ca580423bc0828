"""Zeroth-order engine: directions, probes, estimators, replayable optimisers, journal.

Needs torch and numpy, nothing of Flower.

Names are imported at first use, and stand in ``__init__.pyi`` for type checkers.
"""

import lazy_loader

_NAMES = {
    "clipping": ["clip_scalars"],
    "coefficients": [
        "StepRule",
        "condition_guided",
        "condition_scalars",
        "drawn_signs",
        "step_coefficients",
    ],
    "directions": ["Direction", "Directions"],
    "entry": ["Entry"],
    "estimators": ["ESTIMATORS"],
    "guide": ["Guide", "guided"],
    "header": ["JournalHeader", "manifest_digest", "params_digest"],
    "journal": ["Journal", "Tail", "tail_bytes", "tail_ends"],
    "keys": ["Key", "SHARED_STREAM", "client_stream", "run_key", "step_keys"],
    "laws": ["LAWS"],
    "optimizers": ["OPTIMIZERS", "OptimizerSpec"],
    "probing": ["Probing"],
    "replica": ["Replica"],
    "scalars": ["Sweep", "loss_scalars", "surrogate_scalars", "totals"],
    "spread": ["SCALES"],
    "vector": ["ParameterVector", "trained_names"],
    "walk": ["Walk"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)
