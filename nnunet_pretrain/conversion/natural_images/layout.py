"""Where a dataset of natural images keeps what; the model of the files in dataset_conversion/natural_images/."""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nnunet_pretrain.files import read_yaml
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.validation import validated

Task = Literal["classification", "segmentation"]
PartName = Literal["", "train", "val"]
NAME = "{name}"
"""Placeholder in the path of a mask: the path of its image below `images`, without suffix."""


def fixed_folder(pattern: str) -> str:
    """Returns the folder all paths of a pattern lie in: what stands before the first name with a placeholder."""
    names = pattern.split("/")[:-1]
    return "/".join(takewhile(lambda name: "*" not in name and "{" not in name, names))


class Images(BaseModel):
    """Some of a dataset's images.

    Attributes:
        images: Their paths below the dataset's folder; `*` is anything within one name, `**/` any folders or none.
        part: `train` or `val` where the dataset comes split.
        names: Text file that lists the images that count, one path below `images` per line, without suffix; what
            follows on a line after white space is not read.
        mask: Path of an image's mask, with {name}; the suffix `.*` stands for any format.
        coco: JSON file of annotations in the form of COCO, instead of masks; names each image below `images`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str
    part: PartName = ""
    names: str | None = None
    mask: str | None = None
    coco: str | None = None

    @field_validator("images", "names", "mask", "coco")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            raise ValueError(f"'{path}' must lie below the dataset's folder")
        return path

    @property
    def folder(self) -> str:
        """The folder all of them lie in."""
        return fixed_folder(self.images)


class Classes(BaseModel):
    """Images that are labelled as a whole.

    Attributes:
        parts: The images.
        label: Regular expression with a group `class`, searched in the path of an image below the dataset's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Images, ...] = Field(min_length=1)
    label: str

    @field_validator("label")
    @classmethod
    def _finds_a_class(cls, label: str) -> str:
        try:
            groups = re.compile(label).groupindex
        except re.error as error:
            raise ValueError(f"'{label}' is no regular expression: {error}") from None
        if "class" not in groups:
            raise ValueError(f"'{label}' has no group (?P<class>...)")
        return label


class Masks(BaseModel):
    """Images in which every pixel is labelled.

    Attributes:
        parts: The images, each with `mask` or `coco`.
        values: Name of every value a mask can hold; `background` becomes 0, `ignore` is not scored. Values of the
            same name become one structure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Images, ...] = Field(min_length=1)
    values: dict[int, str] | None = None

    @model_validator(mode="after")
    def _masks_are_found(self) -> Masks:
        for part in self.parts:
            if (part.mask is None) == (part.coco is None):
                raise ValueError(f"images '{part.images}' need either 'mask' or 'coco'")
            if part.mask is not None and NAME not in part.mask:
                raise ValueError(f"mask '{part.mask}' must contain {NAME}")
        if len({part.coco is None for part in self.parts}) > 1:
            raise ValueError("either all parts have 'mask' or all have 'coco'")
        if self.is_coco and self.values is not None:
            raise ValueError("'values' and 'coco' exclude each other; the JSON names its categories")
        return self

    @property
    def is_coco(self) -> bool:
        """Whether objects are drawn from annotations."""
        return self.parts[0].coco is not None


class Layout(BaseModel):
    """A dataset of natural images.

    Attributes:
        name: Its name, for `--layout`.
        title: Its full name.
        citation: The paper to cite.
        licence: Its terms.
        url: Where it comes from.
        recognised_by: Paths below its folder; where all of them are, it is this dataset. They may have wildcards.
        classification: Where the classes of its images are found; absent if it has none.
        segmentation: Where its masks are found; absent if it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    citation: str = ""
    licence: str = ""
    url: str = ""
    recognised_by: tuple[str, ...] = ()
    classification: Classes | None = None
    segmentation: Masks | None = None

    @model_validator(mode="after")
    def _has_a_task(self) -> Layout:
        if self.classification is None and self.segmentation is None:
            raise ValueError("a layout needs 'classification', 'segmentation' or both")
        return self

    @property
    def tasks(self) -> list[str]:
        """What it can be used for."""
        return [task for task in ("classification", "segmentation") if getattr(self, task) is not None]


def load_layout(path: Path) -> Layout:
    """Reads and checks a layout file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is not YAML or describes no layout.
    """
    return validated(Layout, read_yaml(path), str(path))


@cache
def known_layouts() -> dict[str, Layout]:
    """Returns the layouts of dataset_conversion/natural_images/ by name."""
    folder = leaf("dataset_conversion") / "natural_images"
    layouts = [load_layout(path) for path in sorted(folder.glob("*.yaml"))]
    return {layout.name: layout for layout in layouts}


def find_layout(name: str) -> Layout:
    """Returns a layout by its name (any case) or by the path of a user's own file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: There is no layout of that name.
    """
    if name.endswith((".yaml", ".yml")):
        return load_layout(Path(name).expanduser())
    for layout in known_layouts().values():
        if layout.name.lower() == name.lower():
            return layout
    raise ValueError(
        f"unknown layout '{name}'; known are {', '.join(known_layouts())}; or give the path of a .yaml file"
    )
