"""Training steps with and without branches, side by side: the part of `domains.py` that `--study speed` runs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_pretrain.planning.domain_network import branched
from nnunet_pretrain.planning.domain_plans import CONFIGURATION, plans_of_domain
from nnunet_pretrain.planning.settings import (
    DOMAIN_PLANS,
    SETTINGS_KEY,
    DomainNumbers,
    DomainSettings,
    PretrainSettings,
)
from nnunet_pretrain.study.tables import table

STOCK, LABEL_SETS = "stock nnU-Net", "stock network, label-set loss"
BRANCHES, LABELS, BATCH = (3, 8), 6, 2
PAIRS = (*((n, STOCK) for n in BRANCHES), (LABEL_SETS, STOCK), *((n, LABEL_SETS) for n in BRANCHES))
_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


class Steps:
    """Training steps of a trainer on made-up batches; a network with branches takes them in turns.

    Args:
        trainer: An initialised trainer.
        batches: One batch per domain, as nnU-Net's loader makes them.
    """

    def __init__(self, trainer: Any, batches: Sequence[dict[str, Any]]) -> None:
        self.trainer, self.batches, self.done = trainer, batches, 0
        trainer.on_train_epoch_start()

    def __call__(self) -> None:
        """Does one step; on a GPU, until it is over."""
        self.trainer.train_step(self.batches[self.done % len(self.batches)])
        self.done += 1
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> None:
        """Does one step on every branch, and two more."""
        for _ in range(len(self.batches) + 2):
            self()

    def bytes(self) -> dict[str, int]:
        """Returns what is held after a step on every branch, and the peak beyond it during a step."""
        self.warm_up()
        parameters = list(self.trainer.network.parameters())
        state = [value for entry in self.trainer.optimizer.state.values() for value in entry.values()]
        held = {
            "weights": _bytes(parameters),
            "momentum": _bytes([value for value in state if torch.is_tensor(value)]),
            "gradients": _bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        }
        return {**held, "peak": peak_bytes(self)}


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(steps: Steps) -> int:
    """Returns the most bytes of tensors a step holds beyond those before it, gradients not being among them."""
    for _ in range(2):  # a first profile misses what was allocated before it
        steps.trainer.optimizer.zero_grad(set_to_none=True)
        if steps.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            steps()
            peak = torch.cuda.max_memory_allocated() - before
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            steps()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def made_up(
    branches: int, patch: tuple[int, int, int], features: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns plans and dataset.json of domains that are alike, one case each; the network is nnU-Net's U-Net."""
    stages, domains = len(features), [f"domain{i}" for i in range(branches)]
    kwargs = {
        "n_stages": stages, "features_per_stage": list(features), "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages, "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    unet = {
        "network_class_name": _UNET,
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    numbers = DomainNumbers(
        spacing=(1, 1, 1),
        normalization_schemes=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        foreground_intensity_properties_per_channel={},
    )
    settings = PretrainSettings(domains=DomainSettings(numbers=dict.fromkeys(domains, numbers)))
    configuration = {
        "data_identifier": "made_up", "preprocessor_name": "DefaultPreprocessor", "batch_size": BATCH,
        "patch_size": list(patch), "spacing": [1, 1, 1], "batch_dice": False,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "architecture": branched(unet, dict.fromkeys(domains, LABELS + 1), "unet"),
    }  # fmt: skip
    plans = {
        "dataset_name": f"Dataset930_MadeUp{branches}", "plans_name": DOMAIN_PLANS,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "image_reader_writer": "NibabelIOWithReorient",
        "configurations": {CONFIGURATION: configuration},
        SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True),
    }  # fmt: skip
    return plans, made_up_labels(domains)


def made_up_labels(domains: Sequence[str]) -> dict[str, Any]:
    """Returns the dataset.json of domains with as many labels each, all different, and one case each."""
    ids = {d: range(1 + i * LABELS, 1 + (i + 1) * LABELS) for i, d in enumerate(domains)}
    name = {number: f"label{number}" for own in ids.values() for number in own}
    return {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, **{label: number for number, label in name.items()}},
        "label_space": "domains",
        "label_schemes": {
            d: {
                "0": ["background", *(name[number] for number in name if number not in own)],
                **{str(number): [name[number]] for number in own},
            }
            for d, own in ids.items()
        },
        "dataset": {d: {"source": d, "scheme": d} for d in domains},
        "numTraining": len(domains),
        "file_ending": ".nii.gz",
    }


