"""What our trainers read from the plans, under the key "nnunet_pretrain".

nnU-Net's trainers take no arguments, so a run's settings live in its plans; nnU-Net stores them with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nnunet_pretrain.validation import validated

SETTINGS_KEY = "nnunet_pretrain"
PRETRAIN_PLANS = "nnUNetPretrainPlans"
DOMAIN_PLANS = "nnUNetDomainPlans"
VDT_PLANS = "nnUNetVDTPlans"
TRANSFER_PLANS = "nnUNetTransferPlans"


def transfer_plans_names(name: str) -> tuple[str, str]:
    """Returns the names of a transfer's plans and of its control's, from the name the user chose for the transfer."""
    return f"{TRANSFER_PLANS}_{name}", f"{TRANSFER_PLANS}_{name}__scratch"


class TrainingSettings(BaseModel):
    """How to train. The defaults are nnU-Net's own numbers; patch and batch stand in the plans' configurations.

    Attributes:
        optimizer: SGD or AdamW.
        initial_lr: Learning rate after warm-up.
        momentum: Momentum of SGD.
        nesterov: Whether that is Nesterov's.
        weight_decay: Weight decay of the optimiser.
        schedule: Decay after the warm-up: nnU-Net's polynomial, or a half cosine to 0.
        warmup_epochs: Epochs of linear warm-up before the decay.
        num_epochs: Epochs in all.
        num_iterations_per_epoch: Training steps per epoch.
        num_val_iterations_per_epoch: Validation batches per epoch (pseudo-Dice).
        save_every: Epochs between two writes of checkpoint_latest.
        deep_supervision: Whether the loss also sees the decoder's coarser outputs; off for networks without them.
        weight_ce: Weight of the (marginal) cross-entropy.
        weight_dice: Weight of the Dice term.
        oversample_foreground_percent: Share of patches centred on foreground.
        probabilistic_oversampling: Whether each patch is centred on foreground with that probability, instead of a
            fixed number of patches of each batch.
        sampling_alpha: A case of a source with n cases is drawn with probability proportional to n ** -sampling_alpha;
            0 draws all cases alike, 1 all sources alike (merged datasets only).
        balance_structures: Whether a foreground patch is centred on rarely annotated structures more often than on
            common ones of the same case (merged datasets only).
        mirror_axes: Axes of the patch to mirror in training and inference; None means nnU-Net's axes except
            left-right where the label names distinguish left from right.
        left_right_mirroring: `off`, or `swap` to mirror along left-right in training too, with the ids of left and
            right structures swapped; never in inference, where nnU-Net cannot swap (merged datasets only).
        seed: Seed of the initial weights and of what the main process draws, or None.
        val_share: Share of each source held out for validation when a merged dataset is trained with fold `all`;
            at least one case of every source that has more than one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["SGD", "AdamW"] = "SGD"
    initial_lr: float = Field(default=1e-2, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=3e-5, ge=0)
    schedule: Literal["poly", "cosine"] = "poly"
    warmup_epochs: int = Field(default=0, ge=0)
    num_epochs: int = Field(default=1000, ge=1)
    num_iterations_per_epoch: int = Field(default=250, ge=1)
    num_val_iterations_per_epoch: int = Field(default=50, ge=1)
    save_every: int = Field(default=50, ge=1)
    deep_supervision: bool = True
    weight_ce: float = Field(default=1.0, ge=0)
    weight_dice: float = Field(default=1.0, ge=0)
    oversample_foreground_percent: float = Field(default=0.33, ge=0, le=1)
    probabilistic_oversampling: bool = False
    sampling_alpha: float = Field(default=0.5, ge=0, le=1)
    balance_structures: bool = True
    mirror_axes: tuple[Literal[0, 1, 2], ...] | None = None
    left_right_mirroring: Literal["off", "swap"] = "off"
    seed: int | None = None
    val_share: float = Field(default=0.02, ge=0, lt=1)


class FineTuning(BaseModel):
    """How a transferred network is trained differently from a new one; the control from scratch leaves all of it out.

    The factors multiply the schedule's learning rate and hold over the whole run. By default nothing is frozen and all
    layers learn alike: in the ablation of benchmarks/RESULTS.md a phase of the heads alone and layer-wise decay made no
    difference beyond the spread over seeds.

    Attributes:
        heads_only_epochs: Epochs at the start in which only the heads learn; everything else is frozen.
        freeze_encoder: Whether the encoder never learns.
        encoder_lr_factor: Factor for the encoder.
        decoder_lr_factor: Factor for the decoder.
        heads_lr_factor: Factor for the heads.
        layer_decay: Factor per layer, counted from the heads down to the stem; 1 treats all layers alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads_only_epochs: int = Field(default=0, ge=0)
    freeze_encoder: bool = False
    encoder_lr_factor: float = Field(default=1.0, gt=0)
    decoder_lr_factor: float = Field(default=1.0, gt=0)
    heads_lr_factor: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)


class TransferSettings(BaseModel):
    """Where a transfer starts from, and what it takes.

    Attributes:
        checkpoint: Path of the pre-trained checkpoint, or None for the control from scratch.
        sha256: Checksum of that file when the transfer was planned.
        branch: Domain whose branch is taken with the encoder, from a checkpoint of many branches; None takes the
            encoder alone from such a checkpoint, and means nothing for others.
        parts: `all`, or `encoder` to leave decoder and heads to the seed.
        heads: Output of the target to the pre-trained structures whose rows it starts from; an output that is not
            named, or has none, is initialised.
        allow_partial: Whether to go on when a part gets less than `min_loaded_share`.
        allow_width: Whether layers of another width take the channels both have.
        min_loaded_share: Smallest share of encoder and of decoder: of the target's values that come from the
            checkpoint, or of the checkpoint's values that found a place, whichever is larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str | None = None
    sha256: str | None = None
    branch: str | None = None
    parts: Literal["all", "encoder"] = "all"
    heads: dict[str, tuple[str, ...]] = {}
    allow_partial: bool = False
    allow_width: bool = False
    min_loaded_share: float = Field(default=0.9, gt=0, le=1)


