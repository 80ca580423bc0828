"""The data: a CSV file is read as it lies there."""

import pytest

from my_app import data


def test_a_file_of_sentences(tmp_path, monkeypatch):
    file = tmp_path / "texts.csv"
    rows = "".join(f'"Word, {number}",{data.CLASSES[number % 2]}\n' for number in range(10))
    file.write_text("text,label\n" + rows, encoding="utf-8")
    monkeypatch.setenv("MY_APP_DATA", str(file))
    assert data.load("test").y.tolist() == [0, 1]  # rows 0 and 5
    found = data.load("train")
    assert found.y.tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
    assert found.x.shape == (8, data.LENGTH)
    assert (found.x[:, 0] == data.numbers("word")[0]).all()
    assert (found.x[:, 2:] == 0).all()


def test_a_label_that_is_no_class_is_named(tmp_path):
    file = tmp_path / "texts.csv"
    file.write_text("text,label\nHello,greeting\n", encoding="utf-8")
    with pytest.raises(ValueError, match="greeting"):
        data.read(file)
