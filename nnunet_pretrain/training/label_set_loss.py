r"""Label-set loss: cross-entropy and Dice that know which structures each voxel may truly be.

A voxel with label set S contributes the marginal cross-entropy -log sum_{s in S} p_s (Shi et al., "Marginal loss and
exclusion loss for partially supervised multi-organ segmentation", MedIA 2021; the label-set view is Fidon et al.,
"Label-set loss functions for partial supervision", MICCAI 2021). Its gradient is p_j for a channel outside S and
p_j - p_j / sum_{s in S} p_s inside. A voxel whose set is everything (`ignore`) has loss and gradient 0.

For the Dice of a stored id k with set S_k, two sums over the voxels are enough:

    hit_k   = sum over voxels labelled k of p(S_k)
    wrong_s = sum over all voxels of p_s, where s is not in the voxel's own set
    Dice_k  = 2 hit_k / (hit_k + sum_{s in S_k} wrong_s + number of voxels labelled k)

For label sets that are disjoint this is the soft Dice of the summed probabilities; for complete labels it is
nnU-Net's. What two foreground sets share (a kidney tumour of unknown side) counts for the id the voxel carries and is
never held against the other. Ids that cannot be decided this way take no part (`LabelSetTable.decidable`).

Shapes: B batch, C channels (background and structures), T stored ids, G groups, V voxels, X Y Z spatial axes.
"""

from __future__ import annotations

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn

from nnunet_pretrain.labels import LabelSetTable


class LabelSets(nn.Module):
    """A label-set table as tensors that move with the trainer's device."""

    member: Tensor
    by_channel: Tensor
    informative: Tensor
    decidable: Tensor
    group_of_id: Tensor

    def __init__(self, table: LabelSetTable) -> None:
        super().__init__()
        self.num_ids = table.num_ids
        self.num_groups = len(table.groups)
        self.register_buffer("member", torch.from_numpy(table.member))
        rows = self.member.flatten(0, 1)
        # Channels first, so that looking up the voxels' sets writes whole channels in order.
        self.register_buffer("by_channel", rows.T.contiguous())
        self.register_buffer("informative", ~rows.all(1))
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

    def forward(self, rows_BV: Tensor) -> Tensor:
        """Returns the label set of every voxel, shape (B, C, V)."""
        return self.by_channel[:, rows_BV].transpose(0, 1)

    def per_group(self, values_BT: Tensor, schemes_B: Tensor) -> Tensor:
        """Sums a quantity of the batch's decidable ids by group, shape (G,)."""
        keep = self.decidable[schemes_B]
        totals = values_BT.new_zeros(self.num_groups)
        return totals.index_add(0, self.group_of_id[schemes_B][keep], values_BT[keep])

    def overlap_sums(
        self,
        hit_BV: Tensor,
        wrong_BC: Tensor,
        rows_BV: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adds up what an overlap measure needs, for probabilities as for decisions.

        Args:
            hit_BV: Per voxel, the predicted mass inside the voxel's own label set.
            wrong_BC: Per structure, the predicted mass on voxels whose label set does not hold the structure.
            rows_BV: Rows of the table.

        Returns:
            hit, false positives and voxel count of each stored id, shape (B, T), and the scheme of each sample (B,).
        """
        schemes = rows_BV[:, 0] // self.num_ids
        ids = rows_BV % self.num_ids
        hit = hit_BV.new_zeros(len(ids), self.num_ids).scatter_add(1, ids, hit_BV)
        count = torch.zeros_like(hit).scatter_add(1, ids, torch.ones_like(hit_BV))
        false_positive = torch.einsum("btc,bc->bt", self.member[schemes].to(wrong_BC.dtype), wrong_BC)
        return hit, false_positive, count, schemes


class LabelSetLoss(nn.Module):
    """Marginal cross-entropy plus soft Dice of the decidable groups.

    Args:
        sets: The dataset's label sets.
        batch_dice: Whether Dice is computed over the batch, per group, instead of per sample and id.
        ddp: Whether batch Dice is computed over all processes.
        weight_ce: Weight of the cross-entropy.
        weight_dice: Weight of the Dice term.
        smooth: Added to numerator and denominator of the Dice, as in nnU-Net.
    """

    def __init__(
        self,
        sets: LabelSets,
        *,
        batch_dice: bool,
        ddp: bool = False,
        weight_ce: float = 1.0,
        weight_dice: float = 1.0,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.sets, self.batch_dice, self.ddp = sets, batch_dice, ddp
        self.weight_ce, self.weight_dice, self.smooth = weight_ce, weight_dice, smooth

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: Network output, shape (B, C, X, Y, Z).
            rows: Encoded target (`LabelSets.encode`), shape (B, 1, X, Y, Z).

        Returns:
            A scalar: weighted cross-entropy minus weighted Dice, in [-weight_dice, infinity).
        """
        with torch.autocast(logits.device.type, enabled=False):
            # Half precision cannot hold sums over a patch; double is kept for exact tests.
            z = logits.flatten(2).to(torch.promote_types(logits.dtype, torch.float32))
            rows_bv = rows.flatten(1).long()
            allowed = self.sets(rows_bv)
            log_p = z.log_softmax(1)
            log_mass = log_p.masked_fill(~allowed, -torch.inf).logsumexp(1)
            # Where everything is allowed, the logarithm is 0 up to rounding; there must be no gradient at all.
            informative = self.sets.informative[rows_bv]
            log_mass = log_mass.where(informative, 0)
            loss = -self.weight_ce * log_mass.sum() / informative.sum().clamp_min(1)
            if self.weight_dice:
                wrong = log_p.exp().masked_fill(allowed, 0).sum(2)
                dice = self._mean_dice(*self.sets.overlap_sums(log_mass.exp(), wrong, rows_bv))
                loss = loss - self.weight_dice * dice
            return loss

    def _mean_dice(self, hit: Tensor, false_positive: Tensor, count: Tensor, schemes: Tensor) -> Tensor:
        intersection, total, weight = hit, hit + false_positive + count, self.sets.decidable[schemes].to(hit.dtype)
        if self.batch_dice:
            intersection, total, weight = (
                self.sets.per_group(values, schemes) for values in (intersection, total, weight)
            )
            if self.ddp:
                intersection, total, weight = (
                    AllGatherGrad.apply(values).sum(0) for values in (intersection, total, weight)
                )
            weight = (weight > 0).to(hit.dtype)
        dice = (2 * intersection + self.smooth) / (total + self.smooth).clamp_min(1e-8)
        return (dice * weight).sum() / weight.sum().clamp_min(1)
