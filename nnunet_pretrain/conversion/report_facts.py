"""What the report of a merge says, as numbers and words: coverage, volumes, outliers, kinds of remarks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_pretrain.conversion.duplicates import Pair
from nnunet_pretrain.conversion.members import Member
from nnunet_pretrain.conversion.record import Record
from nnunet_pretrain.conversion.source import Source
from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.labels.structures import PART_OF

FATES = ("quarantined", "excluded", "dropped")
"""Why a case is not in the dataset."""

FULL, SET, NONE, ABSENT = "full", "set", "none", "absent"

MIN_CASES = 5
"""Fewer volumes than this have no outliers."""

OUTLIER_MADS = 3.5
"""Outliers lie this many scaled MADs of log volume from the median (Iglewicz & Hoaglin, 1993)."""

OUTLIER_FACTOR = 2.0
"""Outliers are at least so many times the median, or it them: organs vary."""

_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Merged:
    """A merged dataset, as its report sees it.

    Attributes:
        name: Name of the dataset's folder.
        space: Its label space.
        members: What it was made of.
        records: The cases in it.
        pairs: Duplicates, dropped ones included.
        left_out: `quarantined`, `excluded`, `dropped`, each case to reason.
    """

    name: str
    space: LabelSpace
    members: Sequence[Member]
    records: Sequence[Record]
    pairs: Sequence[Pair]
    left_out: Mapping[str, Mapping[str, str]]

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Name to source, in the order given."""
        return {member.source.name: member.source for member in self.members}

    @cached_property
    def source_of(self) -> dict[str, str]:
        """Every case found, left out or not, to the name of its source."""
        found: dict[str, str] = {}
        for member in self.members:
            cases = [*(files.case for files in member.found.cases), *member.found.faulty, *member.found.excluded]
            found |= dict.fromkeys(cases, member.source.name)
        return found

    @cached_property
    def records_of(self) -> dict[str, list[Record]]:
        """Name of a source to the records of its cases."""
        records: dict[str, list[Record]] = {name: [] for name in self.sources}
        for record in self.records:
            records[record.source].append(record)
        return records

    @cached_property
    def schemes(self) -> dict[str, LabelScheme]:
        """Name to label scheme."""
        firsts = {str(record.scheme["name"]): record for record in self.records[::-1]}
        return {name: firsts[name].label_scheme for name in sorted(firsts)}

    @cached_property
    def untaught(self) -> tuple[str, ...]:
        """Structures that no case stores."""
        return LabelSetTable(self.space, tuple(self.schemes.values()), {}).untaught

    @cached_property
    def found(self) -> Counter[str]:
        """Name of a source to the number of its cases, left out or not."""
        return Counter(self.source_of.values())

    def number_of(self, fate: str) -> Counter[str]:
        """Counts the cases of each source that were `quarantined`, `excluded` or `dropped`."""
        return Counter(self.source_of[case] for case in self.left_out[fate])


def spacing_texts(records: Sequence[Record]) -> list[str]:
    """Returns median and range of the voxel size in plane and through plane."""
    if not records:
        return ["", ""]
    through = np.array([_axial(record) for record in records])
    spacing = np.array([record.spacing for record in records])
    is_through = np.arange(3) == through[:, None]
    shown = []
    for values in (spacing[~is_through], spacing[is_through]):
        low, median, high = (float(value) for value in (values.min(), np.median(values), values.max()))
        shown.append(f"{median:.2f}" if low == high else f"{median:.2f} ({low:.2f}-{high:.2f})")
    return shown


def _axial(record: Record) -> int:
    """Returns the array axis from feet to head."""
    return next((axis for axis, code in enumerate(record.orientation) if code in "SI"), 2)


@dataclass
class Coverage:
    """How a source's cases annotate a structure.

    Attributes:
        full: Cases in which every voxel of it carries its own id, and that id means nothing else.
        set: Cases in which it is annotated only as part of a larger label set, or background may hide it.
        absent: Cases that are known not to have it.
        occurs: Cases with a voxel of its id.
    """

    full: int = 0
    set: int = 0
    absent: int = 0
    occurs: int = 0


