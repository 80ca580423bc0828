"""Image data sets of a file in the user's folder, or of torchvision's downloader."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch

from sfl_flower.data import Samples
from sfl_flower.data.arrays import load_arrays
from sfl_flower.errors import DataError

__all__ = ["ImageSet", "data_folder"]


def data_folder(given: str | None) -> Path:
    """Return the folder of data files: the given, else ``SFL_DATA_DIR``, else one in the cache."""
    return Path(given or os.environ.get("SFL_DATA_DIR") or "~/.cache/sfl_flower").expanduser()


@dataclass(frozen=True)
class ImageSet:
    """Where the images of a data set are.

    Parameters
    ----------
    title : str
        What to call it in an error.
    file : str
        The ``.npz`` file, with ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
    shape : tuple of int
        Shape of one stored image of bytes.
    dataset : str
        Name of torchvision's class.
    folder : str
        Folder that torchvision's download makes.
    """

    title: str
    file: str
    shape: tuple[int, ...]
    dataset: str
    folder: str

    def load(
        self,
        root: Path,
        split: Literal["train", "test"],
        size: int | None,
        reason_not_file: str | None = None,
    ) -> Samples:
        """Return the first images of a set, as stored.

        Parameters
        ----------
        root : Path
            The folder.
        split : {"train", "test"}
            Which set.
        size : int, optional
            How many images; all there are by default.
        reason_not_file : str, optional
            Why a file that is there does not do; torchvision's images are taken then.

        Returns
        -------
        Samples
            x of shape [N, *shape] and uint8, y of shape [N].

        Raises
        ------
        DataError
            There are no such images, or too few.
        """
        path = root / self.file
        from_file = reason_not_file is None and path.exists()
        if from_file:
            samples = load_arrays(path, split)
        else:
            samples = self._torchvision(root, split, reason_not_file or f"there is no {path}")
        sides = "x".join(map(str, self.shape))
        if samples.x.shape[1:] != self.shape or len(samples) < (size or 1):
            raise DataError(
                f"The {split} set under {root} has shape {list(samples.x.shape)}; {self.title} "
                f"needs at least {size or 1} images of {sides}. Replace the file or ask for fewer "
                "images."
            )
        return samples.take(slice(0, size))

    def stored(self, root: Path) -> dict[Literal["train", "test"], int] | None:
        """Return how many images the file holds of each set; None where it cannot be read."""
        try:
            with np.load(root / self.file, allow_pickle=False) as arrays:  # the labels alone
                return {"train": len(arrays["y_train"]), "test": len(arrays["y_test"])}
        except (OSError, ValueError, TypeError, KeyError, BadZipFile):
            return None  # if it is there, `load` says what is wrong with it

    def _torchvision(self, root: Path, split: Literal["train", "test"], why: str) -> Samples:
        from torchvision import datasets

        images = getattr(datasets, self.dataset)
        train = split == "train"
        try:
            with suppress(RuntimeError):  # not there, or not all of it
                return _samples(images(str(root), train=train, download=False))
            root.mkdir(parents=True, exist_ok=True)
            # Workers of a simulation start together: each downloads aside, one puts its files in
            # place.
            with TemporaryDirectory(dir=root) as aside:
                found = _samples(images(aside, train=train, download=True))
                with suppress(OSError):
                    (Path(aside) / self.folder).rename(root / self.folder)
                return found
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"{self.title} was not found and cannot be downloaded: {why}, and torchvision "
                f"said: {reason}. Put {self.file} (x_train, y_train, x_test, y_test), or "
                f"torchvision's {self.folder} folder, into a folder and name it in the "
                "environment variable SFL_DATA_DIR; or connect to the internet."
            ) from error


def _samples(images: object) -> Samples:
    """Return what a torchvision data set holds, be it tensors, arrays or lists."""
    x, y = (np.asarray(getattr(images, name)) for name in ("data", "targets"))
    return Samples(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
