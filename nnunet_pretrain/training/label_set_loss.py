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

Nothing of the size of the logits is kept for the backward pass: both passes look the label sets up again, and take
probabilities anew from the logits and two log-sum-exps a voxel. Inside a label set the log-sum-exp is taken over the
set itself, so that a voxel whose whole set has underflown still has the right gradient.

Shapes: B batch, C channels (background and structures), T stored ids, G groups, V voxels, X Y Z spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_pretrain.training.label_sets import LabelSets

# Added to the logit of a structure that is not allowed when the largest one of a label set is sought.
FORBIDDEN = -1e30
# Lowest argument of an exponential beside one of 0. CPUs are slow where exp underflows, and exp(-80) counts as nothing.
LOWEST = -80.0
# Logits worked on at once outside torch.compile: what fits a CPU's cache, and what keeps a GPU busy.
CHUNK = {"cpu": 2**19, "cuda": 2**26}

Dense = Callable[..., Any]


def dense_forward(z_BCV: Tensor, ids_BV: Tensor, outside_BCT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps and the probability that is wrong; works on any part of the voxels.

    Args:
        z_BCV: Logits.
        ids_BV: Stored ids.
        outside_BCT: `LabelSets.outside` of each sample's scheme.

    Returns:
        The log-sum-exp over all channels (B, V), that over each voxel's label set (B, V), and per structure the
        probability on voxels whose label set does not hold it (B, C).
    """
    outside = outside_BCT.gather(2, ids_BV[:, None].expand(-1, z_BCV.shape[1], -1))
    top_set = torch.add(z_BCV, outside, alpha=FORBIDDEN).amax(1)
    top = z_BCV.amax(1)
    e = _exponential(z_BCV, outside, top_set, top)
    e_outside = outside.mul_(e)
    log_set = e.sub_(e_outside).sum(1).log_().add_(top_set)
    log_all = torch.logaddexp(log_set, e_outside.sum(1).log_().add_(top))
    return log_all, log_set, _product_sum(e_outside, top.sub_(log_all).exp_()[:, None], 2)


def dense_backward(
    z_BCV: Tensor,
    ids_BV: Tensor,
    outside_BCT: Tensor,
    log_all_BV: Tensor,
    log_set_BV: Tensor,
    grad_mass_BV: Tensor,
    grad_wrong_BC: Tensor,
) -> Tensor:
    """Gradient with respect to the logits, shape (B, C, V); works on any part of the voxels.

    Args:
        z_BCV: Logits.
        ids_BV: Stored ids.
        outside_BCT: `LabelSets.outside` of each sample's scheme.
        log_all_BV: Log-sum-exp over all channels.
        log_set_BV: Log-sum-exp over each voxel's label set.
        grad_mass_BV: Gradient with respect to log sum_{s in S} p_s.
        grad_wrong_BC: Gradient with respect to the wrong probability of each structure.
    """
    outside = outside_BCT.gather(2, ids_BV[:, None].expand(-1, z_BCV.shape[1], -1))
    # Inside the set p_s / sum_S p, outside p_s: neither underflows before it stops to matter.
    e = _exponential(z_BCV, outside, log_set_BV, log_all_BV)
    common = _product_sum(e * outside, grad_wrong_BC[:, :, None], 1).add_(grad_mass_BV)
    within = grad_mass_BV - (log_set_BV - log_all_BV).exp_().mul_(common)
    factor = torch.sub(grad_wrong_BC[:, :, None], common.add_(within)[:, None]).mul_(outside).add_(within[:, None])
    return e.mul_(factor)


def _exponential(z_BCV: Tensor, outside_BCV: Tensor, shift_set_BV: Tensor, shift_BV: Tensor) -> Tensor:
    """exp(z - shift), with a shift of its own for the structures in the voxel's label set."""
    shift = torch.addcmul(shift_set_BV[:, None], outside_BCV, (shift_BV - shift_set_BV)[:, None])
    return torch.sub(z_BCV, shift).clamp_min_(LOWEST).exp_()


def _product_sum(a_BCV: Tensor, b: Tensor, axis: int) -> Tensor:
    """Sums a * b over channels (axis 1, b of shape (B, C, 1)) or voxels (axis 2, b of shape (B, 1, V))."""
    if torch.compiler.is_compiling():  # becomes part of a kernel, where a matrix product would need `a` in memory
        return (a_BCV * b).sum(axis)
    return (a_BCV @ b.mT)[:, :, 0] if axis == 2 else (b.mT @ a_BCV)[:, 0]


@cache
def compiled(function: Dense) -> Dense:
    """Returns the function compiled into few kernels that hold nothing of the logits' size in memory."""
    return torch.compile(function, dynamic=False)


def _parts(logits_BCV: Tensor, whole: bool) -> Iterator[tuple[slice, slice]]:
    """Cuts batch and voxels into parts whose temporaries stay small."""
    batch, channels, voxels = logits_BCV.shape
    if whole:
        yield slice(None), slice(None)
        return
    step = max(1, CHUNK.get(logits_BCV.device.type, CHUNK["cuda"]) // channels)
    for sample in range(batch):
        for start in range(0, voxels, step):
            yield slice(sample, sample + 1), slice(start, start + step)


class LabelSetSums(torch.autograd.Function):
    """What the loss is made of, summed over each sample's voxels."""

    @staticmethod
    def forward(
        ctx: Any, logits_BCV: Tensor, ids_BV: Tensor, outside_BCT: Tensor, informative_BT: Tensor, compile_it: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the sums.

        Args:
            ctx: What autograd keeps.
            logits_BCV: Logits of any floating type.
            ids_BV: Stored ids.
            outside_BCT: `LabelSets.outside` of each sample's scheme.
            informative_BT: Whether a stored id's label set leaves anything out.
            compile_it: Whether to use compiled kernels.

        Returns:
            Marginal cross-entropy (B,), hit probability of each stored id (B, T), wrong probability of each structure
            (B, C); in single precision, or double for logits in double.
        """
        dtype = torch.promote_types(logits_BCV.dtype, torch.float32)
        outside = outside_BCT.to(dtype)
        log_all = torch.empty(ids_BV.shape, dtype=dtype, device=logits_BCV.device)
        log_set = torch.empty_like(log_all)
        wrong = log_all.new_zeros(logits_BCV.shape[:2])
        dense = compiled(dense_forward) if compile_it else dense_forward
        for b, v in _parts(logits_BCV, compile_it):
            part = dense(logits_BCV[b, :, v].to(dtype), ids_BV[b, v], outside[b])
            log_all[b, v], log_set[b, v] = part[:2]
            wrong[b] += part[2]
        informative = informative_BT.gather(1, ids_BV)
        mass = log_set - log_all
        cross_entropy = -mass.where(informative, 0).sum(1)
        hit = log_all.new_zeros(informative_BT.shape).scatter_add_(1, ids_BV, mass.exp_())
        ctx.save_for_backward(logits_BCV, ids_BV, outside, log_all, log_set, informative)
        ctx.compile_it = compile_it
        return cross_entropy, hit, wrong

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradient with respect to the logits, in their own type."""
        grad_cross_entropy, grad_hit, grad_wrong = gradients
        logits, ids, outside, log_all, log_set, informative = ctx.saved_tensors
        grad_mass = grad_hit.gather(1, ids) * (log_set - log_all).exp_()
        grad_mass -= grad_cross_entropy[:, None] * informative
        grad = torch.empty_like(logits)
        dense = compiled(dense_backward) if ctx.compile_it else dense_backward
        for b, v in _parts(logits, ctx.compile_it):
            z = logits[b, :, v].to(log_all.dtype)
            grad[b, :, v] = dense(
                z, ids[b, v], outside[b], log_all[b, v], log_set[b, v], grad_mass[b, v], grad_wrong[b]
            )
        return grad, None, None, None, None


def _normaliser(number: Tensor, ddp: bool) -> Tensor:
    """Returns what to divide a sum by; over several processes, so that their mean gradient is the whole batch's."""
    if not ddp:
        return number.clamp_min(1)
    number = number.clone()
    torch.distributed.all_reduce(number)
    return number.clamp_min(1) / torch.distributed.get_world_size()


class LabelSetLoss(nn.Module):
    """Marginal cross-entropy plus soft Dice of the decidable groups.

    Args:
        sets: The dataset's label sets.
        batch_dice: Whether Dice is computed over the batch, per group, instead of per sample and id.
        ddp: Whether sums and normalisers are those of all processes, so that the processes' mean gradient is that of
            one process with the whole batch.
        weight_ce: Weight of the cross-entropy.
        weight_dice: Weight of the Dice term.
        smooth: Added to numerator and denominator of the Dice, as in nnU-Net.
        compile_it: Whether to use torch.compile for the voxel-wise part.
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
        compile_it: bool = False,
    ) -> None:
        super().__init__()
        self.sets, self.batch_dice, self.ddp, self.compile_it = sets, batch_dice, ddp, compile_it
        self.weight_ce, self.weight_dice, self.smooth = weight_ce, weight_dice, smooth

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: Network output, shape (B, C, X, Y, Z).
            rows: Encoded target (`LabelSets.encode`), shape (B, 1, X, Y, Z).

        Returns:
            A scalar: weighted cross-entropy minus weighted Dice, in [-weight_dice, infinity).
        """
        sets = self.sets
        with torch.autocast(logits.device.type, enabled=False):
            ids, schemes = sets.decode(rows.flatten(1).long())
            informative, outside = sets.informative[schemes], sets.outside[schemes]
            z = logits.flatten(2)
            cross_entropy, hit, wrong = LabelSetSums.apply(z, ids, outside, informative, self.compile_it)
            count = torch.zeros_like(hit).scatter_add_(1, ids, hit.new_ones(()).expand_as(ids))
            loss = self.weight_ce * cross_entropy.sum() / _normaliser((count * informative).sum(), self.ddp)
            if self.weight_dice:
                false_positive = torch.einsum("btc,bc->bt", sets.member[schemes].to(wrong.dtype), wrong)
                loss = loss - self.weight_dice * self._mean_dice(hit, false_positive, count, schemes)
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
        return (dice * weight).sum() / _normaliser(weight.sum(), self.ddp and not self.batch_dice)
