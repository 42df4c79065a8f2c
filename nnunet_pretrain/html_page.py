"""A report as one self-contained HTML page: sections, tables, lists and pictures, everything escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_pretrain.files import written_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h2 { margin: 2.2em 0 .5em; padding-bottom: .2em; border-bottom: 2px solid #e3e6ea } h3 { margin: 1.6em 0 .4em }
a { color: #1b5e9b } p { max-width: 62em } .plot { max-width: none } .note { color: #555 }
li { overflow-wrap: anywhere }
nav { font-size: 14px; line-height: 2 } nav a { margin-right: .8em; white-space: nowrap }
.scroll { overflow-x: auto; margin: 1em 0 }
table { font-size: 14px; border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 3px 8px; border-bottom: 1px solid #ddd; vertical-align: top } th { vertical-align: bottom }
td, th { text-align: right; white-space: nowrap } td:first-child, th:first-child, .text { text-align: left }
.warn { color: #b3261e }
th, td.text { white-space: normal } td.text { overflow-wrap: anywhere; min-width: 7em }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em } td a { white-space: nowrap }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px } img { max-width: 100% }
.cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 1.2em 0 }
.cards div { background: #f3f6f9; border-radius: 8px; padding: .6em 1.1em; min-width: 6.5em }
.cards b { display: block; font-size: 24px; line-height: 1.25 }
.cards .warn { background: #fdecea } .cards span { color: #444; font-size: 13px }
details { margin: .35em 0 } summary { cursor: pointer } details ul { margin: .4em 0 1em; font-size: 13px }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 12px }
figure { margin: 0 } .pictures img { width: 100%; height: 250px; object-fit: contain; background: #000; display: block }
figcaption { font-size: 13px; color: #333 }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; margin: .5em 0 }
.legend i { display: inline-block; width: 14px; height: 14px; margin-right: 5px; border: 1px solid #999;
  vertical-align: -2px }
.matrix { font-size: 12px } .matrix th, .matrix td { padding: 2px 1px; border: 1px solid #fff; text-align: center;
  min-width: 25px; vertical-align: middle } .matrix td { font-size: 11px }
.matrix th { font-weight: normal; vertical-align: bottom }
.matrix th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap }
.matrix td:first-child, .matrix th:first-child { position: sticky; left: 0; background: #fff; text-align: left;
  padding-right: 10px; white-space: nowrap; z-index: 1; font-size: 12px; max-width: 22em; overflow: hidden;
  text-overflow: ellipsis }
@media print { details > * { display: block } .scroll { overflow: visible } }
@media (max-width: 600px) { .pictures { grid-template-columns: 1fr } .pictures img { height: auto } }
"""


@dataclass(frozen=True)
class Cell:
    """A table cell with more than plain text.

    Attributes:
        text: What it says.
        style: Names of CSS classes.
        hint: What it says under the mouse.
        link: Address it leads to, if that begins with http.
    """

    text: str
    style: str = ""
    hint: str = ""
    link: str = ""

    def html(self, tag: str = "td", style: str = "") -> str:
        """Returns the cell as HTML."""
        names = " ".join(filter(None, (self.style, style)))
        shown = escape(self.text)
        if self.link.startswith(("http://", "https://")):
            shown = f'<a href="{escape(self.link)}" rel="noreferrer">{shown}</a>'
        attributes = (f' class="{escape(names)}"' if names else "") + (
            f' title="{escape(self.hint)}"' if self.hint else ""
        )
        return f"<{tag}{attributes}>{shown}</{tag}>"


Row = Sequence["str | Cell"]


