"""Cutting a model in two, and finding what would break a client that only runs forwards.

Names are imported at first use, and stand in ``__init__.pyi`` for type checkers.
"""

import lazy_loader

_NAMES = {
    "called": ["called_layers"],
    "checks.checks": ["Problem", "check_zeroth_order", "freeze_batch_norm", "problems"],
    "cutting": ["Halves", "cut", "every_cut", "legal_cuts"],
    "graph.half": ["Half"],
    "heads": ["HEADS", "make_head", "own_init"],
    "parameters.batch_norm": ["moving_statistics"],
    "parameters.quantised": [
        "dequantised",
        "held_bytes",
        "load_dequantised",
        "parts",
        "stay_frozen",
    ],
    "parameters.directions": [
        "GradientMoments",
        "fit_subspace",
        "gradient_moments",
        "input_moments",
        "plain_gradients",
        "set_directions",
        "sketch_moments",
        "sketched_moments",
        "with_gradients",
    ],
    "parameters.energy": ["choose_subspace", "held_energy"],
    "parameters.subspace": ["Auto", "Subspace", "plain_weights", "read_subspace"],
    "parameters.trained": ["TRAINED", "check_trained", "restrict"],
    "parameters.travelling": [
        "base_digest",
        "base_state",
        "buffers_of",
        "carried_state",
        "load_carried",
        "load_travelling",
        "travelling_state",
    ],
    "prefix": ["Parted", "parted"],
    "tails": ["Tailed", "adopt", "cut_tail"],
    "whole": ["Whole"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)
