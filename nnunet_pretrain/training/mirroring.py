"""Mirroring along left-right with the ids of left and right structures swapped.

A mirrored patient has the liver on the left; what is left and right in the labels must be swapped with the image. With
partial labels that is possible only if the mirrored label set of every id is the set of some id of the same scheme: a
source that annotates the left kidney only cannot be mirrored, one with unsplit kidneys can, and keeps its id.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.labels.structures import mirrored_name


def mirrored_ids(table: LabelSetTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Finds, for every scheme, the id each stored id turns into when the patient is mirrored.

    Returns:
        Ids of shape (schemes, stored ids), and which schemes can be mirrored at all, shape (schemes,). Ids that a
        scheme does not store stay themselves.
    """
    names = list(table.space.names)
    other_side = [
        names.index(mirrored_name(name)) if mirrored_name(name) in names else i for i, name in enumerate(names)
    ]
    ids = np.tile(np.arange(table.num_ids), (len(table.schemes), 1))
    possible = np.ones(len(table.schemes), dtype=bool)
    for index, scheme in enumerate(table.schemes):
        member = table.member[index]
        for stored_id in scheme.sets:
            if stored_id == table.space.ignore_id:
                continue
            wanted = member[stored_id][other_side]
            found = [i for i in scheme.sets if (member[i] == wanted).all()]
            # The id of the other side itself where it has the right set; background stays background.
            preferred = [i for i in (0 if stored_id == 0 else other_side[stored_id], stored_id) if i in found]
            possible[index] &= bool(preferred or found)
            ids[index, stored_id] = (preferred or found or [stored_id])[0]
    return ids, possible


class MirrorLeftRight(nn.Module):
    """Mirrors half of the samples of a batch, on the batch's device.

    Args:
        table: The dataset's label sets.
        axis: Spatial axis of the patch that runs left-right.
    """

    ids: Tensor
    possible: Tensor

    def __init__(self, table: LabelSetTable, axis: int) -> None:
        super().__init__()
        ids, possible = mirrored_ids(table)
        self.axis = axis
        self.register_buffer("ids", torch.from_numpy(ids))
        self.register_buffer("possible", torch.from_numpy(possible))

    def forward(self, data: Tensor, targets: list[Tensor], schemes_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mirrors each sample with probability one half, if its scheme can be mirrored.

        Args:
            data: Images, shape (B, channels, X, Y, Z).
            targets: Stored ids at every scale of deep supervision, each (B, 1, X', Y', Z').
            schemes_B: Scheme index of each sample.

        Returns:
            Images and targets. Coarse targets are mirrored as they are: nnU-Net picks a voxel beside the middle of a
            coarse voxel, so mirroring before and after coarsening may differ by that one voxel.
        """
        flip = self.possible[schemes_B] & (torch.rand(len(schemes_B)) < 0.5).to(schemes_B.device)
        index = flip.view(-1, *[1] * (data.ndim - 1))
        data = torch.where(index, data.flip(self.axis + 2), data)
        mirrored = []
        for target in targets:
            swapped = self.ids[schemes_B].gather(1, target.flatten(1).long()).view_as(target).to(target.dtype)
            mirrored.append(torch.where(index, swapped.flip(self.axis + 2), target))
        return data, mirrored
