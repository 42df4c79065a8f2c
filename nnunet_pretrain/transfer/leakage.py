"""Leakage guard: which images of a target were already in the pre-training.

A validation or test case that the network has seen makes the transfer look better than it is; AbdomenAtlas, for
instance, contains test images of BTCV. Images are compared by content (`conversion.fingerprint`), so names, headers,
windows, mirroring and crops do not hide a copy; resampled or smoothed copies are not found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.conversion.duplicates import NUM_FOLDS, find_pairs
from nnunet_pretrain.conversion.fingerprint import SKETCH_SIZE, Fingerprint
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.planning.settings import SETTINGS_KEY, Fold
from nnunet_pretrain.transfer.target_fingerprints import Place, target_fingerprints

SPLITS = "splits_final.json"
SHOWN = 10


@dataclass(frozen=True)
class LeakedCase:
    """A target case that was in the pre-training.

    Attributes:
        case: Case of the target.
        place: Whether it is a training case or one of imagesTs.
        pretraining_case: Case of the pre-training with the same content.
        exact: Whether every voxel is equal; otherwise it was cropped, mirrored or windowed.
        common: Number of sketched patterns both share, of at most `SKETCH_SIZE`.
    """

    case: str
    place: Place
    pretraining_case: str
    exact: bool
    common: int

    def __str__(self) -> str:
        kind = "identical" if self.exact else f"nearly, {self.common} of {SKETCH_SIZE} patterns in common"
        return f"{self.case} ({self.place}) is {self.pretraining_case} of the pre-training ({kind})"


@dataclass(frozen=True)
class Leakage:
    """What a comparison of a target with a pre-training found.

    Attributes:
        target: Name of the target.
        pretraining: Name of the pre-training's dataset.
        known: Number of pre-training images whose fingerprints the checkpoint holds; 0 means that nothing is known.
        compared: Number of target cases that were compared, by place.
        cases: The target cases that were in the pre-training; one entry for each pre-training case they equal.
        unread: Target case to the reason why it was not compared.
        doubts: Why the pre-training may have seen more images than the checkpoint says.
    """

    target: str
    pretraining: str
    known: int
    compared: Mapping[Place, int]
    cases: tuple[LeakedCase, ...]
    unread: Mapping[str, str]
    doubts: tuple[str, ...]

    @property
    def verdict(self) -> Literal["unknown", "none found", "found"]:
        """The result in a word: "unknown" where nothing could be compared, or where doubts remain."""
        if self.cases:
            return "found"
        return "unknown" if not self.known or self.doubts or self.unread else "none found"

    def leaked(self, place: Place = "training") -> frozenset[str]:
        """Returns the names of the target's cases of one place that were in the pre-training."""
        return frozenset(found.case for found in self.cases if found.place == place)

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as plain values for JSON, the verdict first."""
        return {"verdict": self.verdict, **asdict(self)}

    def lines(self) -> list[str]:
        """Returns what the user should know."""
        if not self.known:
            reasons = "; ".join(self.doubts)
            return [f"leakage: unknown whether images of {self.target} were in the pre-training: {reasons}"]
        counts = " and ".join(f"{number} {place}" for place, number in self.compared.items()) or "no"
        what = f"of {counts} cases of {self.target}, compared with {self.known} images of {self.pretraining}"
        if not self.cases:
            lines = [f"leakage: none found {what}"]
        else:
            places: tuple[Place, ...] = ("training", "test")
            found = " and ".join(f"{len(self.leaked(place))} {place}" for place in places if self.leaked(place))
            lines = [f"WARNING, leakage: {found} cases of {self.target} were in the pre-training, {what}"]
            lines += [f"  {case}" for case in self.cases[:SHOWN]]
            if len(self.cases) > SHOWN:
                lines.append(f"  ... and {len(self.cases) - SHOWN} more")
        if self.unread:
            case, reason = next(iter(self.unread.items()))
            lines.append(f"leakage: unknown for {len(self.unread)} cases, which were not compared: {case}: {reason}")
        return lines + [f"leakage: more may be hidden: {doubt}" for doubt in self.doubts]


def find_leaked(target: int | str, checkpoint: Mapping[str, Any], num_processes: int = 2) -> Leakage:
    """Compares all images of a target, those of imagesTs too, with the images of a pre-training.

    Args:
        target: Id or name of the target, in nnU-Net raw format.
        checkpoint: The pre-trained checkpoint in the form of nnU-Net v2.
        num_processes: Worker processes that read the target's images.

    Raises:
        FileNotFoundError: There is no such dataset, or an image of it is missing.
        ValueError: The fingerprints in the checkpoint are damaged.
    """
    name = dataset_name(target)
    pretraining = str(checkpoint["init_args"]["plans"].get("dataset_name", "the pre-training"))
    known = pretraining_fingerprints(checkpoint)
    doubts = _doubts(checkpoint, len(known))
    if not known:
        return Leakage(name, pretraining, 0, {}, (), {}, doubts)
    images, unread = target_fingerprints(name, num_processes)
    leaked: dict[tuple[Place, str, str], LeakedCase] = {}
    for place, of_place in images.items():
        for key, found in of_place.items():
            for pair in find_pairs({key[0]: found}, known):
                case = LeakedCase(pair.first, place, pair.second, pair.exact, pair.common)
                former = leaked.get((place, pair.first, pair.second), case)
                leaked[place, pair.first, pair.second] = max(former, case, key=lambda c: (c.exact, c.common))
    compared = {place: len({case for case, _ in of_place}) for place, of_place in images.items() if of_place}
    ordered = tuple(leaked[key] for key in sorted(leaked, key=lambda key: (key[0] == "test", *key[1:])))
    return Leakage(name, pretraining, len(known), compared, ordered, unread, doubts)


def pretraining_fingerprints(checkpoint: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Returns the fingerprints a checkpoint holds, case to fingerprint; none for a foreign one.

    Raises:
        ValueError: They are damaged.
    """
    stored = checkpoint["init_args"].get(EXTRAS_KEY, {}).get("card", {}).get("fingerprints", {})
    try:
        return {case: Fingerprint.from_dict(content) for case, content in stored.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the fingerprints in the checkpoint are damaged: {error!r:.200}") from None


def _doubts(checkpoint: Mapping[str, Any], known: int) -> tuple[str, ...]:
    """Returns why the fingerprints may not be all."""
    arguments = checkpoint["init_args"]
    doubts = []
    cases = arguments["dataset_json"].get("numTraining")
    if not known and natural_images_of(checkpoint) is not None:
        doubts.append("it saw natural images only, which are not compared")
    elif not known:
        doubts.append("the checkpoint holds no fingerprints of its training images")
    elif isinstance(cases, int) and cases > known:
        doubts.append(f"the pre-training had {cases} images, the checkpoint holds the fingerprints of {known}")
    start = (arguments["plans"].get(SETTINGS_KEY) or {}).get("transfer") or {}
    if start.get("checkpoint"):
        doubts.append(f"the checkpoint itself started from {start['checkpoint']}, whose images it does not list")
    return tuple(doubts)


def write_list(leakage: Leakage, path: Path) -> None:
    """Writes the result as JSON, with every leaked case."""
    write_json(path, leakage.as_dict())


def folds_without(target: str, leakage: Leakage) -> tuple[Fold, ...] | None:
    """Returns a target's folds with its leaked cases out of every validation part.

    The folds are those of its splits_final.json, where nnU-Net's training or planning looks for it, or else the five
    that nnU-Net would make.

    Args:
        target: Name of the target.
        leakage: What `find_leaked` found.

    Returns:
        The folds, or None if no training case leaked: then the target's own folds are good.

    Raises:
        ValueError: A fold would have no validation case left, or there are too few cases for five folds.
    """
    if not leakage.leaked():
        return None
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        path = nnunet_folder(variable) / target / SPLITS
        if path.is_file():
            return moved_to_training(leakage.leaked(), read_json(path))
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    cases = sorted(get_filenames_of_train_images_and_targets(str(nnunet_folder("nnUNet_raw") / target)))
    if len(cases) < NUM_FOLDS:
        raise ValueError(
            f"{target} has {len(cases)} cases, too few for the {NUM_FOLDS} folds nnU-Net makes; write {path} yourself"
        )
    return moved_to_training(leakage.leaked(), generate_crossval_split(cases, seed=12345, n_splits=NUM_FOLDS))


def moved_to_training(leaked: Collection[str], folds: Sequence[Mapping[str, Sequence[str]]]) -> tuple[Fold, ...]:
    """Returns folds with leaked cases moved from every validation part to the training part.

    They may be trained on, as the pre-training did; scored they would say nothing.

    Args:
        leaked: Cases that were in the pre-training.
        folds: Content of a splits_final.json.

    Raises:
        ValueError: A fold would have no validation case left.
    """
    made = []
    for number, fold in enumerate(folds):
        val = [str(case) for case in fold["val"] if case not in leaked]
        if not val:
            raise ValueError(
                f"fold {number} would have no validation case left: all {len(fold['val'])} were in the pre-training; "
                f"write a {SPLITS} with cases that were not, or go on without --exclude-leaked"
            )
        train = [str(case) for case in fold["train"]]
        train += [str(case) for case in fold["val"] if case in leaked and case not in train]
        made.append(Fold(train=tuple(train), val=tuple(val)))
    return tuple(made)
