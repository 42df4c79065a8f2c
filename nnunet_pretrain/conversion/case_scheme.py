"""Per-case truth: the label scheme of one case, from its source's rules and from what the case turned out to hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nnunet_pretrain.conversion.source import RawId, Source
from nnunet_pretrain.labels import LabelScheme, LabelSpace
from nnunet_pretrain.labels.structures import GROUPS


@dataclass
class CaseFacts:
    """What is known about the labels of one case.

    Attributes:
        present: Source ids (or masks) with at least one voxel.
        missing: Masks without a file.
        cut_short: Ids that do not reach through all slices.
        split: Ids of paired organs that were split into left and right.
        ignored: Whether voxels were stored as `ignore`.
    """

    present: set[RawId]
    missing: set[RawId] = field(default_factory=set)
    cut_short: set[RawId] = field(default_factory=set)
    split: dict[RawId, str] = field(default_factory=dict)
    ignored: bool = False


def case_scheme(source: Source, space: LabelSpace, facts: CaseFacts) -> tuple[LabelScheme, list[str]]:
    """Returns the label scheme of a case, and what was decided for it in words.

    Ids that are unknown in this case (no file, no voxel although the source may have forgotten them, annotated over
    part of their length) leave the scheme, and background's label set gets their structures. The scheme is named
    after the source and these departures, so that equal names mean equal schemes.
    """
    scheme, stored = scheme_with_sides(source, space, facts.split)
    absent = {i for i in source.may_be_unknown if i not in facts.present}
    unknown = {i for i in absent | facts.missing if stored.get(i) not in (0, None, space.ignore_id)}
    short = {i for i in facts.cut_short & facts.present if stored.get(i)} - unknown
    kept = {stored[i] for i in facts.present if i in stored}
    gone = sorted({stored[i] for i in unknown} - kept)
    partly = sorted({stored[i] for i in short | unknown} - set(gone))
    suffix = []
    if gone:
        suffix.append("without " + ", ".join(space.names[i] for i in gone))
    if partly:
        suffix.append(", ".join(space.names[i] for i in partly) + " in part")
    decisions = [f"not annotated: {', '.join(map(str, sorted(unknown, key=str)))}"] if unknown else []
    decisions += [f"annotated over part of its length: {', '.join(map(str, sorted(short, key=str)))}"] if short else []
    if facts.split:
        suffix.append("split " + ", ".join(sorted(set(facts.split.values()))))
    sets = dict(scheme.with_unknown({*gone, *partly}, scheme.name, space, partly).sets)
    denied = _denied_to_background(source, facts, {s for i in {*gone, *partly} for s in scheme.sets[i]})
    if denied & set(sets[0]):
        suffix.append("background not " + ", ".join(sorted(denied & set(sets[0]))))
        sets[0] = tuple(name for name in sets[0] if name not in denied)
    if facts.ignored:
        suffix.append("ignored voxels")
        sets[space.ignore_id] = space.names
    return LabelScheme(name=" ".join([scheme.name, "; ".join(suffix)]).strip(), sets=sets), decisions


def scheme_with_sides(
    source: Source, space: LabelSpace, split: dict[RawId, str]
) -> tuple[LabelScheme, dict[RawId, int]]:
    """Returns the source's scheme in which some unsplit ids stand for the left organ and have a twin for the right.

    Args:
        source: The source.
        space: The label space.
        split: Id to group, such as kidney.

    Returns:
        The scheme, and source id to stored id; the twin of id 1 is called `1 right`.
    """
    if not split:
        return source.scheme(space)
    labels: dict[RawId, tuple[str, ...]] = {}
    for raw_id, structures in source.label_sets.items():
        if raw_id in split:
            left, right = GROUPS[split[raw_id]]
            labels |= {raw_id: (left,), right_twin(raw_id): (right,)}
        else:
            labels[raw_id] = structures
    return source.model_copy(update={"labels": labels}).scheme(space)


def right_twin(raw_id: RawId) -> str:
    """Returns the name of the id that a split gives to the right organ."""
    return f"{raw_id} right"


def _denied_to_background(source: Source, facts: CaseFacts, unknown: Iterable[str]) -> set[str]:
    rules = source.excludes_if_present.items()
    return {s for raw_id, structures in rules if raw_id in facts.present for s in structures} - set(unknown)
