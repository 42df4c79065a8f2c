"""Label sets as tensors: what losses and metrics look up for every voxel.

Shapes: B batch, C channels (background and structures), T stored ids, G groups, V voxels, X Y Z spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_pretrain.labels import LabelSetTable


class LabelSets(nn.Module):
    """A label-set table as tensors that move with the trainer's device."""

    member: Tensor
    outside: Tensor
    informative: Tensor
    decidable: Tensor
    group_of_id: Tensor

    def __init__(self, table: LabelSetTable) -> None:
        super().__init__()
        self.num_ids = table.num_ids
        self.num_groups = len(table.groups)
        self.register_buffer("member", torch.from_numpy(table.member))
        self.register_buffer("outside", (~self.member).transpose(1, 2).float().contiguous())
        self.register_buffer("informative", ~self.member.all(2))
        self.register_buffer("decidable", torch.from_numpy(table.decidable))
        self.register_buffer("group_of_id", torch.from_numpy(table.group_of_id))

    def encode(self, target_B1XYZ: Tensor, schemes_B: Tensor) -> Tensor:
        """Turns stored ids into rows of the table.

        Args:
            target_B1XYZ: Stored ids, shape (B, 1, X, Y, Z) or any number of spatial axes.
            schemes_B: Scheme index of each sample.

        Returns:
            Rows of the same shape: scheme index * `num_ids` + stored id.
        """
        offset = (schemes_B * self.num_ids).to(target_B1XYZ.device)
        return target_B1XYZ.long() + offset.view(-1, *[1] * (target_B1XYZ.ndim - 1))

    def decode(self, rows_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the stored ids (B, V) and the scheme index of each sample (B,)."""
        schemes = rows_BV[:, 0] // self.num_ids
        return rows_BV - (schemes * self.num_ids)[:, None], schemes

    def per_group(self, values_BT: Tensor, schemes_B: Tensor) -> Tensor:
        """Sums a quantity of the batch's decidable ids by group, shape (G,)."""
        group = self.group_of_id[schemes_B]
        values = values_BT.where(self.decidable[schemes_B], 0)
        return values.new_zeros(self.num_groups).index_add(0, group.clamp_min(0).flatten(), values.flatten())
