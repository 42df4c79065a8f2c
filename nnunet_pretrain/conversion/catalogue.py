"""The known sources: the files of dataset_conversion/, and a user's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.source import Source
from nnunet_pretrain.files import read_yaml
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.validation import validated

SCHEMA_FILE = "source.schema.json"


def load_source(path: Path) -> Source:
    """Reads and checks a source file, YAML or JSON.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not YAML or does not describe a source.
    """
    return validated(Source, read_yaml(path), str(path))


@cache
def known_sources() -> dict[str, Source]:
    """Returns the sources of dataset_conversion/ by name, in alphabetical order."""
    sources = [load_source(path) for path in sorted(leaf("dataset_conversion").glob("*.yaml"))]
    return {source.name: source for source in sorted(sources, key=lambda source: source.name.lower())}


def find_source(name: str) -> Source:
    """Returns a source by its name (any case) or by the path of a user's own source file.

    Raises:
        FileNotFoundError: The source file is missing.
        ValueError: There is no source of that name.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return load_source(Path(name).expanduser())
    sources = known_sources()
    for source in sources.values():
        if source.name.lower() == name.lower():
            return source
    raise ValueError(
        f"unknown source '{name}'; known are {', '.join(sources)}; or give the path of a .yaml file, or the name of a "
        f"dataset in nnUNet_raw (Dataset027_...)"
    )


def source_json_schema() -> dict[str, Any]:
    """Returns the JSON schema of source files, for editors; `source.schema.json` beside them holds it."""
    schema = Source.model_json_schema()
    # Descriptions come from docstrings; an editor shows the attribute table of the class under the file itself.
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
