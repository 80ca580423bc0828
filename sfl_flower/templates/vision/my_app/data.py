"""The images: those below the folder that MY_APP_DATA names, or 1797 handwritten digits.

The folder holds `train` and `test`, and each of them a folder of image files for every class:
`train/cat/1.png`. Change CLASSES, SIZE and CHANNELS to fit yours.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sfl_flower import Samples

CLASSES = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]  # names of the folders, in order
SIZE = 8  # images are brought to SIZE x SIZE pixels
CHANNELS = 1  # 3 for colour


def load(split):
    """Return the images of "train" or "test", bytes [N, CHANNELS, SIZE, SIZE], and their labels."""
    folder = os.environ.get("MY_APP_DATA")
    return images(Path(folder) / split) if folder else digits(split)


def images(folder):
    """Read a folder of folders. Every process must find the same images in the same order."""
    from PIL import Image  # here, for a client whose data are elsewhere need not wait for it

    x, y = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                image = image.convert("RGB" if CHANNELS == 3 else "L").resize((SIZE, SIZE))
                x.append(np.array(image).reshape(SIZE, SIZE, CHANNELS).transpose(2, 0, 1))
            y.append(label)
    return Samples.of((np.stack(x), np.array(y)))


def digits(split):
    """Read the digits from the file in scikit-learn; importing that would take seconds."""
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    is_test = torch.arange(len(rows)) % 5 == 0  # the same rows in every process
    rows = rows[is_test if split == "test" else ~is_test]
    pixels = rows[:, :-1] * (255 / 16)
    return Samples(pixels.to(torch.uint8).reshape(-1, 1, 8, 8), rows[:, -1].long())


def to_floats(x):
    """Turn the bytes of a batch into the model's inputs."""
    return x.float() / 255
