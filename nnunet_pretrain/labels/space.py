"""Label space: which structures a merged dataset has, and under which ids."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, field_validator

from nnunet_pretrain.labels.structures import ABDOMEN_ATLAS_STRUCTURES, LESIONS, PART_OF

BACKGROUND = "background"
IGNORE = "ignore"

StructureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class LabelSpace(BaseModel):
    """Ordered structures; the structure at position i has id i + 1, background has id 0.

    Attributes:
        name: What the space is called in plans, cards and reports.
        structures: Structure names in id order, without background and without `ignore`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    structures: tuple[StructureName, ...]

    @field_validator("structures")
    @classmethod
    def _check_structures(cls, structures: tuple[str, ...]) -> tuple[str, ...]:
        if not structures:
            raise ValueError("a label space needs at least one structure, got none")
        reserved = {BACKGROUND, IGNORE} & set(structures)
        if reserved:
            raise ValueError(f"{sorted(reserved)} must not be listed: background is always id 0, ignore the highest id")
        repeated = sorted({s for s in structures if structures.count(s) > 1})
        if repeated:
            raise ValueError(f"structures must be listed once, found more than once: {repeated}")
        return structures

    @property
    def names(self) -> tuple[str, ...]:
        """Names by id: background first, then the structures (the channels of the network)."""
        return (BACKGROUND, *self.structures)

    @property
    def ignore_id(self) -> int:
        """Id of a voxel about which nothing is known; nnU-Net demands that it is the highest one."""
        return len(self.structures) + 1

    def id_of(self, structure: str) -> int:
        """Returns the id under which a structure is stored.

        Raises:
            ValueError: The space has no such structure.
        """
        try:
            return self.names.index(structure)
        except ValueError:
            raise ValueError(
                f"label space '{self.name}' has no structure '{structure}'; it has {', '.join(self.names)}"
            ) from None

    def nearest(self, structure: str, among: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Says what a structure is called in this space.

        A structure of the space is itself. A lesion or vessel the space leaves out belongs to the organ it is a
        part of; any other structure outside the space is background.

        Args:
            structure: Any structure name, also one this space does not have.
            among: Structures the same voxel may be, which decide between several organs (left or right kidney).

        Returns:
            Names of this space, never empty.
        """
        if structure in self.names:
            return (structure,)
        organs = tuple(organ for organ in PART_OF.get(structure, ()) if organ in self.structures)
        return tuple(organ for organ in organs if organ in among) or organs or (BACKGROUND,)

    def dataset_labels(self, with_ignore: bool = False) -> dict[str, int]:
        """Returns the `labels` entry of nnU-Net's dataset.json (name to id)."""
        labels = {name: i for i, name in enumerate(self.names)}
        return {**labels, IGNORE: self.ignore_id} if with_ignore else labels

    @classmethod
    def from_dataset_labels(cls, labels: dict[str, int], name: str) -> LabelSpace:
        """Reads the space back from the `labels` entry of a dataset.json.

        Raises:
            ValueError: The ids are not 0, 1, 2, ..., or a label is a region.
        """
        plain = {structure: i for structure, i in labels.items() if structure != IGNORE}
        ordered = sorted(plain, key=lambda structure: plain[structure] if isinstance(plain[structure], int) else -1)
        if [plain[structure] for structure in ordered] != list(range(len(plain))) or ordered[:1] != [BACKGROUND]:
            raise ValueError(
                f"labels must be background: 0 and then 1, 2, 3, ... without gaps or regions, got {labels}"
            )
        return cls(name=name, structures=tuple(ordered[1:]))


DEFAULT_SPACE = LabelSpace(name="abdomen31", structures=(*ABDOMEN_ATLAS_STRUCTURES, *LESIONS))
