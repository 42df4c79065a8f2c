"""`nnUNetv2_train` on several machines: `torchrun --nnodes N --nproc_per_node G … -m nnunet_pretrain.train 900 …`.

The arguments are those of `nnUNetv2_train`, and so is the training: every process makes nnU-Net's trainer and runs it.
Started without torchrun it is `nnUNetv2_train`, which finds our trainers without `nnUNet_extTrainer`, and which
answers a user error with one line and exit code 2.

nnU-Net's folders must be on a file system that all machines see. The batch size in the plans is that of all processes
together. `torchrun --local-ranks-filter 0` shows the output of one process per machine.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import TRAINER_VARIABLE, leaf, nnunet_folder, trainer_search_path
from nnunet_pretrain.training.distributed import device_of_process

PROGRAM = "nnunet_pretrain.train"
# What a process may wait for another one: in the final validation, for up to 20 large cases on a CPU.
TIMEOUT = timedelta(hours=6)
# What a failed process waits: to leave its group, which with NCCL can wait for processes that are still at work, and
# until the first one that failed has said why, because torchrun ends them all when one ends.
TIME_TO_FAIL = timedelta(seconds=10)
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class _Failed(Exception):  # noqa: N818 - carries an exit code to `main`, the user never sees it
    """This process failed and the user has been told why, by this process or by the first one that failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and runs the final validation.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0 on success, 1 after an unexpected error of one of many processes, 2 after a user error (one line on standard
        error), 130 after an interruption.
    """
    arguments = _parser().parse_args(argv)
    distributed = "RANK" in os.environ
    try:
        _check_arguments(arguments, distributed)
        _prepare_environment(arguments.device, distributed)
        _check_files(arguments)
        if distributed:
            _train_as_one_of_many(arguments)
        else:
            _train_alone(arguments)
    except _Failed as failed:
        return _exit_code(failed.__cause__)
    except (ValueError, FileNotFoundError) as error:
        _tell(error)
        return _exit_code(error)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _exit_code(error: BaseException | None) -> int:
    return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1


def _tell(error: Exception) -> None:
    """Prints one line for a user error, and a traceback for what should not happen."""
    who = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    if _exit_code(error) == 2:
        print(f"{PROGRAM}: {who}error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)  # noqa: T201
    else:
        print(f"{PROGRAM}: {who}unexpected error", file=sys.stderr)  # noqa: T201
        traceback.print_exception(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="nnUNetv2_train for one or many machines; start it with torchrun. Arguments are nnUNetv2_train's.",
    )
    parser.add_argument("dataset", help="dataset name or id")
    parser.add_argument("configuration", help="configuration of the plans, e.g. 3d_fullres")
    parser.add_argument("fold", help="number of the fold, or all")
    parser.add_argument("-tr", default="nnUNetTrainer", help="trainer (default: nnUNetTrainer)")
    parser.add_argument("-p", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="nnU-Net checkpoint to start from")
    parser.add_argument("-num_gpus", type=int, default=1, help="GPUs of this machine; not with torchrun (default: 1)")
    parser.add_argument("--npz", action="store_true", help="save probabilities in the final validation")
    parser.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="only the final validation, of a finished training")
    parser.add_argument("--val_best", action="store_true", help="final validation with checkpoint_best")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="kind of device")
    return parser


def _check_arguments(arguments: argparse.Namespace, distributed: bool) -> None:
    if arguments.fold != "all" and not arguments.fold.isdigit():
        raise ValueError(f"fold must be a number or 'all', got '{arguments.fold}'")
    for one, other in (
        ("--c", "--val"),
        ("--c", "-pretrained_weights"),
        ("--val_best", "--disable_checkpointing"),
    ):
        if getattr(arguments, one.lstrip("-")) and getattr(arguments, other.lstrip("-")):
            raise ValueError(f"{one} and {other} exclude each other; leave one of them out")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("-device is cuda, but PyTorch finds no GPU here; check nvidia-smi, or give -device cpu")
    if not distributed:
        if arguments.num_gpus > 1 and arguments.device != "cuda":
            raise ValueError(
                f"-num_gpus needs -device cuda, got {arguments.device}; start several processes on CPUs with "
                f"torchrun --nproc_per_node {arguments.num_gpus}"
            )
        return
    if missing := [variable for variable in TORCHRUN_VARIABLES if variable not in os.environ]:
        raise ValueError(f"RANK is set, but not {', '.join(missing)}; start with torchrun, or unset RANK")
    if arguments.device == "mps":
        raise ValueError("-device mps has one device; start without torchrun, or give -device cpu")
    if arguments.num_gpus != 1:
        raise ValueError("-num_gpus does not go with torchrun; say --nproc_per_node instead")
    index = device_of_process(torch.device(arguments.device)).index
    if index is not None and index >= torch.cuda.device_count():
        raise ValueError(
            f"process {index} of this machine has no GPU, {torch.cuda.device_count()} are visible; "
            f"start torchrun with --nproc_per_node {torch.cuda.device_count()}"
        )


def _prepare_environment(device: str, distributed: bool) -> None:
    """Sets what nnU-Net reads from the environment when it is imported, and threads as nnU-Net does.

    torchrun starts Python unbuffered: each part of a line is written by itself, and other processes may write between.
    """
    if str(leaf("trainers")) not in os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep):
        os.environ[TRAINER_VARIABLE] = trainer_search_path()
    processes = int(os.environ["LOCAL_WORLD_SIZE"]) if distributed else 1
    if distributed:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
        # nnU-Net computes the final metrics on one machine, with this number of workers for each process of the run.
        machines = max(1, int(os.environ["WORLD_SIZE"]) // processes)
        os.environ.setdefault("nnUNet_def_n_proc", str(max(1, 8 // machines)))
    if device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    elif device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _check_files(arguments: argparse.Namespace) -> None:
    """Finds what is missing before nnU-Net does, which answers with a traceback."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    preprocessed, results = nnunet_folder("nnUNet_preprocessed"), nnunet_folder("nnUNet_results")
    try:
        dataset = maybe_convert_to_dataset_name(arguments.dataset)
        recursive_find_trainer_class_by_name(arguments.tr)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    plans_file = preprocessed / dataset / f"{arguments.p}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(f"plans {plans_file} not found; make them with `nnunet_pretrain plan -d {dataset}`")
    plans = read_json(plans_file)
    if arguments.configuration not in plans["configurations"]:
        raise ValueError(
            f"{plans_file} has no configuration '{arguments.configuration}', only {', '.join(plans['configurations'])}"
        )
    run = f"{arguments.tr}__{plans['plans_name']}__{arguments.configuration}/fold_{arguments.fold}"
    checkpoint = results / dataset / run / "checkpoint_final.pth"
    if arguments.val and not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint} not found; --val needs a finished training, finish it with --c")
    if arguments.pretrained_weights and not Path(arguments.pretrained_weights).is_file():
        raise FileNotFoundError(f"-pretrained_weights: {arguments.pretrained_weights} not found")


