"""`sfl options`: every option of every method has legal values and a meaning of its own."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pytest

from sfl_flower.cli.main import main
from sfl_flower.cli.options import _meanings, _task_meanings
from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS
from sfl_flower.options import Choice, Range, legal_values
from sfl_flower.tasks import TASKS, task_options

KINDS: dict[str, Any] = {
    "a run": RunConfig,
    **{name: method.settings for name, method in METHODS.items()},
}
PLAIN = {"a whole number", "a number", "a text"}


@pytest.mark.parametrize("name", KINDS)
def test_a13_every_option_says_what_it_may_be_and_what_it_means(name: str) -> None:
    kind = KINDS[name]
    names = [field.name for field in dataclasses.fields(kind)]
    legal, meanings = legal_values(kind), _meanings(kind)
    assert [option for option in names if legal[option] in PLAIN] == []
    assert [option for option in names if len(meanings.get(option, "")) < 10] == []
    said = [meanings[option] for option in names]
    assert len(set(said)) == len(said)
    assert not [text for text in said if "Its settings" in text or "see `" in text]


@pytest.mark.parametrize("name", TASKS)
def test_a13_every_option_of_a_task_has_a_meaning(name: str) -> None:
    meanings = _task_meanings(name)
    assert [key for key in task_options(name) if len(meanings.get(key, "")) < 10] == []


def test_a13_what_is_shown_is_what_is_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of `sfl options` and of the error come from the annotation."""
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["options", "ho_sfl"]) == 0
    shown = capsys.readouterr().out
    for words in ("in [1, 4096]", "rademacher, gaussian, sphere", "own, shared", "as_built, eval"):
        assert words in shown
    kind = METHODS["ho_sfl"].settings
    for option, wrong in {
        "probes": 0,
        "minibatches": 4097,
        "directions": "mine",
        "mu": 0.0,
    }.items():
        with pytest.raises(ConfigError) as caught:
            kind(**{option: wrong})
        assert legal_values(kind)[option] in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_a13_every_default_is_legal_and_every_range_refuses_what_is_outside(name: str) -> None:
    kind = KINDS[name]
    kind()
    for option, text in legal_values(kind).items():
        default = getattr(kind(), option)
        if text.startswith(("in [", "at least", "finite")) and isinstance(default, int | float):
            with pytest.raises(ConfigError, match=option):
                kind(**{option: type(default)(-1)})


@dataclasses.dataclass(frozen=True)
class Own(Settings):
    """Settings of a method of one's own."""

    steps: Annotated[int, Range(1, 8)] = 2
    kind: Annotated[str, Choice(("a", "b"))] = "a"
    share: Annotated[float | None, Range(0, 1)] = None
    plain: int = 3


def test_a13_a_method_of_ones_own_is_checked_from_its_annotations() -> None:
    assert legal_values(Own) == {
        "steps": "in [1, 8]",
        "kind": "a, b",
        "share": "in [0, 1], or none",
        "plain": "a whole number",
    }
    for wrong in ({"steps": 9}, {"kind": "c"}, {"share": 1.5}, {"share": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Own(**wrong)


@pytest.mark.parametrize("name", [None, *METHODS, *TASKS])
def test_the_table_fits_the_terminal_and_names_no_internal_note(
    name: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["options", *([name] if name else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[:-3]) <= 80
