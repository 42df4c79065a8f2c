"""Source: what is known about one public dataset; the model of the files in dataset_conversion/."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from nnunet_pretrain.labels import LabelScheme, LabelSpace
from nnunet_pretrain.labels.structures import GROUPS

RawId = int | str
"""A source's own id: a number in a label file, or the name of a mask file."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_reasons(value: Any) -> Any:
    return {str(case): "known to be faulty" for case in value} if isinstance(value, (list, tuple)) else value


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _as_id(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, (list, tuple)) else []


Structures = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1), WithJsonSchema(_TEXTS_SCHEMA)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), WithJsonSchema(_TEXTS_SCHEMA)]
PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


class Layout(BaseModel):
    """Where the files of a case lie below the source's folder.

    Paths are templates. `{case}` stands for the case's own id, `{part}` for a folder or file part that image and label
    share (`images{part:Tr|Va}` and `labels{part:Tr|Va}`), `{mask}` for the file name of a structure; after a colon
    may follow what they can be, as a regular expression. `*` stands for anything within one folder or file name.

    Attributes:
        images: Path of a case's image; for DICOM the folder below which its slices lie.
        labels: Path of a case's multi-label file (for PNG the folder of its slices), or None.
        masks: Path of a case's binary masks, or None.
        image_format: `nifti`, or `dicom` for a series of slices.
        label_format: `nifti`, or `png` for a stack of slices in which every value above 0 is id 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    labels: str | None = None
    masks: str | None = None
    image_format: Literal["nifti", "dicom"] = "nifti"
    label_format: Literal["nifti", "png"] = "nifti"

    @model_validator(mode="after")
    def _templates_are_complete(self) -> Layout:
        if (self.labels is None) == (self.masks is None):
            raise ValueError("a layout needs either 'labels' or 'masks'")
        if self.masks is not None and "{mask}" not in self.masks:
            raise ValueError("'masks' must contain {mask}")
        for template in filter(None, (self.images, self.labels, self.masks)):
            for name, expression in PLACEHOLDER.findall(template):
                if name not in ("case", "part", "mask"):
                    raise ValueError(f"'{template}' has {{{name}}}; only {{case}}, {{part}} and {{mask}} are known")
                try:
                    re.compile(expression)
                except re.error as error:
                    raise ValueError(
                        f"'{template}': {{{name}:{expression}}} is no regular expression: {error}"
                    ) from None
        return self

    def __str__(self) -> str:
        return f"{self.images} with {self.labels or self.masks}"


class Source(BaseModel):
    """One public dataset: ids to structures, files, what is missing or faulty, licence, citation.

    Attributes:
        name: Name on the command line.
        title: Full name.
        prefix: Start of the case names in a merged dataset.
        cases: Number of labelled cases published, or None if unknown.
        layouts: Known ways the dataset lies on disk; the first that matches is used.
        labels: Source id (or mask file name) to the structures such a voxel may be, the main one first. A group of
            structures (kidney, lung, bone, ...) may be named in their place; `ignore` means that nothing is known.
        aliases: Other file names of masks to the name used in `labels`.
        also_background: Annotated structures that background may hide all the same.
        known_absent: Structures no patient of the source has, so that neither organ nor background hides them.
        unknown_if_absent: Ids whose structures count as not annotated in a case without a voxel of the id; `all` for
            every id. For all other ids no voxel means that the structure is not there.
        unknown_beyond_extent: Ids of tubes that were annotated over part of their length: in a case with slices
            without the id, background may hide its structures.
        excludes_if_present: Id to structures that background cannot hide in a case that has the id.
        holes_are_unknown: Ids in which enclosed holes of background are stored as `ignore`.
        overlapping_masks: Whether the smaller structure wins where masks overlap, or the voxel becomes `ignore`.
        label_geometry: `strict`: label and image must lie on the same grid. `from_image`: a label whose array has the
            image's shape takes over the image's header. `by_overlay`: the label's array is turned or mirrored until it
            lies on soft tissue.
        unit_spacing_is_faulty: Whether a spacing of exactly (1, 1, 1) mm means that the header was lost.
        exclude_cases: Case to the reason why it is left out.
        accept_cases: Cases taken although a plausibility check objects.
        images_without_label: Whether images without label are part of the publication, to be passed over.
        labels_without_image: Whether labels without image are part of the publication, to be passed over.
        orientation: What is known about orientation and headers.
        spacing: What is known about voxel sizes.
        overlaps: Other sources with the same images.
        licence: Licence of the data, with doubts.
        url: Where the dataset is described.
        citation: What to cite.
        confidence: How well the facts of this file are supported.
        doubts: What is not known for certain.
        notes: What else a user must know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    prefix: str = Field(pattern=r"^[A-Za-z0-9]+$")
    cases: int | None = None
    layouts: tuple[Layout, ...] = Field(min_length=1)
    labels: dict[RawId, Structures] = Field(min_length=1)
    aliases: dict[str, str] = {}
    also_background: Structures | tuple[()] = ()
    known_absent: tuple[str, ...] = ()
    unknown_if_absent: Literal["all"] | tuple[RawId, ...] = ()
    unknown_beyond_extent: tuple[RawId, ...] = ()
    excludes_if_present: dict[RawId, Structures] = {}
    holes_are_unknown: tuple[RawId, ...] = ()
    overlapping_masks: Literal["smaller_wins", "ignore"] = "smaller_wins"
    label_geometry: Literal["strict", "from_image", "by_overlay"] = "strict"
    unit_spacing_is_faulty: bool = False
    exclude_cases: Annotated[dict[str, str], BeforeValidator(_as_reasons)] = {}
    accept_cases: tuple[str, ...] = ()
    images_without_label: bool = False
    labels_without_image: bool = False
    orientation: str = ""
    spacing: str = ""
    overlaps: Texts = ()
    licence: str
    url: str = ""
    citation: str
    confidence: str = ""
    doubts: Texts = ()
    notes: Texts = ()

    @model_validator(mode="before")
    @classmethod
    def _json_keys_are_ids(cls, values: Any) -> Any:
        """JSON knows no numbers as keys; in a file with multi-label layouts "1" is the id 1."""
        if not isinstance(values, dict) or any("masks" in layout for layout in _dicts(values.get("layouts"))):
            return values
        keyed = {key: values[key] for key in ("labels", "excludes_if_present") if isinstance(values.get(key), dict)}
        return {**values, **{key: {_as_id(i): found for i, found in ids.items()} for key, ids in keyed.items()}}

    @model_validator(mode="after")
    def _ids_fit_layout(self) -> Source:
        kind = str if self.layouts[0].masks else int
        wrong = [key for key in self.labels if not isinstance(key, kind)]
        if wrong:
            raise ValueError(
                f"labels must be keyed by {'mask file names' if kind is str else 'integer ids'}, got {wrong}"
            )
        if 0 in self.labels:
            raise ValueError("id 0 is background and must not be listed")
        rules = {
            "aliases": self.aliases.values(),
            "unknown_if_absent": () if self.unknown_if_absent == "all" else self.unknown_if_absent,
            "unknown_beyond_extent": self.unknown_beyond_extent,
            "excludes_if_present": self.excludes_if_present,
            "holes_are_unknown": self.holes_are_unknown,
        }
        for rule, raw_ids in rules.items():
            unknown = [raw_id for raw_id in raw_ids if raw_id not in self.labels]
            if unknown:
                raise ValueError(f"{rule} names {unknown}, which 'labels' does not have")
        return self

    @property
    def label_sets(self) -> dict[RawId, tuple[str, ...]]:
        """Source id to structures, with groups written out."""
        return {raw_id: ungrouped(structures) for raw_id, structures in self.labels.items()}

    @property
    def structures(self) -> tuple[str, ...]:
        """Every structure or group the source annotates, alone or as an alternative, in order of its ids."""
        return tuple(dict.fromkeys(s for structures in self.labels.values() for s in structures))

    @property
    def may_be_unknown(self) -> tuple[RawId, ...]:
        """Ids that are unknown in a case without a voxel of them."""
        return tuple(self.labels) if self.unknown_if_absent == "all" else self.unknown_if_absent

    def scheme(self, space: LabelSpace) -> tuple[LabelScheme, dict[RawId, int]]:
        """Returns the source's label scheme in a label space, and the map from source id to stored id."""
        return LabelScheme.from_source_labels(
            self.name, self.label_sets, space, ungrouped(self.also_background), self.known_absent
        )


def ungrouped(names: tuple[str, ...]) -> tuple[str, ...]:
    """Replaces each group (kidney, bone, ...) by its structures."""
    return tuple(dict.fromkeys(s for name in names for s in GROUPS.get(name, (name,))))
