"""What was found of clients' answers, counted over a run."""

from __future__ import annotations

from sfl_flower.report import RoundRecord, Summary
from sfl_flower.report.conduct import conduct, conduct_lines, rounds_each


def record(**clients: tuple[int, ...]) -> RoundRecord:
    return RoundRecord(round=1, samples=0, exchanges=0, seconds=0.0, clients=clients)


def test_rounds_are_counted_by_client_and_by_what_was_found() -> None:
    found = conduct([record(refused=(1,), outlying=(1, 10)), record(outlying=(10,)), record()])
    assert found == {"1": {"outlying": 1, "refused": 1}, "10": {"outlying": 2}}
    assert list(found) == ["1", "10"]


def test_a_line_names_each_client_worth_a_look_the_worst_first() -> None:
    found = conduct([record(refused=(3, 7), clipped=(2, 7)), record(outlying=(7,), refused=(7,))])
    assert conduct_lines(found, 2) == [
        "Answers of client 7: clipped in 1 round, outlying in 1 round, refused in 2 rounds.",
        "Answers of client 3: refused in 1 round.",
    ]
    many = conduct([record(refused=tuple(range(14)))])
    assert len(conduct_lines(many, 1)) == 11
    assert conduct_lines(many, 1)[-1] == "Of 4 more clients, see the history."


def test_who_is_clipped_or_now_and_then_outlying_is_not_named() -> None:
    often = conduct([record(outlying=(1,), clipped=(2,))] * 5)
    assert conduct_lines(often, 10) == ["Answers of client 1: outlying in 5 rounds."]
    assert conduct_lines(often, 11) == []
    assert conduct_lines(conduct([record(outlying=(1,))] * 2), 2) == []


def test_rounds_are_those_of_the_average_client() -> None:
    def history(first: int) -> list[RoundRecord]:
        return [RoundRecord(round, 0, 0, 0.0) for round in range(first, 9)]

    assert rounds_each(history(0), 0.5) == 4.0
    assert rounds_each(history(3), 1.0) == 6.0  # of a history that begins at a resume
    assert rounds_each([], 1.0) == 0.0


def test_a_record_and_a_summary_keep_it() -> None:
    one = record(refused=(1, 4))
    assert RoundRecord.from_json(one.to_json()) == one
    line = one.to_json().replace(', "clients": {"refused": [1, 4]}', "")
    assert RoundRecord.from_json(line).clients == {}  # of an earlier release
    summary = Summary("ho_sfl", {}, 0, clients=conduct([one]))
    values = summary.to_dict()
    assert Summary.from_dict(values) == summary
    del values["clients"]
    assert Summary.from_dict(values).clients == {}
