"""Final validation of a network with branches: each domain as nnU-Net would validate it alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import distributed as dist

from nnunet_pretrain.files import write_json
from nnunet_pretrain.labels.branches import BranchTable
from nnunet_pretrain.planning.domain_plans import dataset_json_of_domain, plans_of_domain
from nnunet_pretrain.training.distributed import is_distributed, rank, unwrapped
from nnunet_pretrain.training.label_set_metrics import evaluate_cases, summary_of

NSD_TOLERANCE_MM = 1.0
MAX_WAITING = 2


def validate_domains(
    trainer: Any, branches: Mapping[str, BranchTable], save_probabilities: bool
) -> dict[str, Any] | None:
    """Predicts the held-out cases of every domain and writes validation/summary.json.

    Predicted label maps have the ids of the domain's own dataset (the channels of its branch). Several processes share
    the cases.

    Args:
        trainer: nnU-Net trainer with a `BranchedNetwork`.
        branches: Domain to the label sets of its branch.
        save_probabilities: Whether to keep the probabilities, as nnU-Net's `--npz`.

    Returns:
        The summary (`evaluate_folder`), over all domains and per domain; None in all processes but the first.
    """
    folder = Path(trainer.output_folder) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    held_out: dict[str, list[str]] = {domain: [] for domain in branches}
    for case in sorted(trainer.do_split()[1]):
        held_out[trainer.source_of_case[case]].append(case)
    step = dist.get_world_size() if is_distributed() else 1
    with ProcessPoolExecutor(default_num_processes, mp_context=get_context("spawn")) as pool:
        for domain, table in branches.items():
            _predict(trainer, domain, table, held_out[domain][rank() :: step], pool, save_probabilities)
    compute_gaussian.cache_clear()
    if is_distributed():
        dist.barrier()
    if rank() != 0:
        return None
    per_case = []
    for domain, table in branches.items():
        per_case += evaluate_cases(
            table,
            held_out[domain],
            Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations",
            folder,
            trainer.dataset_json["file_ending"],
            sources=trainer.source_of_case,
            num_processes=default_num_processes,
            nsd_tolerance_mm=NSD_TOLERANCE_MM,
            progress=f"Evaluating {domain}",
        )
    summary = summary_of(per_case, trainer.scored, NSD_TOLERANCE_MM)
    write_json(folder / "summary.json", summary)
    return summary


def _predict(
    trainer: Any,
    domain: str,
    table: BranchTable,
    cases: list[str],
    pool: ProcessPoolExecutor,
    save_probabilities: bool,
) -> None:
    """Predicts cases of one domain with nnU-Net's predictor; other processes resample and write them."""
    plans = PlansManager(plans_of_domain(trainer.plans_manager.plans, domain))
    configuration = plans.get_configuration(trainer.configuration_name)
    dataset_json = dataset_json_of_domain(trainer.dataset_json, domain, table)
    dataset_json["file_ending"] = trainer.dataset_json["file_ending"]  # as the label maps to compare with
    network: Any = unwrapped(trainer.network)
    network.route = domain
    on_gpu = trainer.device.type == "cuda"
    predictor = nnUNetPredictor(perform_everything_on_device=on_gpu, device=trainer.device, allow_tqdm=False)
    axes = trainer.inference_allowed_mirroring_axes
    predictor.manual_initialization(network, plans, configuration, None, dataset_json, type(trainer).__name__, axes)
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, cases)
    waiting: deque[Future[Any]] = deque()
    for case in cases:
        image, _, _, properties = dataset.load_case(case)
        trainer.print_to_log_file(f"predicting {case}, shape {image.shape}, with branch {domain}")
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:])).cpu()
        target = str(Path(trainer.output_folder) / "validation" / case)
        arguments = (logits, properties, configuration, plans, dataset_json, target, save_probabilities)
        waiting.append(pool.submit(export_prediction_from_logits, *arguments))
        if len(waiting) > MAX_WAITING + default_num_processes:  # logits of whole images are large
            waiting.popleft().result()
    for future in waiting:
        future.result()
