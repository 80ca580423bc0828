"""The data: a CSV file is read as it lies there."""

import pytest
import torch

from my_app import data


def test_a_file_of_rows(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    rows = [[*[str(float(number))] * data.COLUMNS, str(number % 2)] for number in range(10)]
    file.write_text("\n".join(["names", *(",".join(row) for row in rows)]), encoding="utf-8")
    monkeypatch.setenv("MY_APP_DATA", str(file))
    test, train = data.load("test"), data.load("train")
    assert test.y.tolist() == [0, 1]  # rows 0 and 5
    # The other rows have the mean 5, and what they have in common with themselves is spread 1.
    assert torch.allclose(test.x[1], torch.zeros(data.COLUMNS), atol=1e-6)
    assert torch.allclose(train.x.std(dim=0), torch.ones(data.COLUMNS))


def test_a_table_of_another_width_is_named(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,0\n", encoding="utf-8")
    monkeypatch.setenv("MY_APP_DATA", str(file))
    with pytest.raises(ValueError, match="has 2 columns"):
        data.load("train")
