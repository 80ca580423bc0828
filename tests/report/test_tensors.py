"""Named tensors on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from sfl_flower.report.tensors import load_tensors, save_tensors


def test_equal_tensors_and_metadata_give_equal_files(tmp_path: Path) -> None:
    """safetensors itself writes metadata in another order each time."""
    path, contents = tmp_path / "some.safetensors", set()
    tensors = {'\u00e4"x': torch.arange(3.0), "b": torch.zeros(2, 2, dtype=torch.int8)}
    for _ in range(12):
        save_tensors(path, tensors, {"format": "pt", "\u00fc": "\u00e9\n", "meta": "{}"})
        contents.add(path.read_bytes())
    assert len(contents) == 1
    found, header = load_tensors(path, "the file")
    assert header == {"format": "pt", "\u00fc": "\u00e9\n", "meta": "{}"}
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