def annotation_states(scheme: LabelScheme, space: LabelSpace) -> dict[str, str]:
    """Says of each structure how a label scheme annotates it: `full`, `set`, `none` or `absent`.

    Lesions and vessels inside an organ's label set do not make the organ less than full; a second organ does.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for stored_id, label_set in scheme.sets.items():
        if stored_id != space.ignore_id:
            for structure in label_set:
                holders[structure].append(stored_id)
    states = {}
    for own_id, structure in enumerate(space.structures, start=1):
        found = holders.get(structure, [])
        if not found:
            states[structure] = ABSENT
        elif found == [0]:
            states[structure] = NONE
        else:
            alone = found == [own_id] and not _beyond(structure, scheme.sets[own_id])
            states[structure] = FULL if alone else SET
    return states


def _beyond(structure: str, label_set: Iterable[str]) -> list[str]:
    """Returns what a label set holds beside a structure and what lies inside that."""
    return [s for s in label_set if s != structure and structure not in PART_OF.get(s, ())]


def coverage(merged: Merged) -> dict[str, dict[str, Coverage]]:
    """Returns source to structure to coverage."""
    states = {name: annotation_states(scheme, merged.space) for name, scheme in merged.schemes.items()}
    table = {source: {s: Coverage() for s in merged.space.structures} for source in merged.sources}
    for record in merged.records:
        for structure, state in states[record.scheme["name"]].items():
            cell = table[record.source][structure]
            cell.full += state == FULL
            cell.set += state == SET
            cell.absent += state == ABSENT
        for stored_id, count in record.voxels.items():
            if count and 0 < int(stored_id) < merged.space.ignore_id:
                table[record.source][merged.space.names[int(stored_id)]].occurs += 1
    return table


@dataclass(frozen=True)
class Volume:
    """Volume of one label in one case.

    Attributes:
        case: The case.
        source: Its source.
        ml: The volume.
    """

    case: str
    source: str
    ml: float


def volumes(merged: Merged) -> dict[str, list[Volume]]:
    """Returns label to volumes, in id order; an unsplit kidney is a label of its own, not a left kidney."""
    found: dict[tuple[int, str], list[Volume]] = defaultdict(list)
    names: dict[tuple[str, int], str] = {}
    for record in merged.records:
        for key, count in record.voxels.items():
            stored_id, scheme = int(key), str(record.scheme["name"])
            if not count or not 0 < stored_id < merged.space.ignore_id:
                continue
            if (scheme, stored_id) not in names:
                names[scheme, stored_id] = label_name(stored_id, merged.schemes[scheme], merged.space)
            volume = Volume(record.case, record.source, count * record.voxel_ml)
            found[stored_id, names[scheme, stored_id]].append(volume)
    return {name: found[stored_id, name] for stored_id, name in sorted(found)}


def label_name(stored_id: int, scheme: LabelScheme, space: LabelSpace) -> str:
    """Returns what a stored id means in a scheme: `liver`, or `kidney_left or kidney_right`."""
    if stored_id == space.ignore_id:
        return "ignored"
    own = space.names[stored_id]
    return " or ".join([own, *_beyond(own, scheme.sets.get(stored_id, ()))])


@dataclass(frozen=True)
class Outlier:
    """A volume far from the others of its label.

    Attributes:
        label: The label.
        volume: Case and volume.
        median_ml: Median of the label.
        mads: Distance from it in scaled MADs of log volume.
    """

    label: str
    volume: Volume
    median_ml: float
    mads: float


def outliers(found: Mapping[str, Sequence[Volume]]) -> list[Outlier]:
    """Returns unusual volumes, the most unusual first."""
    result = []
    for label, label_volumes in found.items():
        if len(label_volumes) < MIN_CASES:
            continue
        logs = np.log([volume.ml for volume in label_volumes])
        median = float(np.median(logs))
        scale = max(_MAD_TO_SIGMA * float(np.median(np.abs(logs - median))), np.log(OUTLIER_FACTOR) / OUTLIER_MADS)
        for volume, distance in zip(label_volumes, np.abs(logs - median) / scale, strict=True):
            if distance > OUTLIER_MADS:
                result.append(Outlier(label, volume, float(np.exp(median)), float(distance)))
    return sorted(result, key=lambda o: (-round(o.mads, 6), o.volume.case, o.label))


_VARYING = re.compile(r"\S*/\S+|\S+\.(?:nii|gz|dcm|png)\b|\[+.*?\]+|\(.*?\)|[\w.+-]*\d[\w.%+-]*")


def kind_of(remark: str) -> str:
    """Returns what remarks of the same kind have in common: no paths, no numbers, no particulars after a colon."""
    text = re.sub(r"…(?:[\s,;]*…)*", "…", _VARYING.sub("…", remark))
    parts = [part.strip(" ;,") for part in text.split(":")]
    return next((part for part in parts if part.strip("… ")), "other")


def by_kind(remarks: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Groups (case, remark) by kind, the most frequent kind first."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case, remark in remarks:
        kinds[kind_of(remark)].append((case, remark))
    return dict(sorted(kinds.items(), key=lambda item: (-len({case for case, _ in item[1]}), item[0])))


def counted(number: int, what: str) -> str:
    """Returns `1 case`, `2 cases`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_few(texts: Sequence[str], number: int = 8) -> str:
    """Joins the first texts and says how many more there are."""
    shown = ", ".join(texts[:number])
    return f"{shown} and {len(texts) - number:,} more" if len(texts) > number else shown
