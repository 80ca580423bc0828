from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sfl_flower.errors import DataError
from sfl_flower.report import History, RoundRecord, accuracy_plot
from sfl_flower.report.plots import mean_curve


def history(scale: float) -> History:
    return History(
        RoundRecord(i, 32 * i, 2 * i, 0.1 * i, 1 / i, {"accuracy": scale * i / 20}, i * 2**20, i)
        for i in range(1, 20)
    )


@pytest.mark.parametrize("x", ["samples", "bytes", "bytes_up", "seconds", "exchanges", "round"])
def test_a_png_of_the_promised_size(tmp_path: Path, x: str) -> None:
    path = accuracy_plot({"a": history(1), "b": history(0.5)}, tmp_path / "p.png", x=x)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    assert (width, height) == (1200, 720)


def test_the_same_histories_give_the_same_picture(tmp_path: Path) -> None:
    one = accuracy_plot({"a": history(1)}, tmp_path / "1.png", title="t").read_bytes()
    two = accuracy_plot({"a": history(1)}, tmp_path / "2.png", title="t").read_bytes()
    other = accuracy_plot({"a": history(0.5)}, tmp_path / "3.png", title="t").read_bytes()
    assert one == two != other


def test_a_run_without_the_metric_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    accuracy_plot({"a": history(1), "failed": History()}, tmp_path / "p.png")
    with pytest.raises(DataError, match="no history has the metric 'f1'"):
        accuracy_plot({"a": history(1)}, tmp_path / "q.png", metric="f1")
    with pytest.raises(DataError, match="unknown axis 'epochs'"):
        accuracy_plot({"a": history(1)}, tmp_path / "q.png", x="epochs")
    assert not (tmp_path / "q.png").exists()


def short(*scores: float) -> History:
    return History(
        RoundRecord(i, 10 * i, 0, 0.0, metrics={"accuracy": s}) for i, s in enumerate(scores)
    )


def test_runs_of_a_group_are_averaged_and_their_spread_is_the_band() -> None:
    curve = mean_curve([short(0.1, 0.4).series(), short(0.3, 0.8).series()])
    assert curve is not None and curve.spread is not None
    assert curve.x.tolist() == [0, 10]
    assert curve.y.tolist() == pytest.approx([0.2, 0.6])
    assert curve.spread.tolist() == pytest.approx([0.02**0.5, 0.08**0.5])


def test_runs_with_different_evaluations_meet_at_their_ends() -> None:
    curve = mean_curve([h.series() for h in (short(0.0, 1.0), short(0.0, 0.2, 0.4), History())])
    assert curve is not None
    assert curve.x.tolist() == pytest.approx([0, 7.5, 15])
    assert curve.y.tolist() == pytest.approx([0, 0.35, 0.7])


def test_a_group_is_drawn_with_its_band(tmp_path: Path) -> None:
    one = accuracy_plot({"a": history(1)}, tmp_path / "1.png").read_bytes()
    alone = accuracy_plot({"a": [history(1)]}, tmp_path / "2.png").read_bytes()
    both = accuracy_plot({"a": [history(1.2), history(0.8)]}, tmp_path / "3.png").read_bytes()
    assert one == alone != both


def drawn(path: Path, histories: dict[str, Any], **options: Any) -> list[str]:
    """Return every text of a plot."""
    texts: list[str] = []

    class Spy(Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            texts.extend(str(t.get_text()) for t in self.findobj(Text))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure", Spy)
        accuracy_plot(histories, path, **options)
    return texts


def test_a19_a_plot_says_what_it_shows_what_its_bands_are_and_where_the_control_is(
    tmp_path: Path,
) -> None:
    seeds = [short(0.1, 0.4), short(0.3, 0.8)]
    texts = drawn(tmp_path / "p.png", {"a": seeds, "frozen": seeds}, controls=["frozen"])
    assert "accuracy over training samples, all clients" in texts
    band = "mean of 2 runs (seeds) a curve, band: one standard deviation on either side"
    assert band in texts and "control" in texts
    texts = drawn(tmp_path / "p.png", {"a": history(1)}, title="mine")
    assert "mine" in texts and "one run a curve" in texts and "control" not in texts
