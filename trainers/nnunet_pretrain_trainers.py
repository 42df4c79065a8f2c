"""The trainers users name with -tr. Each one only says which parts it combines; numbers come from the plans."""

from nnunet_pretrain.training.label_set_training import LabelSetSupervision
from nnunet_pretrain.training.planned_training import PlannedTraining
from nnunet_pretrain.transfer.transferred_weights import TransferredWeights


class nnUNetTrainerPretrain(LabelSetSupervision, PlannedTraining):
    """Supervised pre-training on a merged, partially labelled dataset (`nnunet_pretrain merge` and `plan`)."""


class nnUNetTrainerTransfer(TransferredWeights, PlannedTraining):
    """Training on a target dataset from a pre-trained checkpoint (`nnunet_pretrain plan_transfer`)."""
