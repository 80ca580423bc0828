"""Named tensors on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfl_flower.errors import DataError
from sfl_flower.report.tensors import _sum, load_tensors, save_tensors


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


@pytest.mark.parametrize("digests", [None, "no JSON", "7", '["a"]', "[" * 9000])
def test_metadata_without_digests_are_damage_and_no_crash(
    digests: str | None, tmp_path: Path
) -> None:
    """Their own digest fits: whoever wrote them computed it."""
    path = tmp_path / "some.safetensors"
    header = {"format": "pt"} if digests is None else {"digests": digests}
    save_file({"a": torch.ones(2)}, path, {**header, "sha256": _sum(header)})
    with pytest.raises(DataError, match=r"Cannot read the file .*its metadata hold no digests"):
        load_tensors(path, "the file")
