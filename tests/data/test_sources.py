from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from sfl_flower.data import Samples
from sfl_flower.errors import DataError

X = torch.arange(12.0).reshape(6, 2)
Y = torch.arange(6) % 3


class _Rows(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y.tolist(), strict=True)


def _hugging_face() -> Any:
    from datasets import Dataset

    data = Dataset.from_dict({"img": X.tolist(), "label": Y.tolist()})
    return data.with_transform(
        lambda batch: {"img": [torch.tensor(v) for v in batch["img"]], "label": batch["label"]}
    )


SOURCES: dict[str, Callable[[], Any]] = {
    "pair": lambda: (X.numpy(), Y.tolist()),
    "dict": lambda: {"x": X, "y": Y},
    "dataset": lambda: TensorDataset(X, Y),
    "subset": lambda: Subset(TensorDataset(X, Y), range(6)),
    "iterable": _Rows,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "shuffling loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "hugging face": _hugging_face,
    "loader of hugging face": lambda: DataLoader(_hugging_face(), batch_size=4),
    "samples": lambda: Samples(X, Y),
}


@pytest.mark.parametrize("form", SOURCES)
def test_a6_samples_of_every_form_are_all_of_them_in_order(form: str) -> None:
    found = Samples.of(SOURCES[form]())
    assert torch.equal(found.x, X)
    assert (found.y.tolist(), found.y.dtype) == (Y.tolist(), torch.int64)


def test_a6_a_loader_of_a_part_gives_that_part() -> None:
    loader = DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([4]))
    assert Samples.of(loader).x.tolist() == [[8.0, 9.0]]


def test_a6_images_become_bytes_with_channels_first() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    found = Samples.of(_Images(image, pixels))
    assert (found.x.shape, found.x.dtype) == ((2, 3, 2, 4), torch.uint8)
    assert torch.equal(found.x[0], torch.from_numpy(pixels).permute(2, 0, 1))


class _Images(torch.utils.data.Dataset):
    def __init__(self, image: Any, pixels: Any) -> None:
        self.image, self.pixels = image, pixels

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> Any:
        return {"image": self.image.fromarray(self.pixels), "label": row}


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        ({"a": X, "b": Y, "c": Y}, {}, r"not clear from a, b, c; .*x='image', y='label'"),
        ({"a": X, "b": Y}, {"x": "z", "y": "b"}, "not clear from a, b"),
        (3, {}, "A int cannot be read as samples"),
        ("train.csv", {}, "A str cannot be read"),
        (TensorDataset(X, Y, Y), {}, "An item of the data set is 3 values"),
        (TensorDataset(X[:0], Y[:0]), {}, "holds no samples"),
        ((["good film", "bad film"], [1, 0]), {}, "x holds texts such as 'good film'"),
    ],
)
def test_a6_a_source_that_cannot_be_read_is_named(
    source: Any, names: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Samples.of(source, **names)


def test_a6_inputs_of_several_shapes_are_named_by_row() -> None:
    ragged = [(X[0], 0), (torch.zeros(3), 1)]

    class Ragged(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> Any:
            return ragged[row]

    with pytest.raises(DataError, match=r"row 1 has \[3\] torch.float32 and row 0 \[2\]"):
        Samples.of(Ragged())


def test_a6_the_columns_can_be_named() -> None:
    assert Samples.of({"a": X, "b": Y, "c": Y + 1}, x="a", y="c").y.tolist() == (Y + 1).tolist()
