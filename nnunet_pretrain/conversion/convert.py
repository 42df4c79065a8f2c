"""Converting one case into the merged label space, in the image's own geometry.

Image and label are each read once. Everything a merged dataset knows about a case is found here, so that the same
function runs in a process of this machine or on a cluster, and a record can be reused when a merge is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.case_scheme import CaseFacts, case_scheme, right_twin, scheme_with_sides
from nnunet_pretrain.conversion.fingerprint import fingerprint, read_hu
from nnunet_pretrain.conversion.geometry import Alignment
from nnunet_pretrain.conversion.holes import enclosed_holes
from nnunet_pretrain.conversion.label_map import LabelMap
from nnunet_pretrain.conversion.paired import Body, find_sides, unsplit_group
from nnunet_pretrain.conversion.plausibility import Sample, check_image, check_organ_hu, check_sides, check_spacing
from nnunet_pretrain.conversion.reading import is_nifti, open_volume
from nnunet_pretrain.conversion.record import Conversion, Record, stat_of
from nnunet_pretrain.conversion.source import RawId
from nnunet_pretrain.conversion.volume import Grid, Volume, write_nifti
from nnunet_pretrain.files import written_atomically
from nnunet_pretrain.labels.structures import PART_OF


def convert_case(conversion: Conversion) -> Record:
    """Writes the merged label map of one case, and its image if that cannot be referenced.

    Returns:
        The record of the case.

    Raises:
        ValueError: A file is not readable, image and label lie on different grids, a label holds an id that is not in
            the source's label scheme, or the case cannot be what its source says.
    """
    return _CaseConversion(conversion).run()


class _CaseConversion:
    """The steps of one conversion, and what they share."""

    def __init__(self, conversion: Conversion) -> None:
        self.job, self.files, self.source, self.space = (
            conversion,
            conversion.files,
            conversion.source,
            conversion.space,
        )
        self.stored: dict[RawId, int] = self.source.scheme(self.space)[1]
        self.decisions: list[str] = []
        self.warnings: list[str] = []
        self.inputs: dict[str, dict[str, Any]] = {}
        self._hu: npt.NDArray[np.int16] | None = None

    def run(self) -> Record:
        self.volume = self._open(self.files.image)
        self.volume.check_for_nnunet()
        self.grid: Grid = self.volume.grid
        self.warnings += self._judged(lambda: check_spacing(self.grid, self.source.unit_spacing_is_faulty))
        labels = self._read_labels()
        array = labels.voxels.reshape(self.grid.shape, order="F")
        facts = CaseFacts(set(labels.present), self._missing_masks())
        facts.cut_short = self._cut_short(array, facts.present)
        if self.job.split_paired:
            self._split(array, facts)
        facts.ignored = self._ignore_holes(array) or (
            bool(labels.overlapping) and self.source.overlapping_masks == "ignore"
        )
        scheme, decisions = case_scheme(self.source, self.space, facts)
        self.decisions += decisions
        counts = labels.counts()
        self._check(labels.voxels, counts, dict(scheme.sets))
        if labels.overlapping:
            rule = "ignored" if self.source.overlapping_masks == "ignore" else "the smaller structure won"
            self.decisions.append(f"masks overlapped in {labels.overlapping} voxels; {rule}")
        return Record(
            case=self.files.case,
            source=self.source.name,
            rules=self.job.rules,
            inputs=dict(sorted(self.inputs.items())),
            scheme=scheme.model_dump(mode="json"),
            decisions=self.decisions,
            warnings=self.warnings,
            image=self._image_path(),
            shape=list(self.grid.shape),
            spacing=[round(mm, 6) for mm in self.grid.spacing],
            orientation=self.grid.axis_codes,
            voxels={str(i): n for i, n in counts.items()},
            voxel_ml=self.grid.voxel_ml,
            overlapping_voxels=labels.overlapping,
            fingerprint=fingerprint(self.hu, self.grid).as_dict(),
            outputs=self._write(array),
        )

    @property
    def hu(self) -> npt.NDArray[np.int16]:
        """The image; read when it is first needed, which for most sources is after the labels."""
        if self._hu is None:
            self._hu = read_hu(self.volume)
            self._note_inputs(self.volume)
            self.warnings += check_image(self._hu)
        return self._hu

    def _open(self, path: Path) -> Volume:
        self._stats = {str(file): stat_of(file) for file in self.files.inputs if file.is_file()}
        return open_volume(path)

    def _note_inputs(self, volume: Volume) -> None:
        for file, digest in volume.sha256.items():
            self.inputs[str(file)] = {**(self._stats.get(str(file)) or stat_of(file)), "sha256": digest}

    def _read_labels(self) -> LabelMap:
        by_overlay = self.source.label_geometry == "by_overlay"
        alignment = Alignment(
            self.grid, self.source.label_geometry, self.hu if by_overlay else None, decisions=self.decisions
        )
        labels = LabelMap(self.grid.size)
        if self.files.labels is not None:
            volume = open_volume(self.files.labels, like=self.grid)
            labels.remap(alignment.chunks(volume), self.stored, volume.path)
            self._note_inputs(volume)
        for name, path in sorted(self.files.masks.items()):
            if self.stored[name]:
                volume = open_volume(path, like=self.grid)
                labels.paint(alignment.chunks(volume), name, self.stored[name], path)
                self._note_inputs(volume)
        labels.settle_overlaps(self.space.ignore_id if self.source.overlapping_masks == "ignore" else None)
        return labels

    def _missing_masks(self) -> set[RawId]:
        if self.files.labels is not None:
            return set()
        return {name for name in self.stored if name not in self.files.masks}

    def _cut_short(self, array: npt.NDArray[np.uint8], present: set[RawId]) -> set[RawId]:
        """Returns the ids of tubes that do not occur on every axial slice."""
        axial = int(np.flatnonzero(self.grid.orientation[:, 0] == 2)[0])
        others = tuple(axis for axis in range(3) if axis != axial)
        tubes = [i for i in self.source.unknown_beyond_extent if i in present and self.stored[i]]
        return {i for i in tubes if not (array == self.stored[i]).any(axis=others).all()}

    def _split(self, array: npt.NDArray[np.uint8], facts: CaseFacts) -> None:
        sided = {s for structures in self.source.label_sets.values() if len(structures) == 1 for s in structures}
        for raw_id, structures in self.source.label_sets.items():
            group = unsplit_group(structures)
            if group is None or raw_id not in facts.present:
                continue
            if set(structures) & sided or not set(structures) <= set(self.space.structures):
                self.decisions.append(f"{group} not split: its sides are not free in the label space")
                continue
            lesions = {i for i, found in self.source.label_sets.items() if set(found) <= _parts_of(structures)}
            lesion_ids = {self.stored[i] for i in lesions} - {0, self.space.ignore_id}
            body = Body.find(self.hu, self.grid)
            is_right, decision = find_sides(group, array, self.stored[raw_id], lesion_ids, body, self.grid)
            self.decisions.append(decision)
            if is_right is not None:
                _, sides = scheme_with_sides(self.source, self.space, {raw_id: group})
                voxels = np.nonzero(array == self.stored[raw_id])
                array[voxels] = np.where(is_right, sides[right_twin(raw_id)], sides[raw_id])
                facts.split[raw_id] = group
                facts.present.add(right_twin(raw_id))

    def _ignore_holes(self, array: npt.NDArray[np.uint8]) -> bool:
        found = 0
        for raw_id in self.source.holes_are_unknown:
            structures = self.source.label_sets[raw_id]
            walls = {self.space.id_of(s) for s in _parts_of(structures) if s in self.space.structures}
            if self.stored[raw_id]:
                holes = enclosed_holes(array, self.stored[raw_id], walls)
                array[holes] = self.space.ignore_id
                found += len(holes[0])
        if found:
            self.decisions.append(f"{found} voxels in holes of organs are ignored")
        return bool(found)

    def _check(self, labels: npt.NDArray[np.uint8], counts: dict[int, int], sets: dict[int, tuple[str, ...]]) -> None:
        labelled = sum(n for i, n in counts.items() if i)
        if not labelled:
            self.warnings.append("no labelled voxel")
            return
        sample = Sample.draw(labels, self.hu, self.grid, labelled)
        self.warnings += self._judged(lambda: check_sides(sample, sets, self.space, self.grid.voxel_ml))
        self.warnings += self._judged(lambda: check_organ_hu(sample, self.space, self.grid.voxel_ml))

    def _judged(self, check: Callable[[], list[str]]) -> list[str]:
        """Runs a plausibility check; what it refuses is a warning where the source accepts the case."""
        try:
            return check()
        except ValueError as error:
            own = self.files.case.removeprefix(f"{self.source.prefix}_")
            if not {own, self.files.case} & set(self.source.accept_cases):
                raise
            return [f"accepted although {error}"]

    def _image_path(self) -> str:
        image = self.files.image
        return str(image.absolute()) if is_nifti(image) else f"imagesTr/{self.files.case}_0000.nii.gz"

    def _write(self, array: npt.NDArray[np.uint8]) -> dict[str, str]:
        case, folder, outputs = self.files.case, self.job.folder, {}
        written: list[tuple[str, npt.NDArray[Any]]] = [(f"labelsTr/{case}.nii.gz", array)]
        if not is_nifti(self.files.image):
            written.append((self._image_path(), self.hu))
        for name, voxels in written:
            with written_atomically(folder / name) as temporary:
                outputs[name] = write_nifti(temporary, voxels, self.grid.affine)
        if self.job.picture:
            from nnunet_pretrain.conversion.montage import draw_case

            name = f"report/{case}.png"
            outputs[name] = draw_case(folder / name, self.hu, array, self.grid, self.space)
        return outputs


def _parts_of(structures: tuple[str, ...]) -> set[str]:
    return {part for part, organs in PART_OF.items() if set(organs) & set(structures)}
