"""The report of a merge: what came in, what was made of it, and what to look at before training on it.

The same inputs give the same bytes: no times, no versions, no path of the unfinished dataset.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_pretrain.conversion.duplicates import Pair
from nnunet_pretrain.conversion.members import Member
from nnunet_pretrain.conversion.montage import WINDOW_HU, colour
from nnunet_pretrain.conversion.record import Record
from nnunet_pretrain.conversion.report_facts import (
    FATES,
    MIN_CASES,
    OUTLIER_FACTOR,
    OUTLIER_MADS,
    Coverage,
    Merged,
    Outlier,
    Volume,
    coverage,
    first_few,
    label_name,
    outliers,
    spacing_texts,
    volumes,
)
from nnunet_pretrain.conversion.report_pictures import draw_volumes, ml_text, thumbnail
from nnunet_pretrain.conversion.report_remarks import (
    add_doubts,
    add_duplicates,
    add_left_out,
    add_licences,
    add_remarks,
)
from nnunet_pretrain.conversion.report_summary import add_summary
from nnunet_pretrain.html_page import Cell, Report
from nnunet_pretrain.labels import LabelSpace

REPORT = "report.html"
PICTURES = "report"

MAX_ROWS = 50
MAX_SOURCES = 60
MAX_PICTURES = 150

_STYLE = """
.full { background: #2166ac; color: #fff } .set { background: #fdb863; color: #222 }
.none { background: #eef0f2; color: #666 } .absent { background: #fff; color: #888 }
.matrix .absent { border-color: #eef0f2 }
.full.some { background: repeating-linear-gradient(45deg, #9cc4e4 0 4px, #c9dff0 4px 8px); color: #111 }
.set.some { background: repeating-linear-gradient(45deg, #fdcf98 0 4px, #fee9d0 4px 8px); color: #111 }
.untaught { color: #b3261e }
"""
_COVERAGE_LEGEND = {
    "full: every voxel of it carries its own id, which means nothing else (lesions inside it aside)": "full",
    "part of a set: stored only together with others (an unsplit kidney), or background may hide it": "set",
    "striped: so in some cases of the source only": "full some",
    "not annotated": "none",
    "-: known not to occur": "absent",
}


def write_report(
    folder: Path,
    name: str,
    space: LabelSpace,
    members: Sequence[Member],
    records: Sequence[Record],
    pairs: Sequence[Pair],
    left_out: Mapping[str, Mapping[str, str]],
) -> Path:
    """Writes report.html, and the pictures it shows into report/.

    Args:
        folder: Folder of the dataset (or of its unfinished copy), which holds the pictures of the cases.
        name: Name of the dataset.
        space: Its label space.
        members: What it was made of.
        records: The cases in it.
        pairs: Duplicates, dropped ones included.
        left_out: `quarantined`, `excluded`, `dropped`, each case to reason.

    Returns:
        The page.
    """
    merged = Merged(name, space, members, records, pairs, left_out)
    found = volumes(merged)
    unusual = outliers(found)
    report = Report(folder / REPORT, f"{name}: report of the merge", PICTURES, _STYLE)
    add_summary(report, merged, unusual)
    _sources(report, merged)
    _coverage(report, merged)
    _volumes(report, found, unusual)
    _pictures(report, merged, folder)
    add_left_out(report, merged)
    add_remarks(report, merged)
    add_duplicates(report, merged)
    add_licences(report, merged)
    add_doubts(report, merged)
    report.write()
    return report.path


def _sources(report: Report, merged: Merged) -> None:
    report.section(
        "Cases per source",
        "Found: converted, quarantined and excluded. In the dataset: converted and not dropped as a duplicate. In "
        "plane and through plane: voxel size in mm, median (smallest to largest).",
        "sources",
    )
    found = merged.found
    fates = {fate: merged.number_of(fate) for fate in FATES}
    rows: list[list[str | Cell]] = []
    for name, source in list(merged.sources.items())[:MAX_SOURCES]:
        published = "?" if source.cases is None else f"{source.cases:,}"
        differs = source.cases not in (None, found[name])
        records = merged.records_of[name]
        quarantined, excluded, dropped = (fates[fate][name] for fate in FATES)
        rows.append(
            [
                Cell(name, hint=source.title),
                published,
                Cell(f"{found[name]:,}", "warn" if differs else "", "not as published" if differs else ""),
                f"{len(records) + dropped:,}",
                Cell(f"{quarantined:,}" if quarantined else "", "warn"),
                *(f"{number:,}" if number else "" for number in (excluded, dropped)),
                f"{len(records):,}",
                *spacing_texts(records),
                first_few([f"{codes} {n}" for codes, n in Counter(r.orientation for r in records).most_common()], 4),
            ]
        )
    left_out = [sum(fates[fate].values()) for fate in FATES]
    kept = len(merged.records)
    sums = [sum(found.values()), kept + left_out[-1], *left_out, kept]
    total: list[str | Cell] = ["all", "", *(f"{number:,}" for number in sums), "", "", ""]
    heads = ["source", "published", "found", "converted", *FATES, "in the dataset"]
    report.table([*heads, "in plane", "through plane", "orientations"], [*rows, total], text=(10,))
    report.more(len(merged.sources) - MAX_SOURCES, "sources")
    passed = {m.source.name: m.found.passed_over for m in merged.members if m.found.passed_over}
    if passed:
        listed = first_few([f"{name} {number:,}" for name, number in passed.items()])
        report.note(f"Images without label, or labels without image, that belong to a publication: {listed}.")


def _coverage(report: Report, merged: Merged) -> None:
    report.section(
        "What each source annotates",
        "Numbers are cases in which a structure occurs under its own id. What a source does not annotate counts "
        "neither for nor against a network there.",
        "coverage",
    )
    table = coverage(merged)
    structures = merged.space.structures
    heads = [
        Cell(s, "untaught" if s in merged.untaught else "", "no source labels it apart" if s in merged.untaught else "")
        for s in structures
    ]
    rows: list[list[str | Cell]] = []
    for name in list(merged.sources)[:MAX_SOURCES]:
        number = len(merged.records_of[name])
        cells = [_coverage_cell(f"{name}, {s}", table[name][s], number) for s in structures]
        rows.append([Cell(f"{name} ({number:,})", hint=merged.sources[name].title), *cells])
    for title, key in (("all: annotated fully", "full"), ("all: occurs", "occurs")):
        sums = [sum(getattr(cells[s], key) for cells in table.values()) for s in structures]
        rows.append([Cell(title, "note"), *(Cell(f"{number}" if number else "") for number in sums)])
    report.matrix(heads, rows, "source (cases)")
    report.legend(_COVERAGE_LEGEND, classes=True)
    report.more(len(merged.sources) - MAX_SOURCES, "sources")
    if merged.untaught:
        report.note("In red: no source labels it apart, and a network trained on this will not predict it.")


def _coverage_cell(what: str, found: Coverage, cases: int) -> Cell:
    hint = f"{what}: full in {found.full}, part of a set in {found.set} of {cases} cases; occurs in {found.occurs}"
    if cases and found.absent == cases:
        return Cell("-", "absent", f"{what}: known not to occur")
    state, number = ("full", found.full) if found.full else ("set", found.set)
    if not number:
        return Cell("", "none", f"{what}: not annotated")
    return Cell(str(found.occurs or ("0" if found.full else "")), state if number == cases else f"{state} some", hint)


def _volumes(report: Report, found: Mapping[str, Sequence[Volume]], unusual: Sequence[Outlier]) -> None:
    report.section(
        "Volumes",
        f"Per label, in ml over a logarithmic axis. The dashed line is the median. Red triangles mark volumes more "
        f"than {OUTLIER_MADS:g} scaled MADs of log volume and a factor of {OUTLIER_FACTOR:g} from it (from {MIN_CASES} "
        f"cases on). Often the field of view cuts the organ; wrong labels look the same.",
        "volumes",
    )
    marked: dict[str, set[str]] = defaultdict(set)
    for outlier in unusual:
        marked[outlier.label].add(outlier.volume.case)
    for name, figure in draw_volumes(found, marked):
        report.figure(name, figure, f"Volumes of every label; {PICTURES}/{name}.png.")
    if unusual:
        report.subsection("Unusual volumes")
        rows = [
            [
                outlier.volume.case,
                outlier.volume.source,
                outlier.label,
                ml_text(outlier.volume.ml),
                ml_text(outlier.median_ml),
                ml_text(outlier.volume.ml / outlier.median_ml),
            ]
            for outlier in unusual[:MAX_ROWS]
        ]
        report.table(["case", "source", "label", "ml", "median ml", "times the median"], rows, text=(1, 2))
        report.more(len(unusual) - MAX_ROWS, "unusual volumes")


def _pictures(report: Report, merged: Merged, folder: Path) -> None:
    low, high = WINDOW_HU
    report.section(
        "Pictures",
        f"The first cases of each source: the axial and the coronal slice with most labels, patient's right on the "
        f"left, {low:.0f} to {high:.0f} HU.",
        "pictures",
    )
    left = MAX_PICTURES
    for name, records in merged.records_of.items():
        drawn = [(r, f"{PICTURES}/{r.case}.png") for r in records if f"{PICTURES}/{r.case}.png" in r.outputs]
        if not drawn or left < 1:
            left -= len(drawn)
            continue
        report.subsection(name)
        report.legend(_seen(merged, [record for record, _ in drawn]))
        report.pictures([(record.case, thumbnail(folder / path)) for record, path in drawn[:left]])
        left -= len(drawn)
    report.more(-left, f"pictures, in {PICTURES}/")


def _seen(merged: Merged, records: Sequence[Record]) -> dict[str, str]:
    """Returns what the stored ids of some cases mean, with their colours in the pictures."""
    entries: dict[str, str] = {}
    for stored_id in sorted({int(i) for record in records for i, n in record.voxels.items() if n and int(i)}):
        having = (record for record in records if record.voxels.get(str(stored_id)))
        names = {label_name(stored_id, merged.schemes[record.scheme["name"]], merged.space) for record in having}
        r, g, b = colour(stored_id, merged.space)
        entries["; ".join(sorted(names))] = f"rgb({r},{g},{b})"
    return entries