def steps_of(work: Path, arm: str | int, patch: tuple[int, int, int], features: tuple[int, ...], device: str) -> Steps:
    """Returns the steps of an arm: STOCK, LABEL_SETS, or a number of branches."""
    from nnunet_pretrain.trainers.nnunet_pretrain_trainers import nnUNetTrainerDomains, nnUNetTrainerPretrain
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    branches = arm if isinstance(arm, int) else 1
    plans, dataset_json = made_up(branches, patch, features)
    if arm in (STOCK, LABEL_SETS):
        plans = plans_of_domain(plans, "domain0")
    # nnU-Net looks at the endings of the preprocessed files when it is initialised.
    data = work / "nnUNet_preprocessed" / plans["dataset_name"] / "made_up" / "none.b2nd"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.touch()
    kinds = {STOCK: nnUNetTrainer, LABEL_SETS: nnUNetTrainerPretrain}
    plans["continue_training"] = False  # as nnU-Net's command does
    trainer = kinds.get(arm, nnUNetTrainerDomains)(plans, CONFIGURATION, 0, dataset_json, torch.device(device))
    torch.manual_seed(0)
    trainer.initialize()
    scales = trainer._get_deep_supervision_scales()
    return Steps(trainer, [batch_of(i, patch, scales) for i in range(branches)])


def batch_of(domain: int, patch: tuple[int, int, int], scales: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns a batch of a domain: noise, and slabs of its labels with background between."""
    slabs = torch.arange(patch[0]) * (2 * LABELS + 1) // patch[0]
    ids = torch.where(slabs % 2 == 1, slabs // 2 + 1 + domain * LABELS, 0).to(torch.int16)
    full = ids[None, None, :, None, None].expand(BATCH, 1, *patch)
    targets = [full[:, :, :: round(1 / z), :: round(1 / y), :: round(1 / x)].contiguous() for z, y, x in scales]
    noise = torch.randn(BATCH, 1, *patch, generator=torch.Generator().manual_seed(0))
    return {"data": noise, "target": targets, "keys": [f"domain{domain}"] * BATCH}


Times = tuple[float, float]
"""Milliseconds on the wall clock and of CPU time."""


def paired_ms(one: Callable[[], None], other: Callable[[], None], pairs: int) -> list[tuple[Times, Times]]:
    """Returns the times of two steps that alternate; which is the first of a pair changes with every pair."""
    times = []
    for number in range(pairs):
        taken: dict[int, Times] = {}
        for place in (0, 1) if number % 2 else (1, 0):
            wall, cpu = time.perf_counter(), time.process_time()
            (one, other)[place]()
            taken[place] = ((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
        times.append((taken[0], taken[1]))
    return times


def speed(work: Path, sizes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], pairs: int, device: str) -> None:
    """Prints step times and memory.

    Args:
        work: Folder the trainers write to.
        sizes: Patch, and features of each stage.
        pairs: Pairs of steps per comparison.
        device: cpu or cuda.
    """
    if device == "cuda":
        os.environ["nnUNet_compile"] = "t"  # as stock
    times, memory = [], []
    for patch, features in sizes:
        size = f"{'x'.join(map(str, patch))}, {len(features)} stages"
        arms = {arm: steps_of(work, arm, patch, features, device) for arm in (STOCK, LABEL_SETS, *BRANCHES)}
        for steps in arms.values():
            steps.warm_up()
        times += [[size, *time_row(arms, *pair, pairs)] for pair in PAIRS]
        held = {arm: steps.bytes() for arm, steps in arms.items()}
        memory += memory_rows(held, arms[BRANCHES[0]], size)
    ratios = [f"ratio of {clock} time, median (quartiles)" for clock in ("wall", "CPU")]
    print(table(["patch", "step", "against", "ms, both", *ratios], times), end="\n\n")
    print(table(["patch", "network", "weights, MB", "momentum, MB", "gradients, MB", "peak of a step, MB"], memory))


def time_row(arms: Mapping[str | int, Steps], one: str | int, other: str | int, pairs: int) -> list[str]:
    """Times two arms against each other."""
    times = paired_ms(arms[one], arms[other], pairs)
    walls = [(first[0], second[0]) for first, second in times]
    cells = [" and ".join(f"{statistics.median(column):.1f}" for column in zip(*walls, strict=True))]
    for clock in (0, 1):
        ratios = [first[clock] / second[clock] for first, second in times]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    return [_called(one), _called(other), *cells]


def _called(arm: str | int) -> str:
    return f"domain, {arm} branches" if isinstance(arm, int) else arm


def memory_rows(held: Mapping[str | int, Mapping[str, int]], steps: Steps, size: str) -> list[list[str]]:
    """Returns a row per arm, one with the growth per further branch, and one with the size of a branch."""
    few, many = BRANCHES
    rows = [[size, _called(arm), *(f"{value / 1e6:.3f}" for value in found.values())] for arm, found in held.items()]
    growth = {key: (held[many][key] - held[few][key]) / (many - few) for key in held[few]}
    rows.append([size, "each further branch", *(f"{value / 1e6:.3f}" for value in growth.values())])
    own = _bytes(list(next(iter(steps.trainer.network.branches.values())).parameters()))
    return [*rows, [size, "parameters of a branch", f"{own / 1e6:.3f}", "", "", ""]]
