"""What a user asks of a transfer, and what follows from the checkpoint where he did not say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.checkpoints.branches import branch_names, chosen_branch, is_encoder_of_many
from nnunet_pretrain.checkpoints.classifiers import is_classifier
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.planning.existing_plans import ExistingPlans, find_plans

Keep = Literal["pretrained", "target"]
Report = Callable[[str], None]


@dataclass(frozen=True)
class PlanOptions:
    """What the user asks of a transfer.

    Attributes:
        dataset: Id or name of the target, in nnU-Net raw format.
        checkpoint: Checkpoint of the pre-training, of any origin `inspect` reads.
        name: Name of the transfer; None takes the pre-training's dataset.
        keep: Whose spacing, patch and normalisation the plans take. None means the checkpoint's, but the target's for
            one that was trained on natural images, for the encoder alone of one of many branches (each domain has
            numbers of its own), or where `target_plans` are named.
        preset: Preset for the training on the target; None means the one of the pre-training, or default.
        branch: Domain whose branch is taken with the encoder, from a checkpoint of many branches: its name, or the
            number of its dataset. None takes the encoder alone from such a checkpoint.
        parts: `all`, or `encoder` to transfer only that.
        heads: Outputs of the target whose pre-trained structures the user names himself.
        allow_partial: Whether to go on when a part of the network gets little.
        allow_width: Whether layers of another width take the channels both have.
        gpu_memory_gb: Memory to fit the batch to; None means as much as the pre-training took.
        exclude_leaked: Whether cases of the pre-training are kept out of every validation.
        weights: File to write the transferred network to, for stock nnU-Net's `-pretrained_weights`; None writes none.
        num_processes: Worker processes for reading the target.
        target_plans: Plans of the target to take instead of planning it (`planning.existing_plans.find_plans`). None
            takes those whose network a checkpoint of natural images was made with, if they are the target's.
    """

    dataset: int | str
    checkpoint: Path
    name: str | None = None
    keep: Keep | None = None
    preset: str | None = None
    branch: str | None = None
    parts: Literal["all", "encoder"] = "all"
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allow_partial: bool = False
    allow_width: bool = False
    gpu_memory_gb: float | None = None
    exclude_leaked: bool = False
    weights: Path | None = None
    num_processes: int = 2
    target_plans: str | Path | None = None


def kept(options: PlanOptions, checkpoint: Mapping[str, Any]) -> Keep:
    """Returns whose spacing, patch and normalisation the plans take.

    Raises:
        ValueError: The checkpoint's were asked for, and they are those of photographs, or the target's plans are named.
    """
    natural = natural_images_of(checkpoint) is not None
    if options.keep == "pretrained" and natural:
        raise ValueError(
            "--keep pretrained: the checkpoint was trained on natural images, its spacing, patch and intensities are "
            "those of photographs; plan with --keep target"
        )
    if options.keep == "pretrained" and options.target_plans is not None:
        raise ValueError("--keep pretrained takes the checkpoint's plan, --target-plans the target's; leave one out")
    own = natural or is_encoder_of_many(checkpoint, options.branch) or options.target_plans is not None
    return options.keep or ("target" if own else "pretrained")


def completed(options: PlanOptions, checkpoint: Mapping[str, Any], report: Report) -> PlanOptions:
    """Returns the options with the part and the branch that a checkpoint can give.

    Args:
        options: What the user asks for.
        checkpoint: The whole checkpoint.
        report: Called with a line for what the user did not ask for.

    Raises:
        ValueError: There is no such branch, or heads were asked for where there are none.
    """
    if options.branch is not None:
        return replace(options, branch=chosen_branch(checkpoint, options.branch))
    names = branch_names(checkpoint)
    if names:
        if options.heads:
            raise ValueError(f"heads belong to a branch; choose one with --branch: {', '.join(names)}")
        numbers = names[0] if kept(options, checkpoint) == "pretrained" else "the target"
        also = f", with spacing and intensities of {numbers}"
        report(f"note: only the shared encoder is taken{also}; --branch takes one of {', '.join(names)} with it")
        return replace(options, parts="encoder")
    if not is_classifier(checkpoint) or options.parts == "encoder":
        return options
    if options.heads:
        raise ValueError("the checkpoint classifies whole images or lesions: it has no heads for --head")
    report("note: the checkpoint classifies: only its encoder is taken, decoder and heads start from the seed")
    return replace(options, parts="encoder")


def existing_target_plans(
    options: PlanOptions, name: str, checkpoint: Mapping[str, Any], report: Report
) -> ExistingPlans | None:
    """Returns the plans of the target that a transfer takes over, None if the target is to be planned.

    Args:
        options: What the user asks for.
        name: The target.
        checkpoint: The checkpoint.
        report: Called with a line where the user named no plans.

    Raises:
        FileNotFoundError: The plans the user named are missing.
        ValueError: They are unusable, or another dataset's.
    """
    natural = natural_images_of(checkpoint)
    if options.target_plans is not None:
        own = checkpoint["init_args"]["configuration"]
        found = find_plans(options.target_plans, own if natural is None else natural.target[2])
        if found.identity[0] != name:
            raise ValueError(f"--target-plans are {found}, but the target is {name}; name plans of {name}")
        return found
    if natural is None or natural.target[0] != name:
        return None
    dataset, plans, configuration = natural.target
    path = nnunet_folder("nnUNet_preprocessed") / dataset / f"{plans}.json"
    if not path.is_file():
        report(f"note: {path}, whose network the checkpoint has, is not there; the target is planned anew")
        return None
    found = find_plans(path, configuration)
    report(f"note: the target is planned as {found}, whose network the checkpoint has; --target-plans names others")
    return found
