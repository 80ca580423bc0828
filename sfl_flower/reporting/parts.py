"""What a page is made of: sections of sentences, charts and tables, before they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Cell", "Figure", "Picture", "Section", "Sheet", "Swatch"]


@dataclass(frozen=True)
class Bar:
    """A number with a bar beside it.

    Attributes
    ----------
    text : str
        The number as it is read.
    share : float
        Length of the bar, of the longest one in the table, 0 to 1.
    """

    text: str
    share: float

    @property
    def length(self) -> str:
        """The share as CSS has it."""
        return f"{min(1.0, max(0.0, self.share)):.3f}"


Cell = str | Bar


@dataclass(frozen=True)
class Sheet:
    """A table; the first cell of each row is its header.

    Attributes
    ----------
    caption : str
        What it says.
    header : sequence of str
        A name a column.
    rows : sequence of sequence of Cell
        As many cells as the header has.
    words : bool
        Whether cells are words, which stand on the left; numbers stand on the right.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes
    ----------
    svg : str
        One ``<svg>`` element with a title and a description.
    caption : str
        What it shows.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """An image that is part of the page.

    Attributes
    ----------
    source : str
        A ``data:`` address.
    text : str
        What it shows, for who does not see it.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Swatch:
    """A line of the legend.

    Attributes
    ----------
    label : str
        What the curve is.
    colour : str
        A CSS variable.
    dashes : str
        Lengths of dashes and gaps, empty for a solid line.
    """

    label: str
    colour: str
    dashes: str


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes
    ----------
    key : str
        Its address on the page.
    title : str
        The heading.
    text : sequence of str
        Paragraphs.
    legend : sequence of Swatch
        What the curves of its charts are.
    figures : sequence of Figure
        Charts, side by side where there is room.
    tables : sequence of Sheet
        Tables.
    pictures : sequence of Picture
        Images.
    remarks : sequence of str
        A list of sentences.
    more : sequence of Sheet
        Tables that are folded away.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    legend: Sequence[Swatch] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Sheet] = ()
    pictures: Sequence[Picture] = ()
    remarks: Sequence[str] = ()
    more: Sequence[Sheet] = ()
