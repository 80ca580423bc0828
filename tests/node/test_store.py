from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file, save_file

from sfl_flower.errors import ConfigError
from sfl_flower.node.directory import state_root
from sfl_flower.node.store import NodeStore
from tests.local_grid import roundtrip

pytestmark = pytest.mark.flower

SMALL: dict[str, np.ndarray] = {"a": np.arange(3, dtype=np.float32), "n": np.array([7], np.int64)}
LARGE: dict[str, np.ndarray] = {"a": np.arange(300, dtype=np.float32)}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SFL_STATE_LIMIT", raising=False)


def store(node: int = 5, context: Context | None = None, limit: int | None = 100) -> NodeStore:
    return NodeStore(context or node_context(node), limit)


def node_context(node: int = 5) -> Context:
    return Context(run_id=3, node_id=node, node_config={}, state=RecordDict(), run_config={})


def files() -> list[str]:
    return sorted(path.name for path in state_root().rglob("*.safetensors"))


def equal(a: dict[str, np.ndarray] | None, b: dict[str, np.ndarray]) -> bool:
    return a is not None and a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize(("group", "count"), [(SMALL, 0), (LARGE, 1)])
def test_a_group_is_there_in_the_next_message(group: dict[str, np.ndarray], count: int) -> None:
    context = node_context()
    store(context=context).put("g", group)
    context.state = roundtrip(context.state)
    assert equal(store(context=context).get("g"), group)
    assert len(files()) == count


def test_a_newer_group_takes_the_place_of_the_older_wherever_it_was() -> None:
    box = store()
    for group in (LARGE, SMALL, LARGE, {"a": LARGE["a"] + 1}):
        box.put("g", group)
        assert equal(box.get("g"), group)
    assert len(files()) == 1
    box.drop("g")
    assert box.get("g") is None and files() == []
    box.drop("g")


def test_what_was_never_put_is_none() -> None:
    assert store().get("g") is None
    assert store().get_text("t") == {}


def test_texts_come_back() -> None:
    context = node_context()
    store(context=context).put_text("t", {"round": 4, "digest": "ab"})
    context.state = roundtrip(context.state)
    assert store(context=context).get_text("t") == {"round": 4, "digest": "ab"}


def alter(path: Path, name: str) -> None:
    """Change one bit of an array in a file, and nothing of the file's form."""
    arrays = load_file(path)
    changed = arrays[name].copy()
    changed.reshape(-1).view(np.uint8)[0] ^= 1
    save_file({**arrays, name: changed}, path)


@pytest.mark.parametrize("content", ["", "c0ffee"])
def test_c9_a_file_with_one_other_bit_is_lost(content: str) -> None:
    box, twin = store(1), store(2)
    for each in (box, twin):
        each.put("g", LARGE, content)
    for path in state_root().rglob("*.safetensors"):
        alter(path, "a")
    assert box.get("g") is None
    box.put("g", LARGE, content)
    assert equal(box.get("g"), LARGE)


@pytest.mark.parametrize("damage", ["gone", "cut", "noise"])
def test_a_lost_or_damaged_file_is_none_and_can_be_put_again(damage: str) -> None:
    box = store()
    box.put("g", LARGE, content="c0ffee")
    (path,) = state_root().rglob("*.safetensors")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50] if damage == "cut" else b"\xff" * 400)
    assert box.get("g") is None
    box.put("g", LARGE, content="c0ffee")
    assert equal(box.get("g"), LARGE)


def test_nodes_of_one_machine_share_a_file_until_the_last_drops_it() -> None:
    boxes = [store(node) for node in (1, 2, 3)]
    for box in boxes:
        box.put("g", LARGE, content="c0ffee")
    inodes = {os.stat(path).st_ino for path in state_root().rglob("*.safetensors")}
    assert (len(files()), len(inodes)) == (3, 1)
    boxes[0].put("g", {"a": LARGE["a"] * 2}, content="beef")
    boxes[1].drop("g")
    assert equal(boxes[0].get("g"), {"a": LARGE["a"] * 2})
    assert boxes[1].get("g") is None
    assert equal(boxes[2].get("g"), LARGE)


def test_a_name_in_the_state_never_leaves_the_directory() -> None:
    context = node_context()
    store(context=context).put("g", LARGE)
    outside = state_root().parent / "outside.safetensors"
    (path,) = state_root().rglob("*.safetensors")
    outside.write_bytes(path.read_bytes())
    store(context=context).put_text("g", {"file": "../../outside.safetensors"})
    assert store(context=context).get("g") is None


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFL_STATE_LIMIT", "0")
    store(limit=None).put("g", SMALL)
    assert len(files()) == 1
    monkeypatch.setenv("SFL_STATE_LIMIT", "1 MB")
    with pytest.raises(ConfigError, match="'1 MB'; it must be a whole number of bytes"):
        store(limit=None)


def test_a_node_that_is_started_again_recovers_the_newest_file_that_is_whole() -> None:
    kept, other = {"a": LARGE["a"] + 2}, store(node=6)
    other.put("g", LARGE)
    left: dict[Path, bytes] = {}
    for step, group in enumerate([LARGE, kept, {"a": LARGE["a"] + 3}]):
        store(node=5).put("g", group, content="abc"[step])  # a context of its own each time
        (path,) = state_root().rglob("g-*-5.safetensors")  # what was there before is removed
        left[path] = path.read_bytes()
    for path, content in left.items():  # as where it is killed in between
        path.write_bytes(content)
    first, second, third = (next(state_root().rglob(f"g-{c}-*-5.safetensors")) for c in "abc")
    for age, path in enumerate([third, second, first]):
        os.utime(path, (1000 - age, 1000 - age))
    alter(third, "a")
    again = store(node=5)
    assert again.get("g") is None  # what a context does not name is not there
    assert equal(again.recover("g"), kept) and equal(again.get("g"), kept)
    assert second.exists() and not first.exists() and not third.exists()
    assert equal(other.get("g"), LARGE)
    assert store(node=7).recover("g") is None


def test_what_a_node_kept_before_it_was_started_again_goes_once_it_puts_another() -> None:
    """Also where another node has that content already; the directory is listed once a name."""
    store().put("g", LARGE)
    store().put("h", LARGE)
    store(1).put("g", {"a": LARGE["a"] + 1}, content="c0ffee")
    context = node_context()
    store(context=context).put("g", {"a": LARGE["a"] + 1}, content="c0ffee")
    assert [name.split("-")[:2] for name in files() if name.endswith("-5.safetensors")] == [
        ["g", "c0ffee"],
        ["h", "own"],
    ]
    listed: list[str] = []
    own_files = NodeStore._own_files

    def spy(box: NodeStore, name: str) -> list[Path]:
        listed.append(name)
        return own_files(box, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeStore, "_own_files", spy)
        for name in ("g", "h", "i") * 3:
            box = store(context=context)
            box.put(name, {"a": LARGE["a"] + len(listed)})
            box.drop(name)
    assert listed == ["h", "i"] and len(files()) == 1
