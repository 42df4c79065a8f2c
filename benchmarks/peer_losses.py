r"""Losses of other systems for partial labels, and variants of ours, written from their formulas for comparison.

All take `(logits (B, C, X, Y, Z), rows (B, 1, X, Y, Z))`, rows as `LabelSets.encode` makes them, and return a scalar.

- `MultiTalentLoss`: Ulrich et al., "MultiTalent: A multi-dataset approach to medical image segmentation", MICCAI 2023.
- `ClipTemplateLoss`: Liu et al., "CLIP-Driven Universal Model for organ segmentation and tumor detection", ICCV 2023.
- `LeafDiceLoss`, `MarginalizedDiceLoss`: Fidon et al., "Label-set loss functions for partial supervision", MICCAI 2021.
- `ExclusiveDiceLoss`: our Dice with fewer hits.
- `MissingIsBackground`: a loss for complete labels, which takes what a source does not annotate for background.

The two sigmoid losses keep their authors' Python loops over cases and classes, because those are what is timed. The
three Dice variants share the marginal cross-entropy of the label-set loss, so that they differ in the Dice term only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.labels.structures import PART_OF
from nnunet_pretrain.training.label_set_loss import LabelSets


def valid_classes(table: LabelSetTable) -> Tensor:
    """Returns which classes a sigmoid per class may learn from cases of a scheme, shape (schemes, C), bool.

    A class is valid where the scheme stores it under its own id, alone or together with its lesions and vessels. An
    unsplit kidney says nothing about a sigmoid called "left kidney". Background is no class.
    """
    valid = torch.zeros(len(table.schemes), len(table.space.names), dtype=torch.bool)
    for row, decidable, member in zip(valid, table.decidable, table.member, strict=True):
        for stored_id in decidable.nonzero()[0]:
            name = table.space.names[stored_id]
            others = {table.space.names[i] for i in member[stored_id].nonzero()[0]} - {name}
            row[stored_id] = all(name in PART_OF.get(other, ()) for other in others)
    return valid


def _split(rows: Tensor, num_ids: int) -> tuple[Tensor, Tensor]:
    """Returns the stored ids, shape (B, X, Y, Z), and the scheme of each sample, shape (B,)."""
    rows = rows[:, 0].long()
    return rows % num_ids, rows.flatten(1)[:, 0] // num_ids


class SigmoidLoss(nn.Module):
    """What losses with one sigmoid per class share: which classes are valid in each case.

    Args:
        table: The dataset's label sets.
    """

    valid: Tensor

    def __init__(self, table: LabelSetTable) -> None:
        super().__init__()
        self.num_ids = table.num_ids
        self.register_buffer("valid", valid_classes(table))


class MultiTalentLoss(SigmoidLoss):
    """Cross-entropy and batch Dice of one sigmoid per class, over the classes valid in each case.

    The cross-entropy is the mean over voxels, summed over cases and valid classes. The Dice has no smoothing and is
    summed over classes, so a class without a voxel in the batch has none. Background's channel has no gradient.

    Args:
        table: The dataset's label sets.
    """

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss: summed cross-entropy minus summed Dice."""
        with torch.autocast(logits.device.type, enabled=False):
            z = logits.float()
            ids, schemes = _split(rows, self.num_ids)
            valid = self.valid[schemes].tolist()
            cross_entropy = 0 * z.flatten()[0]  # so that there is a gradient even without a valid class
            tp, fp, fn = (z.new_zeros(z.shape[:2]) for _ in range(3))
            for case in range(z.shape[0]):
                for channel in range(z.shape[1]):
                    if not valid[case][channel]:
                        continue
                    truth = (ids[case] == channel).to(z.dtype)
                    loss = functional.binary_cross_entropy_with_logits(z[case, channel], truth)
                    cross_entropy = cross_entropy + loss
                    p = z[case, channel].sigmoid()
                    tp[case, channel] = (p * truth).sum()
                    fp[case, channel] = (p * (1 - truth)).sum()
                    fn[case, channel] = ((1 - p) * truth).sum()
            hit = 2 * tp.sum(0)
            dice = hit / (hit + fp.sum(0) + fn.sum(0)).clamp_min(1e-7)
            return cross_entropy - dice.sum()


class ClipTemplateLoss(SigmoidLoss):
    """Cross-entropy and Dice of one sigmoid per class, over the classes in each case's template.

    Both are means over pairs of case and class. As in the authors' code the Dice is taken slice by slice along the
    first spatial axis, with 1 added to the denominator only.

    Args:
        table: The dataset's label sets.
    """

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss: mean cross-entropy plus mean of 1 - Dice; 0 without any class."""
        with torch.autocast(logits.device.type, enabled=False):
            z = logits.float()
            ids, schemes = _split(rows, self.num_ids)
            cross_entropy, dice = [], []
            for case in range(z.shape[0]):
                for channel in self.valid[schemes[case]].nonzero()[:, 0].tolist():
                    truth = (ids[case] == channel).to(z.dtype)
                    cross_entropy.append(functional.binary_cross_entropy_with_logits(z[case, channel], truth))
                    p, g = z[case, channel].sigmoid().flatten(1), truth.flatten(1)
                    dice.append((1 - 2 * (p * g).sum(1) / (p.sum(1) + g.sum(1) + 1)).mean())
            if not dice:
                return 0 * z.flatten()[0]
            return torch.stack(cross_entropy).mean() + torch.stack(dice).mean()


class MarginalLoss(nn.Module):
    """Marginal cross-entropy minus a Dice that subclasses define; this one has none.

    Args:
        sets: The dataset's label sets.
    """

    def __init__(self, sets: LabelSets) -> None:
        super().__init__()
        self.sets = sets

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss: mean cross-entropy of the voxels whose set is not everything, minus Dice."""
        with torch.autocast(logits.device.type, enabled=False):
            z = logits.flatten(2).to(torch.promote_types(logits.dtype, torch.float32))
            rows_bv = rows.flatten(1).long()
            allowed = self.sets.member.flatten(0, 1)[rows_bv].transpose(1, 2)
            log_p = z.log_softmax(1)
            informative = ~allowed.all(1)
            log_mass = log_p.masked_fill(~allowed, -torch.inf).logsumexp(1).where(informative, 0)
            cross_entropy = -log_mass.sum() / informative.sum().clamp_min(1)
            return cross_entropy - self.dice(log_p.exp(), allowed, rows_bv)

    def dice(self, p: Tensor, allowed: Tensor, rows: Tensor) -> Tensor:
        """Returns the mean Dice.

        Args:
            p: Probabilities, shape (B, C, V).
            allowed: Label set of every voxel, shape (B, C, V), bool.
            rows: Rows of the table, shape (B, V).
        """
        return p.new_zeros(())


