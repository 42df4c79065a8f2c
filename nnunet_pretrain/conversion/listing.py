"""Sources as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from nnunet_pretrain.conversion.source import Source


def list_sources(sources: Iterable[Source]) -> str:
    """Returns one paragraph per source: name, cases, licence, structures."""
    return "\n".join(_summary(source) for source in sources)


def describe_source(source: Source) -> str:
    """Returns everything a source file says, for reading."""
    layouts = [f"{layout.images} with {layout.labels or layout.masks}" for layout in source.layouts]
    ids = [f"{raw_id}: {' or '.join(structures)}" for raw_id, structures in source.labels.items()]
    sections = {
        "files": layouts,
        "labels": ids,
        "background may also be": source.also_background,
        "excluded cases": source.exclude_cases,
        "notes": source.notes,
        "cite": [source.citation],
        "see": [source.url] if source.url else [],
    }
    lines = [f"{source.name}: {source.title}", f"  {_cases(source)}, licence: {source.licence}"]
    for title, entries in sections.items():
        if entries:
            lines += [f"  {title}", *(f"    {entry}" for entry in entries)]
    return "\n".join(lines)


def _summary(source: Source) -> str:
    structures = f"{len(source.structures)} structures: {', '.join(source.structures)}"
    body = textwrap.shorten(structures, width=300, placeholder=", ...")
    wrapped = textwrap.fill(body, width=100, initial_indent="    ", subsequent_indent="    ")
    return f"{source.name}  {_cases(source)}, {source.licence}\n{wrapped}"


def _cases(source: Source) -> str:
    return "number of cases unknown" if source.cases is None else f"{source.cases} cases"
