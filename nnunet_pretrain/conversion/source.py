"""Sources: what the files in dataset_conversion/ say about one public dataset each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nnunet_pretrain.folders import leaf
from nnunet_pretrain.labels import LabelScheme, LabelSpace
from nnunet_pretrain.validation import validated


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Structures = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Layout(BaseModel):
    """Where the files of a case lie below the source's folder.

    Attributes:
        images: Path of a case's image; `{case}` stands for the case's own id.
        labels: Path of a case's multi-label file, or None.
        masks: Path of a case's binary masks, `{mask}` standing for the structure's file name, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    labels: str | None = None
    masks: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_label(self) -> Layout:
        if (self.labels is None) == (self.masks is None):
            raise ValueError("a layout needs either 'labels' or 'masks'")
        if self.masks is not None and "{mask}" not in self.masks:
            raise ValueError("'masks' must contain {mask}")
        return self


class Source(BaseModel):
    """One public dataset: ids to structures, files, licence, citation.

    Attributes:
        name: Name on the command line.
        title: Full name.
        prefix: Start of the case names in a merged dataset.
        cases: Number of labelled cases published, or None if unknown.
        layouts: Known ways the dataset lies on disk; the first that matches is used.
        labels: Source id (or mask file name) to the structures such a voxel may be, the main one first.
        aliases: Other file names of masks to the name used in `labels`.
        also_background: Annotated structures that background may hide all the same.
        exclude_cases: Cases known to be faulty.
        labels_without_image: Whether labels without image are part of the publication, to be passed over.
        licence: Licence of the data, with doubts.
        url: Where the dataset is described.
        citation: What to cite.
        notes: What a user must know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    prefix: str = Field(pattern=r"^[A-Za-z0-9]+$")
    cases: int | None = None
    layouts: tuple[Layout, ...] = Field(min_length=1)
    labels: dict[int | str, Structures] = Field(min_length=1)
    aliases: dict[str, str] = {}
    also_background: tuple[str, ...] = ()
    exclude_cases: tuple[str, ...] = ()
    labels_without_image: bool = False
    licence: str
    url: str = ""
    citation: str
    notes: tuple[str, ...] = ()

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
        unknown = [target for target in self.aliases.values() if target not in self.labels]
        if unknown:
            raise ValueError(f"aliases lead to unknown labels {unknown}")
        return self

    @property
    def structures(self) -> tuple[str, ...]:
        """Every structure the source annotates, alone or as an alternative, in order of its ids."""
        return tuple(dict.fromkeys(s for structures in self.labels.values() for s in structures))

    def scheme(self, space: LabelSpace) -> tuple[LabelScheme, dict[int | str, int]]:
        """Returns the source's label scheme in a label space, and the map from source id to stored id."""
        return LabelScheme.from_source_labels(self.name, self.labels, space, self.also_background)


def load_source(path: Path) -> Source:
    """Reads and checks a source file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not YAML or does not describe a source.
    """
    if not path.is_file():
        raise FileNotFoundError(f"source file {path} not found")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    return validated(Source, content, str(path))


@cache
def known_sources() -> dict[str, Source]:
    """Returns the sources of dataset_conversion/ by name, in alphabetical order."""
    sources = [load_source(path) for path in sorted(leaf("dataset_conversion").glob("*.yaml"))]
    return {source.name: source for source in sorted(sources, key=lambda source: source.name.lower())}


def find_source(name: str) -> Source:
    """Returns a source by its name (any case) or by the path of a user's own source file.

    Raises:
        ValueError: There is no source of that name.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return load_source(Path(name).expanduser())
    sources = known_sources()
    for source in sources.values():
        if source.name.lower() == name.lower():
            return source
    raise ValueError(f"unknown source '{name}'; known are {', '.join(sources)}; or give the path of a .yaml file")
