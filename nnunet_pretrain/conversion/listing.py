"""Sources as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from nnunet_pretrain.conversion.source import Source, ungrouped


def list_sources(sources: Iterable[Source]) -> str:
    """Returns one paragraph per source: name, cases, licence, structures."""
    return "\n".join(_summary(source) for source in sources)


def describe_source(source: Source) -> str:
    """Returns everything a source file says, for reading."""
    reasons = [f"{case}: {reason}" for case, reason in source.exclude_cases.items()]
    rules = {
        "overlapping masks": "" if source.layouts[0].masks is None else source.overlapping_masks.replace("_", " "),
        "label geometry": source.label_geometry.replace("_", " "),
        "spacing of exactly 1 mm": "faulty header, quarantined" if source.unit_spacing_is_faulty else "",
        "holes stored as ignore in": _joined(source.holes_are_unknown),
        "unknown in a case without a voxel of it": _joined(
            "every id" if source.unknown_if_absent == "all" else source.unknown_if_absent
        ),
        "unknown where it does not reach through all slices": _joined(source.unknown_beyond_extent),
        "no patient has": _joined(source.known_absent),
        "background may also be": _joined(source.also_background),
    }
    sections: dict[str, Iterable[str]] = {
        "files": map(str, source.layouts),
        "labels": [_label(raw_id, structures) for raw_id, structures in source.labels.items()],
        "rules": [f"{rule}: {value}" for rule, value in rules.items() if value],
        "geometry": filter(None, [source.orientation, source.spacing]),
        "excluded cases": reasons,
        "same images in": source.overlaps,
        "confidence": filter(None, [source.confidence]),
        "doubts": source.doubts,
        "notes": source.notes,
        "cite": [source.citation],
        "see": filter(None, [source.url]),
    }
    lines = [f"{source.name}: {source.title}", f"  {_cases(source)}, licence: {source.licence}"]
    for title, entries in sections.items():
        found = [line for entry in entries for line in _wrapped(entry)]
        lines += [f"  {title}", *found] if found else []
    return "\n".join(lines)


def _label(raw_id: int | str, structures: tuple[str, ...]) -> str:
    """Names an id's structures; a group is written out unless that would fill the page."""
    written_out = ungrouped(structures)
    return f"{raw_id}: {' or '.join(written_out if len(written_out) < 5 else structures)}"


def _joined(values: Iterable[int | str] | str) -> str:
    return values if isinstance(values, str) else ", ".join(map(str, values))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent="    ", subsequent_indent="      ")


def _summary(source: Source) -> str:
    structures = f"{len(source.structures)} structures: {', '.join(source.structures)}"
    body = textwrap.shorten(structures, width=300, placeholder=", ...")
    wrapped = textwrap.fill(body, width=100, initial_indent="    ", subsequent_indent="    ")
    return f"{source.name}  {_cases(source)}, {source.licence}\n{wrapped}"


def _cases(source: Source) -> str:
    return "number of cases unknown" if source.cases is None else f"{source.cases} cases"
