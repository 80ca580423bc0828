"""What `sfl COMMAND --help` prints: it fits a screen, and ends with an example that is legal."""

from __future__ import annotations

import re
import shlex

import pytest

from sfl_flower.cli.main import main, parser

COMMANDS = (
    "new", "run", "watch", "compare", "tune", "report", "export", "profile", "attack", "options",
    "presets", "demo", "warm",
)  # fmt: skip
WIDTH, LINES = 100, 50


def test_every_command_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    listed = re.findall(r"^    (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_has_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= LINES
    program, *words = shlex.split(" ".join(shown.partition("Example: ")[2].split()))
    assert (program, words[0]) == ("sfl", command)
    assert parser().parse_args(words).action is not None
