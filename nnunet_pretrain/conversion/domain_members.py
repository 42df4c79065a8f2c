"""Members of a dataset of domains: existing datasets in nnU-Net raw format, of any modality and any labels.

Everything that can be wrong with a member is looked for here, before anything is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.clip import ENDINGS, ending_of
from nnunet_pretrain.conversion.domain_checks import check_geometry, plain_labels
from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.labels import BACKGROUND, IGNORE, SCHEMES_KEY

ALL_CHANNELS = "ALL"
READERS = ("NibabelIOWithReorient", "SimpleITKIO")
"""nnU-Net's readers for a dataset of domains, the preferred one first."""

_FACTS = {
    "licence": ("licence", "license"),
    "url": ("url",),
    "citation": ("citation", "reference"),
    "description": ("description",),
}
LEAST_CASES = 2
MIXED_CHANNEL = "image"
"""What channels of different names are called together; nnU-Net normalises it by each image's mean and deviation."""


@dataclass(frozen=True)
class DomainCase:
    """One case of a domain.

    Attributes:
        case: Its name in the dataset of domains.
        patient: What the member calls the case; several channels of it may be cases of their own.
        images: One image per channel.
        label: The label map.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class DomainMember:
    """An existing dataset that becomes a domain.

    Attributes:
        name: Its full name, such as Dataset003_Liver, which is the domain's.
        labels: Its labels, every id by a name of its own, background first.
        channel_names: The chosen channels, as nnU-Net's dataset.json has them.
        cases: Its cases.
        facts: What its dataset.json says about origin and licence.
        file_ending: Of its images.
        notes: What was decided about it, for the user.
    """

    name: str
    labels: dict[str, int]
    channel_names: dict[str, str]
    cases: tuple[DomainCase, ...]
    facts: dict[str, str]
    file_ending: str
    notes: tuple[str, ...] = ()

    @property
    def structures(self) -> dict[str, int]:
        """Its labels without background and `ignore`."""
        return {name: i for name, i in self.labels.items() if name not in (BACKGROUND, IGNORE)}


def read_members(members: Sequence[int | str], channels: Sequence[str] = ()) -> list[DomainMember]:
    """Reads and checks the members of a dataset of domains; of images and label maps the headers only.

    Args:
        members: Ids or names of datasets in nnUNet_raw.
        channels: The channel to use of members with several: the first of these that a member has; `ALL` makes every
            channel of every member a case of its own; nothing takes all channels, if they are called alike everywhere.

    Raises:
        ValueError: A member is named twice, is not 3D, lacks a channel or an image, has fewer than two cases, or its
            labels are not what nnU-Net asks for.
        FileNotFoundError: A member, an image or a label map is missing.
    """
    names = [dataset_name(member) for member in members]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"member {twice[0]} is named twice; name every member once")
    contents = {name: read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json") for name in names}
    for name, content in contents.items():
        _check_kind(name, content)
    channels_of = {name: _channels_of(name, content) for name, content in contents.items()}
    chosen = _choose_channels(channels_of, channels)
    made = [_read_member(name, contents[name], channels_of[name], chosen[name]) for name in names]
    reader_for(made)
    for member in made:
        check_geometry(member.name, [(*case.images, case.label) for case in member.cases])
    return made


def reader_for(members: Sequence[DomainMember]) -> str:
    """Returns the name of an nnU-Net reader that reads the files of all members.

    Raises:
        ValueError: There is none.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    endings = {
        member.name: {ending_of(path.name) for case in member.cases for path in (*case.images, case.label)}
        for member in members
    }
    for reader in READERS:
        supported = set(recursive_find_reader_writer_by_name(reader).supported_file_endings)
        if all(found <= supported for found in endings.values()):
            return reader
    listed = "; ".join(f"{name}: {', '.join(sorted(map(str, found)))}" for name, found in endings.items())
    raise ValueError(f"no reader of nnU-Net reads the files of all members ({listed}); convert them to .nii.gz")


def _check_kind(name: str, content: Mapping[str, Any]) -> None:
    if SCHEMES_KEY in content:
        raise ValueError(
            f"{name} is merged or made of domains itself and cannot be a member; give it alone (-d {name}, without "
            f"--members) to train one branch per source, or name the datasets it was made of"
        )
    ending = str(content.get("file_ending", ""))
    if ending_of(ending) is None:
        raise ValueError(
            f"{name} has files ending with '{ending}', expected 3D images ending with {', '.join(ENDINGS)}; natural "
            f"and 2D images cannot share an encoder with 3D ones: convert stacks to .nii.gz, or leave it out"
        )


