"""Licences by what they demand, as far as their names tell. No legal advice."""

from __future__ import annotations

import re

LICENCE_TERMS = ("unclear", "ND", "NC-SA", "NC", "SA", "BY", "public domain")
"""Kinds of licences, the one that needs most care first."""

LICENCE_ADVICE = {
    "unclear": "unclear: ask its authors before you share anything made from it",
    "ND": "no derivatives: do not share labels or networks made from it without permission",
    "NC-SA": "no commercial use, and what is made from it goes on under the same licence",
    "NC": "no commercial use",
    "SA": "what is made from it goes on under the same licence",
    "BY": "name the authors",
    "public domain": "no conditions",
}


def licence_terms(licence: str) -> str:
    """Sorts a licence by the words in it, into one of `LICENCE_TERMS`.

    Whatever is doubtful, asks for an agreement, or is not one of the licences known here is unclear.
    """
    text = licence.lower()
    if re.search(
        r"doubt|unclear|unknown|conflict|contradict|not stated|\?|agreement|regist|request|terms of use", text
    ):
        return "unclear"
    if re.search(r"\bnd\b|no[- ]?deriv", text):
        return "ND"
    non_commercial = bool(re.search(r"\bnc\b|non[- ]?commercial|research (use )?only", text))
    share_alike = bool(re.search(r"\bsa\b|share[- ]?alike|\bgpl", text))
    if non_commercial or share_alike:
        return "-".join(["NC"] * non_commercial + ["SA"] * share_alike)
    if re.search(r"\bby\b|attribution|apache|\bmit\b|\bbsd\b", text):
        return "BY"
    return "public domain" if re.search(r"cc[- ]?0|public domain|pddl", text) else "unclear"
