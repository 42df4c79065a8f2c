"""Does the label-set loss learn from partial labels as much as others, or as complete labels would teach?

Every arm trains the same network with the same steps, patches, optimiser, seed and phantoms through real nnU-Net
(merge, plan, nnUNetv2_preprocess, nnUNetTrainerPretrain with the arm's loss), and is scored by the same rule on
phantoms nobody trained on, whose truth is complete. Three sources label a part each: liver and spleen; unsplit
kidneys; the rest. A seed decides the initial weights, the sampling, and which phantom belongs to which source.

Design `issue` has label sets that do not overlap and scores the union of both kidneys, because no source tells the
sides. In `sides` they overlap: one source knows the sides of kidneys but not their lesions, one the lesions but not
the sides.

Finished runs stay in the work folder and are not repeated.
Run `python benchmarks/partial_labels.py /tmp/partial_labels --jobs 2`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from partial_labels_arms.design import ARMS, DESIGNS, SCALES, Scale
from partial_labels_arms.tables import print_tables
from workspace import claim

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import NNUNET_VARIABLES, TRAINER_VARIABLE, trainer_search_path

HERE = Path(__file__).resolve().parent


def environment(work: Path, task: str, device: str) -> dict[str, str]:
    """Returns the variables of a run: nnU-Net's folders, both trainer folders, one thread."""
    trainers = HERE / "partial_labels_arms" / "trainers"
    paths = (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    workers = "1" if task == "prepare" else "0"  # planning takes the number for that of threads
    small = {"nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    gpu = {"nnUNet_n_proc_DA": "6", "nnUNet_def_n_proc": "4", "nnUNet_compile": "f"}
    return {
        **{variable: str(work / variable) for variable in NNUNET_VARIABLES},
        **(gpu if device == "cuda" else small),
        TRAINER_VARIABLE: os.pathsep.join((trainer_search_path(), str(trainers))),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def result_file(work: Path, arm: str, seed: int) -> Path:
    """Returns where the result of a run is kept."""
    return work / "results" / f"{arm}_{seed}.json"


def in_process(arguments: argparse.Namespace, task: str, arm: str, seed: int) -> None:
    """Does one task in a process of its own, with its output in a log.

    Raises:
        ValueError: The task failed; the message holds the end of its log.
    """
    log = arguments.work / "logs" / f"{task}_{arm}_{seed}.txt"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, __file__, str(arguments.work), "--design", arguments.design, "-device", arguments.device]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [*command, "--task", task, "--arms", arm, "--first-seed", str(seed)],
            env={**os.environ, **environment(arguments.work, task, arguments.device)},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise ValueError(f"{task} {arm} {seed} failed; full log in {log}; it ends with:\n{end}")
    print(f"{task} {arm} seed {seed}: {time.monotonic() - started:.0f} s", flush=True)


def one_task(arguments: argparse.Namespace) -> None:
    """Does the task this process was started for."""
    from partial_labels_arms.data import prepare, write_test_cases
    from partial_labels_arms.one_run import run

    work, seed = arguments.work, arguments.first_seed
    scale = Scale(**read_json(work / "benchmark.json")["scale"])
    if arguments.task == "prepare":
        write_test_cases(work, DESIGNS[arguments.design], scale)
        prepare(work, arguments.design, scale, seed)
    else:
        arm = arguments.arms[0]
        run(work, DESIGNS[arguments.design], arm, seed, arguments.device, result_file(work, arm, seed))


def run_all(arguments: argparse.Namespace, seeds: Iterable[int]) -> None:
    """Runs what is missing, several runs at a time; all arms of a seed before the next seed."""
    seeds = list(seeds)
    missing = [(a, s) for s in seeds for a in arguments.arms if not result_file(arguments.work, a, s).is_file()]
    print(f"{len(missing)} runs to do, {len(seeds) * len(arguments.arms) - len(missing)} done before", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task, runs in (("prepare", [("all", s) for s in sorted({s for _, s in missing})]), ("train", missing)):
            for future in [pool.submit(in_process, arguments, task, arm, seed) for arm, seed in runs]:
                future.result()


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--design", choices=sorted(DESIGNS), default="issue")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--steps", type=int, help="training steps, instead of the scale's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "all"], help="instead of the design's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--task", choices=("prepare", "train"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    arguments.arms = arguments.arms or list(DESIGNS[arguments.design].arms)
    if arguments.task:
        one_task(arguments)
        return
    scale = replace(SCALES[arguments.scale], **({"steps": arguments.steps} if arguments.steps else {}))
    claim(arguments.work, {"design": arguments.design, "device": arguments.device, "scale": asdict(scale)})
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    run_all(arguments, seeds)
    results = {
        arm: [read_json(result_file(arguments.work, arm, seed)) for seed in seeds]
        for arm in ARMS
        if arm in arguments.arms
    }
    print_tables(results, DESIGNS[arguments.design])


if __name__ == "__main__":
    main()