def _channels_of(name: str, content: Mapping[str, Any]) -> list[str]:
    channels = content.get("channel_names", content.get("modality", {}))
    if not channels:
        raise ValueError(f"{name}: dataset.json names no channel; add 'channel_names' as nnU-Net asks for")
    return [str(channels[key]) for key in sorted(channels, key=int)]


@dataclass(frozen=True)
class _Choice:
    """Which channels of a member make an image: `groups` of indices, and whether each group is a case of its own."""

    groups: tuple[tuple[int, ...], ...]
    split: bool = False


def _choose_channels(channels_of: Mapping[str, list[str]], wanted: Sequence[str]) -> dict[str, _Choice]:
    if [name.upper() for name in wanted] == [ALL_CHANNELS]:
        return {name: _Choice(tuple((i,) for i in range(len(found))), True) for name, found in channels_of.items()}
    if not wanted:
        if len({tuple(found) for found in channels_of.values()}) > 1 and any(len(f) > 1 for f in channels_of.values()):
            listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in channels_of.items())
            raise ValueError(
                f"members have different channels ({listed}), and one encoder takes the same number from all; name the "
                f"one to use of each with --channel NAME [NAME ...], or make each a case of its own with --channel "
                f"{ALL_CHANNELS}"
            )
        return {name: _Choice((tuple(range(len(found))),)) for name, found in channels_of.items()}
    chosen = {}
    for name, found in channels_of.items():
        lower = [channel.casefold() for channel in found]
        places = [lower.index(channel.casefold()) for channel in wanted if channel.casefold() in lower]
        if not places and len(found) > 1:
            raise ValueError(
                f"{name} has the channels {', '.join(found)}, and none is called {' or '.join(wanted)}; add the one to "
                f"use to --channel, or leave the member out"
            )
        chosen[name] = _Choice(((places[0] if places else 0,),))
    return chosen


def _read_member(name: str, content: dict[str, Any], channels: list[str], choice: _Choice) -> DomainMember:
    labels, notes = plain_labels(content.get("labels"), name)
    files = _files_of(name, content, channels)
    if len(files) < LEAST_CASES:
        raise ValueError(
            f"{name} has {len(files)} case, and a domain needs at least {LEAST_CASES}, to train and to validate on; "
            f"leave it out"
        )
    cases = [
        DomainCase(
            f"{name}__{patient}" + (f"__{_safe(channels[group[0]])}" if choice.split else ""),
            patient,
            tuple(images[index] for index in group),
            label,
        )
        for patient, (images, label) in files.items()
        for group in choice.groups
    ]
    doubled = [case for case, times in Counter(case.case for case in cases).items() if times > 1]
    if doubled:
        raise ValueError(f"{name}: two images would be called {doubled[0]}; give its channels names that differ")
    used = [channels[index] for group in choice.groups for index in group]
    if choice.split:
        used = [used[0] if len(set(used)) == 1 else MIXED_CHANNEL]
    facts = {key: str(content[k]) for key, keys in _FACTS.items() for k in reversed(keys) if content.get(k)}
    channel_names = {str(i): channel for i, channel in enumerate(used)}
    return DomainMember(name, labels, channel_names, tuple(cases), facts, str(content["file_ending"]), notes)


def _files_of(name: str, content: dict[str, Any], channels: list[str]) -> dict[str, tuple[list[Path], Path]]:
    """Returns the images and the label map of every case of a member."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = nnunet_folder("nnUNet_raw") / name
    if "dataset" not in content and not (folder / "imagesTr").is_dir():
        raise FileNotFoundError(f"{folder} has neither imagesTr nor a list of cases in dataset.json")
    found = get_filenames_of_train_images_and_targets(str(folder), content)
    files = {c: ([Path(p) for p in found[c]["images"]], Path(found[c]["label"])) for c in sorted(found)}
    for case, (images, label) in files.items():
        if len(images) != len(channels):
            raise ValueError(
                f"{name}: case {case} has {len(images)} images, expected one for each channel ({', '.join(channels)}); "
                f"add the missing ones or remove the case"
            )
        for path in (*images, label):
            if not path.is_file():
                raise FileNotFoundError(f"{name}: {path} of case {case} is missing; add it or remove the case")
    return files


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
