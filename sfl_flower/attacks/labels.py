"""Label inference: what cut gradients and smashed data tell of labels that were not sent.

Today's methods with a cut send labels to the server in the clear; these attacks say what a client
that kept them to itself would still show.  The attacker knows the labels of a few samples of each
class.  From gradients: the norm attack and the cosine attack of Li et al. (arXiv 2102.08504), made
for two classes and here for any number.  From smashed data: the label of the nearest known sample,
and of the cluster that a sample falls into; and what the server half makes of it, which takes no
known label.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sfl_flower.attacks.parts import in_parts
from sfl_flower.data import derive
from sfl_flower.task import SplitTask

__all__ = [
    "cosine_scores",
    "cut_gradients",
    "known_rows",
    "label_scores",
    "norm_scores",
    "output_scores",
]


def known_rows(y: Tensor, each: int) -> Tensor:
    """Return the rows of the first so many samples of each class."""
    return torch.cat([torch.nonzero(y == c)[:each, 0] for c in y.unique().tolist()])


def cut_gradients(task: SplitTask, server: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each sample's loss at its smashed data, [N, ...]; λ times n."""

    def some(z: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            given = z.detach().clone().requires_grad_()
            (found,) = torch.autograd.grad(task.loss(server(given), y) * len(y), given)
        return found

    return in_parts(some, z, y)


def norm_scores(gradients: Tensor, known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Score classes by how near the logarithm of a gradient's norm is to that of known ones.

    Parameters
    ----------
    gradients, known : Tensor
        Of samples, and of samples whose labels are known, [N, ...] and [M, ...].
    labels : Tensor
        Of the known, [M].
    classes : int
        How many there are.

    Returns
    -------
    Tensor
        [N, classes]; the least possible for a class of which none is known.
    """
    own, told = (t.flatten(1).norm(dim=1).clamp_min(1e-30).log() for t in (gradients, known))
    found = torch.full((len(own), classes), -1e30)
    for c in labels.unique().tolist():
        found[:, c] = -(own - told[labels == c].mean()).abs()
    return found


def cosine_scores(gradients: Tensor, known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Score classes by the largest cosine with a known sample's gradient; as `norm_scores`."""
    own, told = (normalize(t.flatten(1), dim=1) for t in (gradients, known))
    return _of_classes(own @ told.T, labels, classes)


def nearest_scores(z: Tensor, known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Score classes by the distance to the nearest known sample; as `norm_scores`."""
    return _of_classes(-torch.cdist(z.flatten(1), known.flatten(1)), labels, classes)


def cluster_scores(
    z: Tensor, known: Tensor, labels: Tensor, classes: int, *words: str | int
) -> Tensor:
    """Score classes by the known samples in the cluster that a sample falls into.

    k-means with a cluster a class, on victims and known samples together; a cluster takes the label
    of the known sample nearest to its centre. As `norm_scores`.
    """
    from sklearn.cluster import KMeans

    both = torch.cat([z, known]).flatten(1).numpy()
    few = min(classes, len(np.unique(both, axis=0)))
    means = KMeans(few, n_init=4, random_state=derive("clusters", *words) % 2**31).fit(both)
    centres = torch.from_numpy(means.cluster_centers_).float()
    named = nearest_scores(centres, known, labels, classes)
    return named[torch.from_numpy(means.labels_[: len(z)].astype(np.int64))]


def output_scores(output: Tensor, classes: int) -> Tensor | None:
    """Return a model's output as scores [N, classes]; None where it is no number a class.

    One number a sample speaks for the second of two classes, as with a binary loss.
    """
    if output.dim() == 1:
        output = output[:, None]
    if classes == 2 and output.shape[1:] == (1,):
        output = torch.cat([-output, output], 1)
    return output if output.shape[1:] == (classes,) else None


def label_scores(
    gradients: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor], output: Tensor, labels: Tensor,
    classes: int, *words: str | int,
) -> Mapping[str, Tensor]:  # fmt: skip
    """Return the scores of every attack by its name.

    Parameters
    ----------
    gradients, z : pair of Tensor
        Cut gradients and smashed data, of victims and of the known.
    output : Tensor
        What the server half makes of the victims' smashed data.
    labels : Tensor
        Of the known.
    classes : int
        How many there are.
    *words : str or int
        What clusters follow from.
    """
    predicted = output_scores(output, classes)
    return {
        **({} if predicted is None else {"server half": predicted}),
        "gradient norm": norm_scores(*gradients, labels, classes),
        "gradient cosine": cosine_scores(*gradients, labels, classes),
        "nearest z": nearest_scores(*z, labels, classes),
        "clusters of z": cluster_scores(*z, labels, classes, *words),
    }


def _of_classes(likeness: Tensor, labels: Tensor, classes: int) -> Tensor:
    found = torch.full((len(likeness), classes), -1e30)
    for c in labels.unique().tolist():
        found[:, c] = likeness[:, labels == c].amax(1)
    return found
