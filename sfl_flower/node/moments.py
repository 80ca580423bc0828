"""What enters the layers of a client half on samples of a client, as it is sent at the join."""

from __future__ import annotations

import numpy as np

from sfl_flower.data import generator, subspace_draw
from sfl_flower.node.node import Node
from sfl_flower.split import input_moments, sketch_moments
from sfl_flower.training.modes import eval_mode, torch_threads

__all__ = ["BATCH", "own_moments"]

BATCH = 64
"""Samples that are looked at, their labels and augmentation left aside."""


def own_moments(node: Node) -> np.ndarray:
    """Return a sketch of the second moments of each layer's inputs, float32, shape [n].

    The samples are drawn from those of the node, whatever it is asked later.

    Parameters
    ----------
    node : Node
        The client.
    """
    drawn = generator("subspace batch", node.model_seed, node.partition)
    rows = drawn.permutation(node.rows)[:BATCH]
    client = node.task.build(node.model_seed).client
    with torch_threads(1), eval_mode(client):
        moments = input_moments(client, node.task.batch(node.samples, rows)[0])
        sketch = sketch_moments(client, moments, subspace_draw(node.model_seed))
    found: np.ndarray = sketch.numpy()
    return found
