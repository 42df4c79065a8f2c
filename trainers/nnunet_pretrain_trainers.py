"""The trainers users name with -tr. Each one only says which parts it combines; numbers come from the plans."""

from nnunet_pretrain.checkpoints.described import DescribedCheckpoints
from nnunet_pretrain.classification.image_classes import ImageClassCheckpoints, ImageClassSupervision
from nnunet_pretrain.classification.supervision import ClassificationCheckpoints, ClassificationSupervision
from nnunet_pretrain.training.distributed import DistributedTraining
from nnunet_pretrain.training.domain_batches import DomainBatches
from nnunet_pretrain.training.domain_supervision import DomainSupervision
from nnunet_pretrain.training.label_set_training import LabelSetSupervision
from nnunet_pretrain.training.natural_images import NaturalImageTraining
from nnunet_pretrain.training.planned_training import PlannedTraining
from nnunet_pretrain.training.progress_by_domain import ProgressByDomain
from nnunet_pretrain.training.progress_by_source import ProgressBySource
from nnunet_pretrain.training.sampling import BalancedSampling
from nnunet_pretrain.transfer.fine_tuning import FineTunedTraining
from nnunet_pretrain.transfer.transferred_weights import TransferredWeights


class nnUNetTrainerPretrain(
    ProgressBySource,
    DescribedCheckpoints,
    BalancedSampling,
    LabelSetSupervision,
    DistributedTraining,
    PlannedTraining,
):
    """Supervised pre-training on a merged, partially labelled dataset (`nnunet_pretrain merge` and `plan`)."""


class nnUNetTrainerDomains(
    ProgressByDomain,
    DomainBatches,
    DescribedCheckpoints,
    BalancedSampling,
    DomainSupervision,
    DistributedTraining,
    PlannedTraining,
):
    """One shared encoder and one branch per domain, Med3D's pre-training (`nnunet_pretrain plan_domains`)."""


class nnUNetTrainerTransfer(
    DescribedCheckpoints, TransferredWeights, DistributedTraining, FineTunedTraining, PlannedTraining
):
    """Training on a target dataset from a pre-trained checkpoint (`nnunet_pretrain plan_transfer`)."""


class nnUNetTrainerClassification(
    ClassificationCheckpoints,
    TransferredWeights,
    ClassificationSupervision,
    DistributedTraining,
    FineTunedTraining,
    PlannedTraining,
):
    """Classifying images or lesions by a pre-trained encoder (`nnunet_pretrain plan_classification`)."""


class nnUNetTrainerVDTClassification(
    ImageClassCheckpoints, ImageClassSupervision, DistributedTraining, PlannedTraining
):
    """Pre-training a 3D encoder on classes of photographs, VDT's pretext (`nnunet_pretrain plan_2d`)."""


class nnUNetTrainerVDTSegmentation(DescribedCheckpoints, NaturalImageTraining, DistributedTraining, PlannedTraining):
    """Pre-training a 3D network on masks of photographs (`nnunet_pretrain plan_2d`)."""
