"""The rows of a node: a share of the table that comes along, or all of its own file."""

import torch
from flwr.app import Context, RecordDict

from my_app.data import load
from my_app.task import own_rows


def node(number, of):
    config = {"partition-id": number, "num-partitions": of}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def test_shares_are_the_whole_table():
    shares = [own_rows(node(number, 3)).x for number in range(3)]
    whole = load("train").x
    assert sum(map(len, shares)) == len(whole)
    assert all(torch.equal(shares[row % 3][row // 3], whole[row]) for row in range(len(whole)))


def test_a_file_of_its_own_is_not_shared(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    columns = load("train").x.shape[1]
    rows = "\n".join(",".join([*map(str, range(columns)), str(row % 2)]) for row in range(10))
    file.write_text(f"names\n{rows}\n", encoding="utf-8")
    monkeypatch.setenv("MY_APP_DATA", str(file))
    assert len(own_rows(node(1, 2))) == 8  # of ten rows, without the two for the test