def _train_alone(arguments: argparse.Namespace) -> None:
    from nnunetv2.run.run_training import run_training

    run_training(
        arguments.dataset,
        arguments.configuration,
        arguments.fold,
        arguments.tr,
        arguments.p,
        arguments.pretrained_weights,
        arguments.num_gpus,
        arguments.npz,
        arguments.c,
        arguments.val,
        arguments.disable_checkpointing,
        arguments.val_best,
        device=torch.device(arguments.device),
    )


def _train_as_one_of_many(arguments: argparse.Namespace) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from nnunet_pretrain.training.distributed import DistributedTraining

    fold = arguments.fold if arguments.fold == "all" else int(arguments.fold)
    with _process_group(device_of_process(torch.device(arguments.device))):
        trainer = get_trainer_from_args(
            arguments.dataset,
            arguments.configuration,
            fold,
            arguments.tr,
            arguments.p,
            arguments.c,
            torch.device(arguments.device),
        )
        if not isinstance(trainer, DistributedTraining):
            raise ValueError(
                f"trainer {arguments.tr} takes the rank for the number of its GPU; add {DistributedTraining.__name__} "
                f"of {DistributedTraining.__module__} to its bases, or start nnUNetv2_train -num_gpus"
            )
        trainer.disable_checkpointing = arguments.disable_checkpointing
        maybe_load_checkpoint(trainer, arguments.c, arguments.val, arguments.pretrained_weights)
        _check_same_epoch(trainer.current_epoch)
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
        if not arguments.val:
            trainer.run_training()
        dist.barrier()  # checkpoint_best is written by one process and read by all
        if arguments.val_best:
            trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
        trainer.perform_actual_validation(arguments.npz)


def _check_same_epoch(epoch: int) -> None:
    """Raises ValueError if the processes did not all find the same checkpoint, or did not all find one."""
    epochs = [0] * dist.get_world_size()
    dist.all_gather_object(epochs, epoch)
    if len(set(epochs)) > 1:
        raise ValueError(
            f"the processes are at epochs {epochs}: they found different checkpoints; "
            f"nnUNet_results must be one folder that all machines see"
        )


@contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes torchrun started, and leaves them in the end, whatever happens.

    Of several processes that fail only the first one says why: the others fail alike, or because of it.

    Raises:
        _Failed: Something was raised, and the user has been told.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world_size = next(rendezvous("env://"))
    failures = dist.PrefixStore("failures", store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    try:
        yield
    except Exception as error:
        if failures.add("number", 1) == 1:
            _tell(error)
            failures.set("told", "")
        else:
            with suppress(RuntimeError):  # the first one does not get to it in time
                failures.wait(["told"], TIME_TO_FAIL)
        raise _Failed from error
    finally:
        leaving = Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(TIME_TO_FAIL.total_seconds() if sys.exc_info()[0] else None)


if __name__ == "__main__":
    sys.exit(main())
