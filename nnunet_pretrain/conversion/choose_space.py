"""The label space of a merge, as a user chooses it."""

from __future__ import annotations

from pathlib import Path

from nnunet_pretrain.conversion.catalogue import known_sources
from nnunet_pretrain.conversion.source import ungrouped
from nnunet_pretrain.files import read_json
from nnunet_pretrain.labels import DEFAULT_SPACE, IGNORE, LabelSpace
from nnunet_pretrain.labels.structures import GROUPS
from nnunet_pretrain.labels.synonyms import match, nearest_names
from nnunet_pretrain.validation import validated


def choose_space(structures: str | None, append: str | None, file: Path | None) -> LabelSpace:
    """Returns the label space to merge into.

    Args:
        structures: Comma-separated structures, groups (kidney) or synonyms (IVC), in the order of their ids; None
            takes the default space.
        append: Further structures in the same form; a source's name stands for all structures it annotates.
        file: JSON file with `name` and `structures`, whose structures may have any names; excludes `structures`.

    Raises:
        ValueError: A name is unknown (the message lists the nearest), or both a list and a file are given.
        FileNotFoundError: The file is missing.
    """
    if structures and file:
        raise ValueError("--structures and --label-space exclude each other; give one of them")
    space = DEFAULT_SPACE
    if file:
        space = validated(LabelSpace, read_json(file.expanduser()), str(file))
    elif structures:
        names = _names(structures, ())
        space = DEFAULT_SPACE if names == DEFAULT_SPACE.structures else LabelSpace(name="chosen", structures=names)
    if append:
        added = tuple(name for name in _names(append, space.structures) if name not in space.structures)
        space = LabelSpace(name=f"{space.name}+{len(added)}", structures=(*space.structures, *added))
    return space


def _names(text: str, further: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    sources = {source.name.lower(): source for source in known_sources().values()}
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name.lower() in sources:
            source = sources[name.lower()]
            found += [s for names in source.label_sets.values() for s in names if s != IGNORE]
            continue
        structure = match(name, further)
        if structure is None:
            near = ", ".join(nearest_names(name, further)) or "none"
            raise ValueError(f"unknown structure '{name}'; the nearest names are: {near}")
        found += ungrouped((structure,)) if structure in GROUPS and structure != "bone" else [structure]
    return tuple(dict.fromkeys(found))