class Report:
    """Collects sections and writes them as one page; pictures are embedded and also saved beside it.

    Args:
        path: The page to write.
        title: Its title.
        pictures: Folder for the pictures beside the page, or None for one named after it.
        style: Further CSS.
    """

    def __init__(self, path: Path, title: str, pictures: str | None = None, style: str = "") -> None:
        self.path, self.title = path, title
        self._pictures = path.with_name(pictures or f"{path.stem}_pictures")
        self._style = _STYLE + style
        self._body: list[str] = []
        self._contents: tuple[int, dict[str, str]] = (-1, {})

    def section(self, heading: str, text: str = "", anchor: str = "") -> None:
        """Starts a section; links lead to its anchor."""
        if anchor:
            self._contents[1][anchor] = heading
        mark = f' id="{escape(anchor)}"' if anchor else ""
        self._body.append(f"<h2{mark}>{escape(heading)}</h2>" + (f"<p>{escape(text)}</p>" if text else ""))

    def subsection(self, heading: str) -> None:
        """Starts a part of a section."""
        self._body.append(f"<h3>{escape(heading)}</h3>")

    def contents(self) -> None:
        """Adds links to all sections with an anchor, earlier and later ones."""
        self._contents = (len(self._body), self._contents[1])
        self._body.append("")

    def note(self, text: str) -> None:
        """Adds a remark."""
        self._body.append(f'<p class="note">{escape(text)}</p>')

    def more(self, number: int, what: str) -> None:
        """Says how much of a list was not shown, if anything."""
        if number > 0:
            self.note(f"And {number:,} more {what}.")

    def commands(self, lines: Sequence[str]) -> None:
        """Adds shell commands."""
        self._body.append(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def cards(self, numbers: Sequence[tuple[str, str, bool]]) -> None:
        """Adds large numbers: the number, what it counts, and whether it calls for attention."""
        cards = (
            f"<div{' class=warn' if warn else ''}><b>{escape(number)}</b><span>{escape(what)}</span></div>"
            for number, what, warn in numbers
        )
        self._body.append(f'<div class="cards">{"".join(cards)}</div>')

    def points(self, lines: Sequence[tuple[str, str]]) -> None:
        """Adds a list of sentences, each with the anchor of the section it is about (or an empty one)."""
        items = (
            f'{escape(text)} <a href="#{escape(anchor)}">more</a>' if anchor else escape(text) for text, anchor in lines
        )
        self._body.append("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")

    def folded(self, summary: str, lines: Sequence[str], is_open: bool = False) -> None:
        """Adds a list that a click unfolds."""
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        state = " open" if is_open else ""
        self._body.append(f"<details{state}><summary>{escape(summary)}</summary><ul>{items}</ul></details>")

    def table(self, columns: Sequence[str], rows: Sequence[Row], text: Collection[int] = ()) -> None:
        """Adds a table.

        Args:
            columns: Heads.
            rows: Cells.
            text: Columns of text, set flush left as the first one always is.
        """
        styles = ["text" if i in text else "" for i in range(len(columns))]
        head = "".join(Cell(c).html("th", s) for c, s in zip(columns, styles, strict=True))
        self._body.append(f'<div class="scroll"><table><tr>{head}</tr>{_rows(rows, styles)}</table></div>')

    def matrix(self, columns: Row, rows: Sequence[Row], corner: str = "") -> None:
        """Adds a table of many narrow columns: upright heads, the first column stays in view when the rest scrolls."""
        cells = [column if isinstance(column, Cell) else Cell(column) for column in columns]
        heads = "".join(
            f'<th class="{escape(c.style)}" title="{escape(c.hint)}"><span>{escape(c.text)}</span></th>' for c in cells
        )
        body = _rows(rows, [""] * (len(columns) + 1))
        self._body.append(
            f'<div class="scroll"><table class="matrix"><tr><th>{escape(corner)}</th>{heads}</tr>{body}</table></div>'
        )

    def legend(self, entries: Mapping[str, str], classes: bool = False) -> None:
        """Adds a legend: text to CSS colour, or with `classes` to the names of CSS classes."""
        boxes = (
            f'<span><i {"class" if classes else "style"}="{escape(look if classes else f"background:{look}")}"></i>'
            f"{escape(text)}</span>"
            for text, look in entries.items()
        )
        self._body.append(f'<div class="legend">{"".join(boxes)}</div>')

    def pictures(self, pictures: Sequence[tuple[str, bytes]]) -> None:
        """Adds JPEG pictures side by side, each with its caption."""
        figures = (
            f'<figure><img alt="{escape(caption)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, data in pictures
        )
        self._body.append(f'<div class="pictures">{"".join(figures)}</div>')

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Adds a figure, saves it as NAME.png and closes it."""
        from matplotlib import pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        with written_atomically(self._pictures / f"{name}.png") as temporary:
            temporary.write_bytes(buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode()
        self._body.append(
            f'<p class="plot"><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><br>{escape(caption)}</p>'
        )

    def write(self) -> None:
        """Writes the page."""
        place, sections = self._contents
        if place >= 0:
            links = (f'<a href="#{escape(anchor)}">{escape(text)}</a> ' for anchor, text in sections.items())
            self._body[place] = f"<nav>{''.join(links)}</nav>"
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(self.title)}</title>'
            f"<style>{self._style}</style></head><body><h1>{escape(self.title)}</h1>{''.join(self._body)}</body></html>\n"
        )
        with written_atomically(self.path) as temporary:  # file names need not be valid Unicode
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _rows(rows: Sequence[Row], styles: Sequence[str]) -> str:
    return "".join(
        "<tr>"
        + "".join(
            (cell if isinstance(cell, Cell) else Cell(cell)).html(style=style)
            for cell, style in zip(row, styles, strict=True)
        )
        + "</tr>"
        for row in rows
    )
