"""The demo's report: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from nnunet_pretrain.files import written_atomically

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: 3px 12px; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th:first-child { text-align: left }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px } img { max-width: 100% }
.note { color: #555 }
"""


class Report:
    """Collects sections and writes them as one page; pictures are embedded and also saved beside it.

    Args:
        path: The page to write.
        title: Its title.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title
        self._body: list[str] = []

    def section(self, heading: str, text: str = "") -> None:
        """Starts a section."""
        self._body.append(f"<h2>{escape(heading)}</h2>" + (f"<p>{escape(text)}</p>" if text else ""))

    def note(self, text: str) -> None:
        """Adds a remark."""
        self._body.append(f'<p class="note">{escape(text)}</p>')

    def commands(self, lines: Sequence[str]) -> None:
        """Adds shell commands."""
        self._body.append(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._body.append(f"<table><tr>{head}</tr>{body}</table>")

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Adds a picture and closes it."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        with written_atomically(self.path.with_name(f"{self.path.stem}_pictures") / f"{name}.png") as temporary:
            temporary.write_bytes(buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode()
        self._body.append(
            f'<p><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><br>{escape(caption)}</p>'
        )

    def write(self) -> None:
        """Writes the page."""
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{escape(self.title)}</h1>{''.join(self._body)}</body></html>\n"
        )
        with written_atomically(self.path) as temporary:
            temporary.write_text(page, encoding="utf-8")


def dice_table(arms: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Makes a table of Dice per structure (rows) and arm (columns), with the mean in the last row."""
    structures = list(next(iter(arms.values())))
    rows = [[name, *(f"{arm[name]:.3f}" for arm in arms.values())] for name in structures]
    means = [f"{sum(arm.values()) / len(arm):.3f}" for arm in arms.values()]
    return ["structure", *arms], [*rows, ["mean", *means]]
