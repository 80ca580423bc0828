"""The sentences: those of the CSV file that MY_APP_DATA names, or 600 made up for the start.

The file has the columns `text` and `label`. Change CLASSES to the labels of yours.
"""

import csv
import os
import random
import re
from zlib import crc32

import torch
from sfl_flower import Samples

CLASSES = ["cooking", "sport", "weather"]  # the labels, in order
WORDS = 1000  # numbers that words get; two words may share one
LENGTH = 24  # words of a sentence: longer ones are cut short


def load(split):
    """Return the sentences of "train" or "test", numbers of words [N, LENGTH], and their labels."""
    file = os.environ.get("MY_APP_DATA")
    rows = read(file) if file else made_up()
    # Every fifth is for the test; the same ones in every process.
    rows = [row for i, row in enumerate(rows) if (i % 5 == 0) == (split == "test")]
    x = torch.tensor([numbers(text) for text, _ in rows])
    return Samples(x, torch.tensor([CLASSES.index(label) for _, label in rows]))


def read(file):
    """Return the rows of a CSV file; a label that CLASSES lacks is an error."""
    with open(file, encoding="utf-8", newline="") as opened:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(opened)]
    if unknown := {label for _, label in rows} - set(CLASSES):
        raise ValueError(f"{file} has labels that CLASSES in data.py lacks: {sorted(unknown)}.")
    return rows


def numbers(text):
    """Return a number for each word, the same in every process, so no vocabulary is shared."""
    words = re.findall(r"\w+", text.lower())[:LENGTH]
    found = [1 + crc32(word.encode()) % (WORDS - 1) for word in words]
    return found + [0] * (LENGTH - len(found))


def made_up():
    """Return sentences of a few words each, some of them of their topic: no CSV file needed."""
    topics = {
        "cooking": "oven pan salt dough soup knife butter taste boil recipe".split(),
        "sport": "match goal team coach race score win ball league run".split(),
        "weather": "rain wind cloud storm sun snow cold heat forecast fog".split(),
    }
    common = "the a it was very today and then we you again after with some more good".split()
    draw = random.Random(0)
    rows = []
    for number in range(600):
        label = CLASSES[number % 3]
        words = draw.choices(common, k=9) + draw.choices(topics[label], k=3)
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows
