"""Label scheme: for each stored id of a source, the label set, i.e. the structures such a voxel may truly be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

from nnunet_pretrain.labels.space import BACKGROUND, IGNORE, LabelSpace
from nnunet_pretrain.labels.structures import PART_OF

RawId = TypeVar("RawId", bound="int | str")


class LabelScheme(BaseModel):
    """What the stored ids of one source's label maps mean.

    The label set is the one mechanism for "not annotated" (background's set holds the structure), for "unsplit
    kidney" (the set holds both sides), for "liver incl. tumour" (the set holds both) and for `ignore` (the set holds
    everything).

    Attributes:
        name: The source, or source and case rule, the scheme belongs to.
        sets: Stored id to label set, in id order of the label space. Id 0 is always there and may be background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sets: dict[int, tuple[str, ...]]

    @field_validator("sets")
    @classmethod
    def _check_sets(cls, sets: dict[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        if BACKGROUND not in sets.get(0, ()):
            raise ValueError(f"the label set of id 0 must contain '{BACKGROUND}', got {sets.get(0)}")
        for stored_id, label_set in sets.items():
            if stored_id < 0:
                raise ValueError(f"stored ids must not be negative, got {stored_id}")
            if not label_set or len(set(label_set)) != len(label_set):
                raise ValueError(f"the label set of id {stored_id} must hold each structure once, got {label_set}")
        return dict(sorted(sets.items()))

    def check(self, space: LabelSpace) -> None:
        """Checks the scheme against the label space its ids are stored in.

        Raises:
            ValueError: A set names a structure outside the space, an id is not in the space, an id's own structure is
                not in its set, or the set of `ignore` does not hold everything.
        """
        for stored_id, label_set in self.sets.items():
            unknown = sorted(set(label_set) - set(space.names))
            if unknown:
                raise ValueError(
                    f"label scheme '{self.name}', id {stored_id}: {unknown} not in label space '{space.name}'; "
                    f"it has {', '.join(space.names)}"
                )
            if stored_id > space.ignore_id:
                raise ValueError(
                    f"label scheme '{self.name}': id {stored_id} is outside label space '{space.name}' "
                    f"(ids 0-{space.ignore_id - 1}, ignore {space.ignore_id})"
                )
            expected = space.names if stored_id == space.ignore_id else (space.names[stored_id],)
            if not set(expected) <= set(label_set):
                raise ValueError(
                    f"label scheme '{self.name}': the set of id {stored_id} must contain {list(expected)}, "
                    f"got {list(label_set)}"
                )

    def with_unknown(
        self, stored_ids: Iterable[int], name: str, space: LabelSpace, still_stored: Iterable[int] = ()
    ) -> LabelScheme:
        """Returns the scheme of a case in which some ids were not annotated: background may hide their structures.

        Args:
            stored_ids: Ids that the case does not annotate although the source normally does.
            name: Name of the new scheme.
            space: Label space of the ids, for the order inside the sets.
            still_stored: Those of them that the case annotates in part (one lung lobe of two) and so still carries.
        """
        unknown = set(stored_ids)
        gone = unknown - set(still_stored)
        hidden = {structure for stored_id in unknown for structure in self.sets[stored_id]}
        sets = {stored_id: label_set for stored_id, label_set in self.sets.items() if stored_id not in gone}
        return LabelScheme(name=name, sets={**sets, 0: _in_space_order(hidden | set(sets[0]), space)})

    @classmethod
    def from_source_labels(
        cls,
        name: str,
        labels: Mapping[RawId, tuple[str, ...]],
        space: LabelSpace,
        also_background: Iterable[str] = (),
        known_absent: Iterable[str] = (),
    ) -> tuple[LabelScheme, dict[RawId, int]]:
        """Translates a source's own ids into a label space.

        An organ's set also gets the organ's lesions and vessels that the source does not label by themselves: what
        BTCV calls liver may be liver, liver tumour or hepatic vessel. Each source id is stored under one
        representative: the first structure of its set that no other set took. In a small space two ids may need the
        same one; see `_place`. Id 0 gets background and every
        structure that no source id may be.

        Args:
            name: Name of the scheme, usually the source's.
            labels: The source's id (or mask file) to the structures such a voxel may be, the main one first;
                `("ignore",)` for ids about which nothing is known. Id 0 is not listed.
            space: The label space to store in.
            also_background: Annotated structures that background may hide all the same, because the source
                annotates them in part only (a femur head).
            known_absent: Structures no patient of the source has: neither an organ nor background hides them.

        Returns:
            The scheme, and the map from source id to stored id.
        """
        sets: dict[int, tuple[str, ...]] = {}
        stored: dict[RawId, int] = {}
        absent = set(known_absent)
        labelled = {structure for structures in labels.values() for structure in structures} | absent
        for raw_id, main in sorted(labels.items(), key=lambda item: _choosing_order(item[1], space)):
            parts = (part for part, organs in PART_OF.items() if part not in labelled and set(organs) & set(main))
            stored[raw_id], label_set = _place(main, tuple(parts), sets, space)
            if stored[raw_id]:
                sets[stored[raw_id]] = label_set
        annotated = {s for stored_id, s_set in sets.items() if stored_id != space.ignore_id for s in s_set}
        hidden = {BACKGROUND} | (set(space.structures) - annotated)
        hidden = (hidden | (set(also_background) & set(space.structures))) - absent
        scheme = cls(name=name, sets={0: _in_space_order(hidden, space), **sets})
        scheme.check(space)
        return scheme, stored


def _in_space_order(structures: Iterable[str], space: LabelSpace) -> tuple[str, ...]:
    return tuple(sorted(set(structures), key=space.names.index))


def _choosing_order(main: tuple[str, ...], space: LabelSpace) -> tuple[int, bool]:
    """Ids with one structure choose first, so that an unsplit kidney beside a left kidney takes the right one.

    Structures outside the space come after those in it: a tumour that is called liver must not claim the liver.
    """
    return len(main), main[0] not in space.names


def _place(
    main: tuple[str, ...], parts: tuple[str, ...], taken: Mapping[int, tuple[str, ...]], space: LabelSpace
) -> tuple[int, tuple[str, ...]]:
    """Returns the stored id and the label set of one source id, given what it is called and what lies inside it.

    Where every structure it is called by stands for another set already, the id shares one that holds all it may be;
    without such a set its voxels are stored as `ignore`, which is true of anything.
    """
    if main == (IGNORE,):
        return space.ignore_id, space.names
    everything = (*main, *parts)
    label_set = _in_space_order([n for s in everything for n in space.nearest(s, among=everything)], space)
    if label_set == (BACKGROUND,):
        return 0, label_set
    candidates = [space.id_of(n) for s in main for n in space.nearest(s, among=everything) if n != BACKGROUND]
    for stored_id in candidates:
        if taken.get(stored_id, label_set) == label_set:
            return stored_id, label_set
    for stored_id in candidates:
        if set(label_set) <= set(taken[stored_id]):
            return stored_id, taken[stored_id]
    return space.ignore_id, space.names
