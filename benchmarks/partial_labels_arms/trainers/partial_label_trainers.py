"""Trainers of the arms: all of them nnUNetTrainerPretrain, with another loss on the same batches."""

from __future__ import annotations

import torch
from nnunet_pretrain.trainers.nnunet_pretrain_trainers import nnUNetTrainerPretrain
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from peer_losses import (
    ClipTemplateLoss,
    ExclusiveDiceLoss,
    LeafDiceLoss,
    MarginalizedDiceLoss,
    MarginalLoss,
    MissingIsBackground,
    MultiTalentLoss,
    valid_classes,
)
from torch import nn


class _OtherLoss(nnUNetTrainerPretrain):
    """Swaps the loss; deep supervision stays as it is."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return ours

    def _build_loss(self) -> nn.Module:
        built = super()._build_loss()
        if not isinstance(built, DeepSupervisionWrapper):
            return self._arm_loss(built).to(self.device)
        built.loss = self._arm_loss(built.loss).to(self.device)
        return built


class nnUNetTrainerArmExclusiveHits(_OtherLoss):
    """Our Dice with exclusive hits."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return ExclusiveDiceLoss(self._sets)


class nnUNetTrainerArmLeafDice(_OtherLoss):
    """Leaf-Dice."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return LeafDiceLoss(self._sets)


class nnUNetTrainerArmMarginalizedDice(_OtherLoss):
    """Marginalised Dice."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return MarginalizedDiceLoss(self._sets)


class nnUNetTrainerArmNoDice(_OtherLoss):
    """Marginal cross-entropy alone."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return MarginalLoss(self._sets)


class nnUNetTrainerArmMissingIsBackground(_OtherLoss):
    """nnU-Net's own loss on the stored ids."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        stock = nnUNetTrainer._build_loss(self)
        return MissingIsBackground(getattr(stock, "loss", stock), self.label_sets.num_ids)


class _Sigmoids(_OtherLoss):
    """One sigmoid per class; background's logit is held at 0, so that argmax means "above 0.5, and the largest".

    Classes no case teaches, which these systems would not have, are held far below. The losses have no gradient in
    such channels.
    """

    def initialize(self) -> None:
        super().initialize()
        unused = ~valid_classes(self.label_sets).any(0)
        with torch.no_grad():
            for head in self.network.decoder.seg_layers:
                head.weight[unused] = 0
                head.bias[unused] = -100
                head.bias[0] = 0


class nnUNetTrainerArmSigmoid(_Sigmoids):
    """MultiTalent's loss."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return MultiTalentLoss(self.label_sets)


class nnUNetTrainerArmClip(_Sigmoids):
    """CLIP-Driven's loss."""

    def _arm_loss(self, ours: nn.Module) -> nn.Module:
        return ClipTemplateLoss(self.label_sets)
