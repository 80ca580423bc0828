"""The deployed benchmark leaves no process behind."""

from __future__ import annotations

import select
import subprocess

import pytest

from tests.processes import end


@pytest.mark.parametrize("leader", ["exit 0", "wait"])
@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_all_of_a_group_ends_with_and_without_its_leader(leader: str, trap: str) -> None:
    process = subprocess.Popen(
        ["sh", "-c", f"{trap} sleep 600 & echo begun; {leader}"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    if leader == "exit 0":
        process.wait(timeout=30)
    end(process, grace_s=0.5)
    # The pipe is at its end when nobody of the group is left to write.
    assert select.select([process.stdout], [], [], 10.0)[0] and process.stdout.read() == ""
    process.stdout.close()
    assert process.wait(timeout=30) is not None