def _mean_class_dice(p: Tensor, truth: Tensor, squared: bool) -> Tensor:
    """Returns Fidon et al.'s mean-class Dice over cases and all channels, background among them."""
    power = 2 if squared else 1
    total = (p**power).sum(2) + (truth**power).sum(2)
    return (2 * (p * truth).sum(2) / (total + 1e-5)).mean()


class LeafDiceLoss(MarginalLoss):
    """With Fidon et al.'s leaf-Dice: only voxels with a single possible structure count as truth.

    Args:
        sets: The dataset's label sets.
        squared: Whether probabilities are squared in the denominator (their default).
    """

    def __init__(self, sets: LabelSets, squared: bool = True) -> None:
        super().__init__(sets)
        self.squared = squared

    def dice(self, p: Tensor, allowed: Tensor, rows: Tensor) -> Tensor:
        """Returns leaf-Dice: probabilities of all voxels against the voxels that are leaves."""
        leaf = allowed & (allowed.sum(1, keepdim=True) == 1)
        return _mean_class_dice(p, leaf.to(p.dtype), self.squared)


class MarginalizedDiceLoss(MarginalLoss):
    """With Fidon et al.'s marginalised Dice: inside a voxel's label set, truth and prediction are spread evenly.

    Args:
        sets: The dataset's label sets.
        squared: Whether probabilities are squared in the denominator (their default).
    """

    def __init__(self, sets: LabelSets, squared: bool = True) -> None:
        super().__init__(sets)
        self.squared = squared

    def dice(self, p: Tensor, allowed: Tensor, rows: Tensor) -> Tensor:
        """Returns the Dice of p' and g', where p'_c = mean of p over the set and g'_c = 1 / its size for c in it."""
        share = allowed.to(p.dtype) / allowed.sum(1, keepdim=True)
        inside = (p * share).sum(1, keepdim=True)
        return _mean_class_dice(torch.where(allowed, inside, p), share, self.squared)


class ExclusiveDiceLoss(MarginalLoss):
    """Our Dice, but only structures that no other id of the scheme may be count as hits for an id.

    Where two ids share structures (a lesion of unknown side between two kidneys), predicting a shared one is neither
    hit nor wrong. For disjoint sets it equals `LabelSetLoss` without batch Dice.

    Args:
        sets: The dataset's label sets.
        smooth: Added to numerator and denominator.
    """

    exclusive: Tensor

    def __init__(self, sets: LabelSets, smooth: float = 1e-5) -> None:
        super().__init__(sets)
        self.smooth = smooth
        stored = ~sets.member.all(2)
        holders = (sets.member & stored[:, :, None]).sum(1, keepdim=True)
        self.register_buffer("exclusive", sets.member & (holders == 1))

    def dice(self, p: Tensor, allowed: Tensor, rows: Tensor) -> Tensor:
        """Returns the mean over cases and decidable ids, one number per case and id."""
        schemes, ids = rows[:, 0] // self.sets.num_ids, rows % self.sets.num_ids
        own = self.exclusive.flatten(0, 1)[rows].transpose(1, 2)
        zero = p.new_zeros(len(p), self.sets.num_ids)
        hit = zero.scatter_add(1, ids, (p * own).sum(1))
        count = zero.scatter_add(1, ids, torch.ones_like(ids, dtype=p.dtype))
        wrong = p.masked_fill(allowed, 0).sum(2)
        false_positive = torch.einsum("btc,bc->bt", self.sets.member[schemes].to(p.dtype), wrong)
        dice = (2 * hit + self.smooth) / (hit + false_positive + count + self.smooth)
        weight = self.sets.decidable[schemes].to(p.dtype)
        return (dice * weight).sum() / weight.sum().clamp_min(1)


class MissingIsBackground(nn.Module):
    """A loss for complete labels on the stored ids; it never learns which structures a source does not annotate.

    Args:
        complete: A loss of logits (B, C, X, Y, Z) and ids (B, 1, X, Y, Z), such as nnU-Net's Dice and cross-entropy.
        num_ids: Number of stored ids a scheme can have.
    """

    def __init__(self, complete: nn.Module, num_ids: int) -> None:
        super().__init__()
        self.complete, self.num_ids = complete, num_ids

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss for complete labels."""
        loss: Tensor = self.complete(logits, rows % self.num_ids)
        return loss
