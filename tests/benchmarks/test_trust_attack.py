"""The benchmark of attacks, on the digits."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import trust_attack
from sfl_flower.attacks.settings import AttackSettings
from sfl_flower.errors import ConfigError

WORDS = (
    "--trust-attack-models digits --trust-attack-rounds 2 --trust-attack-auxiliary 100 "
    "--trust-attack-epochs 2 --trust-attack-defences int4 none int4"
).split()


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trust_attack.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.flower
def test_a_figure_for_each_cut_and_defence() -> None:
    shares = list(trust_attack.figures(parsed(WORDS)))
    names = [f"attack_share_digits_{at}_{d}" for at in ("relu1", "pool2", "tanh1") for d in
             ("none", "int4")]  # fmt: skip
    assert [figure.name for figure in shares] == names
    # All of a picture crosses the first cut, and eight numbers of it the last.
    assert shares[0].value < shares[4].value < 1.05
    assert all("one of 3 cuts under 2 defences" in figure.setting for figure in shares)
    assert parsed([]).trust_attack_epochs == AttackSettings().epochs
    with pytest.raises(ConfigError, match="--trust-attack-models is 'vgg'; it must be one of"):
        next(trust_attack.figures(parsed(["--trust-attack-models", "vgg"])))
