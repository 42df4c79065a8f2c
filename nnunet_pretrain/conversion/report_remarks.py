"""The parts of a merge's report that are words: what was left out and why, remarks, duplicates, licences, doubts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nnunet_pretrain.conversion.dataset_json import DUPLICATES, MANIFEST, QUARANTINE
from nnunet_pretrain.conversion.duplicates import SKETCH_SIZE, Pair, groups_of
from nnunet_pretrain.conversion.licences import LICENCE_ADVICE, LICENCE_TERMS, licence_terms
from nnunet_pretrain.conversion.report_facts import (
    Merged,
    by_kind,
    counted,
    first_few,
)
from nnunet_pretrain.conversion.source import Source
from nnunet_pretrain.html_page import Cell, Report

MAX_ROWS = 50
MAX_KINDS = 30
_UNFOLDED = 10

_REASONS = {
    "quarantined": f"These could not be converted; {QUARANTINE} has them all.",
    "excluded": "The source file names these as faulty.",
    "dropped": "These show the same image as a case that stays.",
}


def add_left_out(report: Report, merged: Merged) -> None:
    """Adds the cases that are not in the dataset, by reason."""
    report.section("Left out", anchor="left-out")
    if not any(merged.left_out.values()):
        report.note("Nothing was left out.")
    for fate, text in _REASONS.items():
        if merged.left_out[fate]:
            report.subsection(f"{fate.capitalize()}: {counted(len(merged.left_out[fate]), 'case')}")
            report.note(text)
            _add_kinds(report, merged.left_out[fate].items(), unfold=fate == "quarantined")


def add_remarks(report: Report, merged: Merged) -> None:
    """Adds warnings and decisions, by kind."""
    text = f"By kind; a click shows the cases. {MANIFEST} has everything about each case."
    report.section("Warnings and decisions", text, "remarks")
    for title, remarks in (
        ("Warnings", [(record.case, text) for record in merged.records for text in record.warnings]),
        ("Decisions", [(record.case, text) for record in merged.records for text in record.decisions]),
    ):
        report.subsection(title)
        if remarks:
            _add_kinds(report, remarks)
        else:
            report.note("None.")


def _add_kinds(report: Report, remarks: Iterable[tuple[str, str]], unfold: bool = False) -> None:
    """Adds one folded list per kind of remark."""
    kinds = by_kind(remarks)
    for kind, entries in list(kinds.items())[:MAX_KINDS]:
        lines = [f"{case}: {text}" for case, text in entries[:MAX_ROWS]]
        if len(entries) > MAX_ROWS:
            lines.append(f"and {len(entries) - MAX_ROWS:,} more")
        number = counted(len({case for case, _ in entries}), "case")
        report.folded(f"{number}: {kind}", lines, unfold and len(entries) <= _UNFOLDED)
    report.more(len(kinds) - MAX_KINDS, "kinds")


def add_duplicates(report: Report, merged: Merged) -> None:
    """Adds the images that occur more than once, and what became of them."""
    text = "Found by content: the voxels are equal, or patterns of noise are, which no two scans share."
    report.section("Duplicates", text, "duplicates")
    if not merged.pairs:
        report.note("No image occurs more than once.")
        return
    between: Counter[tuple[str, ...]] = Counter()
    for pair in merged.pairs:
        between[tuple(sorted({merged.source_of[pair.first], merged.source_of[pair.second]}))] += 1
    listed = [f"{' and '.join(names)} {n:,}" for names, n in sorted(between.items(), key=lambda i: (-i[1], i[0]))]
    report.note(
        f"{counted(len(merged.pairs), 'pair')} in {counted(len(groups_of(merged.pairs)), 'group')}; by source: "
        f"{first_few(listed, 12)}. {DUPLICATES} has them all."
    )
    rows = [[pair.first, pair.second, _likeness(pair), _fate(pair, merged)] for pair in merged.pairs[:MAX_ROWS]]
    report.table(["case", "same image as", "how alike", "what was done"], rows, text=(1, 2, 3))
    report.more(len(merged.pairs) - MAX_ROWS, "pairs")


def _likeness(pair: Pair) -> str:
    if pair.exact:
        return "every voxel is equal"
    return f"{pair.common / SKETCH_SIZE:.0%} of patterns in common ({pair.common} of {SKETCH_SIZE})"


def _fate(pair: Pair, merged: Merged) -> str:
    dropped = [case for case in (pair.first, pair.second) if case in merged.left_out["dropped"]]
    return f"dropped: {', '.join(dropped)}" if dropped else "both stay and share a fold"


def add_licences(report: Report, merged: Merged) -> None:
    """Adds what each source asks of its users, the strictest first."""
    report.section(
        "Licences and citations",
        "Sorted by the words in each licence, strictest first. This is no legal advice: read the licences themselves. "
        "Images and labels, and perhaps networks trained on them, stay bound to every one of them.",
        "licences",
    )
    terms = {name: licence_terms(source.licence) for name, source in merged.sources.items()}
    order = sorted(terms, key=lambda name: LICENCE_TERMS.index(terms[name]))
    unclear = [name for name in order if terms[name] == "unclear"]
    points = [f"Unclear, ask: {first_few(unclear, 30)}."] if unclear else []
    if len(unclear) < len(order):
        strictest = terms[order[len(unclear)]]
        names = [name for name in order if terms[name] == strictest]
        which = "Strictest of the others" if unclear else "Strictest"
        points.append(f"{which}: {strictest}, {LICENCE_ADVICE[strictest]}: {first_few(names, 30)}.")
    report.points([(point, "") for point in points])
    rows = [_licence_row(merged.sources[name], terms[name]) for name in order[: 2 * MAX_ROWS]]
    report.table(["source", "kind", "licence", "cite", "where"], rows, text=(1, 2, 3, 4))
    report.more(len(order) - 2 * MAX_ROWS, "sources")


def _licence_row(source: Source, terms: str) -> list[str | Cell]:
    kind = Cell(terms, "warn" if terms == "unclear" else "", LICENCE_ADVICE[terms])
    where = Cell(source.url.split("://")[-1].split("/")[0], hint=source.url, link=source.url)
    return [Cell(source.name, hint=source.title), kind, source.licence, source.citation, where]


def add_doubts(report: Report, merged: Merged) -> None:
    """Adds what is doubtful about each source, and what else a user must know."""
    report.section("Doubts and notes", "As the source files say.", "doubts")
    for source in list(merged.sources.values())[: 2 * MAX_ROWS]:
        lines = [f"Doubt: {text}" for text in source.doubts] + list(source.notes)
        lines += [f"How well this is supported: {source.confidence}"] if source.confidence else []
        lines += [f"Shares images with {text}" for text in source.overlaps]
        lines += [f"Orientation: {source.orientation}"] if source.orientation else []
        lines += [f"Voxel size: {source.spacing}"] if source.spacing else []
        report.folded(f"{source.name}: {source.title}", lines or ["nothing noted"], is_open=True)
    report.more(len(merged.sources) - 2 * MAX_ROWS, "sources")
