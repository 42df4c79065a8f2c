"""Tables of the demo's report; the page itself is nnunet_pretrain.html_page."""

from __future__ import annotations

from collections.abc import Mapping


def dice_table(arms: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Makes a table of Dice per structure (rows) and arm (columns), with the mean in the last row."""
    structures = list(next(iter(arms.values())))
    rows = [[name, *(f"{arm[name]:.3f}" for arm in arms.values())] for name in structures]
    means = [f"{sum(arm.values()) / len(arm):.3f}" for arm in arms.values()]
    return ["structure", *arms], [*rows, ["mean", *means]]