class DomainNumbers(BaseModel):
    """What a domain keeps of its own in plans that share network, patch and batch.

    Attributes:
        spacing: Voxel spacing in mm, in the plans' axis order.
        normalization_schemes: nnU-Net's normalisation of each channel.
        use_mask_for_norm: Whether a channel is normalised inside the nonzero region only.
        foreground_intensity_properties_per_channel: Channel to the numbers nnU-Net's CT normalisation uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing: tuple[float, float, float]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]


class DomainSettings(BaseModel):
    """How many domains share an encoder; only in plans of `plan_domains`.

    Attributes:
        batches: `domain` draws every batch from one domain, `mixed` from all of them.
        clip_percentiles: Percentiles of each image to which its intensities were clipped before the training, or None;
            images to predict on must be clipped alike (`nnunet_pretrain clip`).
        numbers: Domain to what it keeps of its own, in the order of the branches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: Literal["domain", "mixed"] = "domain"
    clip_percentiles: tuple[float, float] | None = None
    numbers: dict[str, DomainNumbers] = Field(min_length=1)


class ClassificationSettings(BaseModel):
    """How examples of a target are classified; only in plans of `plan_classification`.

    Attributes:
        classes: Names of the classes, in the order of the network's outputs.
        crop: `lesion` shows the network the patch around a lesion, at the plans' spacing; `image` the whole image,
            resampled to the patch.
        lesions: Labels of dataset.json that lesions were cropped around; empty for whole images.
        components: Whether examples are single connected components of such a label.
        balance: An example of a class with n of them is drawn with probability proportional to n ** -balance;
            1 draws all classes alike, 0 all examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(min_length=2)
    crop: Literal["lesion", "image"]
    lesions: tuple[str, ...] = ()
    components: bool = False
    balance: float = Field(default=1.0, ge=0, le=1)


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("expected [smallest, largest] with 0 < smallest <= largest")
    return bounds


def _shares(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("expected shares of the image's area, at most 1")
    return bounds


Ratios = Annotated[tuple[float, float], AfterValidator(_rising)]
"""Smallest and largest ratio."""
Shares = Annotated[tuple[float, float], AfterValidator(_rising), AfterValidator(_shares)]
"""Smallest and largest share of an area."""


class NaturalImageSettings(BaseModel):
    """How a 3D network learns from 2D natural images; only in plans of `plan_2d`.

    Attributes:
        task: What the images' labels are: classes of images, or masks.
        storage: `volumes` are preprocessed nnU-Net cases; `originals` are read where they lie, at training time.
        slices: `rgb` makes an image's red, green and blue the three slices; `grey` repeats its luminance, a control
            without any variation along depth.
        shuffle_depth: Whether the slices of every sample are put into random order.
        label_smoothing: Of the cross-entropy (classification).
        crop_area: Smallest and largest share of an image's area that a training crop shows (classification).
        crop_ratio: Smallest and largest ratio of its width to its height (classification).
        target: Dataset, plans and configuration of the 3D target the network was taken from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["classification", "segmentation"]
    storage: Literal["volumes", "originals"]
    slices: Literal["rgb", "grey"] = "rgb"
    shuffle_depth: bool = True
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    crop_area: Shares = (0.08, 1.0)
    crop_ratio: Ratios = (3 / 4, 4 / 3)
    target: tuple[str, str, str]


class Fold(BaseModel):
    """Training and validation cases of one fold.

    Attributes:
        train: Cases to train on.
        val: Cases held out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...] = Field(min_length=1)
    val: tuple[str, ...]


class PretrainSettings(BaseModel):
    """Everything under the plans' key "nnunet_pretrain".

    Attributes:
        preset: Preset the plans were made with.
        training: How to train.
        fine_tuning: How a transferred network is trained differently.
        transfer: Where to start from; only in transfer plans.
        domains: What the domains keep of their own; only in plans of `plan_domains`.
        classification: What is classified; only in plans of `plan_classification`, and of `plan_2d` for classes.
        natural_images: How 2D images are shown to a 3D network; only in plans of `plan_2d`.
        folds: Folds that replace those of splits_final.json for these plans only, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "default"
    training: TrainingSettings = TrainingSettings()
    fine_tuning: FineTuning = FineTuning()
    transfer: TransferSettings | None = None
    domains: DomainSettings | None = None
    classification: ClassificationSettings | None = None
    natural_images: NaturalImageSettings | None = None
    folds: tuple[Fold, ...] | None = None

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> PretrainSettings:
        """Reads and checks the settings of plans.

        Raises:
            ValueError: The plans have no such key, or an entry is wrong.
        """
        where = f"plans '{plans.get('plans_name')}', key '{SETTINGS_KEY}'"
        if SETTINGS_KEY not in plans:
            raise ValueError(f"{where} is missing; make the plans with `nnunet_pretrain plan` or `plan_transfer`")
        return validated(cls, plans[SETTINGS_KEY], where)
