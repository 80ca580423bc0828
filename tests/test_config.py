from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl_flower.config import LOCAL, RunConfig
from sfl_flower.data import PartitionSpec, division_seed
from sfl_flower.errors import ConfigError
from sfl_flower.methods import METHODS, read_options
from sfl_flower.options import check_choice, check_range, read_fields


@dataclass(frozen=True)
class Example:
    whole: int = 1
    number: float = 0.5
    flag: bool = False
    word: str = "a"
    maybe: int | None = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"whole": "3"}, Example(whole=3)),
        ({"whole": 3.0}, Example(whole=3)),
        ({"number": "1e-3"}, Example(number=0.001)),
        ({"number": 2}, Example(number=2.0)),
        ({"flag": "true"}, Example(flag=True)),
        ({"flag": "False"}, Example(flag=False)),
        ({"flag": "1"}, Example(flag=True)),
        ({"word": "b"}, Example(word="b")),
        ({"maybe": "none"}, Example(maybe=None)),
        ({"maybe": "4"}, Example(maybe=4)),
        ({"maybe": 4.0}, Example(maybe=4)),
    ],
)
def test_texts_become_the_type_of_their_field(text: dict[str, Any], value: Example) -> None:
    read = read_fields(Example, text, "an example")
    assert read == value
    assert [type(getattr(read, f.name)) for f in fields(read)] == [
        type(getattr(value, f.name)) for f in fields(value)
    ]


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_e12_a_seed_that_a_float_does_not_hold_is_taken_as_it_is(seed: int) -> None:
    for given_as in (seed, str(seed)):
        assert RunConfig.read({"seed": given_as}).seed == seed
    with pytest.raises(ConfigError, match="a whole number"):
        read_fields(Example, {"whole": True}, "an example")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"whole": True}, "whole is True; it must be a whole number"),
        ({"whole": "1.5"}, "whole is '1.5'; it must be a whole number"),
        ({"whole": float("inf")}, "whole is inf; it must be a whole number"),
        ({"whole": None}, "whole is None; it must be a whole number"),
        ({"number": False}, "number is False; it must be a number"),
        ({"flag": "yes"}, "flag is 'yes'; it must be true or false"),
        ({"flag": 2}, "flag is 2; it must be true or false"),
        ({"word": 3}, "word is 3; it must be a text"),
        ({"maybe": "x"}, "maybe is 'x'; it must be a whole number"),
        ({"whol": 3}, r"Unknown option of an example 'whol'; legal are .*Did you mean 'whole'\?"),
    ],
)
def test_what_is_not_of_the_type_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_fields(Example, values, "an example")


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(sorted(RunConfig.keys())),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        max_size=3,
    )
)
def test_random_values_raise_config_errors_only(values: dict[str, Any]) -> None:
    try:
        config = RunConfig.read(values)
    except ConfigError:
        return
    assert RunConfig.read(config.to_dict()) == config


@pytest.mark.parametrize("method", METHODS)
def test_defaults_read_back_as_they_are(method: str) -> None:
    config, found, own, task = read_options({"method": method})
    again = read_options({**config.to_dict(), **own.to_dict()})
    assert again == (config, found, own, {})
    assert task == {}
    # As on a command line: everything is a text, and dashes are underscores.
    texts = {k.replace("_", "-"): str(v) for k, v in {**config.to_dict(), **own.to_dict()}.items()}
    assert read_options(texts) == again


def test_task_options_are_told_from_the_others() -> None:
    config, _, own, task = read_options(
        {"task.side-length": 3, "client-lr": "0.1", "client_threads": 2, "rounds": "7"}
    )
    assert task == {"side_length": 3}
    assert own.to_dict()["client_lr"] == 0.1
    assert (config.rounds, config.client_threads) == (7, 2)


def test_no_method_option_hides_an_option_of_the_run() -> None:
    for method in METHODS.values():
        assert not set(method.settings.__dataclass_fields__) & RunConfig.keys()


def test_every_method_is_what_its_value_says() -> None:
    types = []
    for name, method in METHODS.items():
        assert name == method.name == method.server.name
        assert method.facts is method.server.facts
        for action in method.handlers:
            _, request = method.handler(action)
            assert request.ACTION == action
            types.append(method.message_type(action))
    assert len(set(types)) == len(types)
    assert all(kind.startswith("train.") and kind.count(".") == 1 for kind in types)


def test_periods_and_cohorts() -> None:
    assert RunConfig(rounds=100).evaluation_period == 5
    assert RunConfig(rounds=10).evaluation_period == 1
    assert RunConfig(rounds=100, eval_every=7).evaluation_period == 7
    assert RunConfig(rounds=100, eval_every=7).checkpoint_period == 7
    assert RunConfig(rounds=100, checkpoint_every=3).checkpoint_period == 3
    assert (RunConfig(clients=8).cohort, RunConfig(clients=8, sampled=3).cohort) == (8, 3)


def test_the_partition_travels_as_json() -> None:
    config = RunConfig(partition="pathological", clients=6, seed=4, classes_per_client=3)
    spec = PartitionSpec(**json.loads(config.partition_text()))
    assert spec == config.partition_spec()
    assert (spec.name, spec.clients, spec.seed, spec.classes_per_client) == (
        "pathological",
        6,
        division_seed(4),
        3,
    )
    local = RunConfig(partition=LOCAL)
    assert (local.partition_spec(), local.partition_text()) == (None, LOCAL)


def test_ranges_name_their_bounds() -> None:
    check_range("a", 0.0, 0)
    check_range("a", 1.0, 0, 1)
    for value in (-1.0, float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ConfigError, match="it must be finite, at least 0"):
            check_range("a", value, 0)
        with pytest.raises(ConfigError, match=r"it must be in \[0, 1\]"):
            check_range("a", value, 0, 1)
    check_choice("a", "x", ("x", "y"))
    with pytest.raises(ConfigError, match="a is 'z'; it must be one of x, y"):
        check_choice("a", "z", ("x", "y"))
