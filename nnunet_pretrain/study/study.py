"""The study as one command: plan, preprocess, run what is missing, and report on all there is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from nnunet_pretrain.files import read_json, sha256_of, write_json
from nnunet_pretrain.folders import dataset_name
from nnunet_pretrain.study.arms import Arm, Keep, find_arm, settings_of
from nnunet_pretrain.study.bases import Base, leaked_cases, plan_bases, preprocess_bases, remembered
from nnunet_pretrain.study.checkpoints import check_stock_weights, leaked_in, read_checkpoints, with_checkpoints
from nnunet_pretrain.study.design import (
    Run,
    StudyOptions,
    design_runs,
    find_cases,
    plain,
    results_folder,
)
from nnunet_pretrain.study.processes import Children
from nnunet_pretrain.study.runs import Study, do_run
from nnunet_pretrain.study.tasks import TASKS

MEMORY = "study.json"
_BEFORE = {"task": "segmentation"}
"""What studies did whose memory does not say it."""

_OPTIONS = {
    "task": "--task",
    "target": "target",
    "checkpoint_sha256": "checkpoint",
    "preset": "--preset",
    "branch": "--branch",
    "crop_mm": "--crop-mm",
    "table": "table of classes",
    "test": "--test",
    "nsd_mm": "tolerance of the surface Dice",
    "cases": "test cases or labelled cases (splits_final.json or excluded cases)",
}


def run_study(options: StudyOptions, report: Callable[[str], None] = print) -> Path:
    """Runs a study, or what is missing of it.

    Fractions, seeds and arms may be added later; the report is on all runs in the folder. Ctrl-C stops all runs after
    their step, and the same call goes on.

    Args:
        options: What to study.
        report: Called with lines for the user.

    Returns:
        The folder with results.json, results.csv, table.md, study.png, runs/ and logs/.

    Raises:
        ValueError: An option is not possible, the folder holds another study, or a run failed.
        FileNotFoundError: Dataset or checkpoint is missing.
    """
    arms = [find_arm(text) for text in dict.fromkeys(options.arms)]
    task = TASKS[options.task]
    task.check(options, arms)
    dataset = dataset_name(options.dataset)
    checkpoint = options.checkpoint.expanduser()
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint} not found")
    own = read_checkpoints(arms)
    check_stock_weights(options, arms)
    folder = results_folder(options, dataset)
    memory: dict[str, Any] = read_json(folder / MEMORY) if (folder / MEMORY).is_file() else {}
    facts = _facts(options, dataset, checkpoint)
    _check_unchanged(folder, memory, facts)
    bases = plan_bases(options, task, arms, memory.get("bases", {}), report)
    arms = with_checkpoints(arms, own, bases, options, dataset, report)
    seen = leaked_in(own, dataset, options.num_processes, report)
    leaked = sorted({*leaked_cases(dataset, bases), *seen, *memory.get("leaked", ())})
    if leaked:
        report(f"never tested on, for the pre-training has seen them: {', '.join(leaked)}")
    first = bases[arms[0].keep].plans_of(arms[0], dataset)
    cases = find_cases(dataset, options.test, (*options.exclude, *leaked), task.folds(dataset, first))
    facts |= {**task.facts(dataset, cases), "cases": plain(vars(cases))}
    _check_unchanged(folder, memory, facts)
    settings = _settings(folder, memory, dataset, arms, bases, report)
    write_json(
        folder / MEMORY,
        {
            **facts,
            "leaked": leaked,
            "bases": {**memory.get("bases", {}), **remembered(bases)},
            "arms": {**memory.get("arms", {}), **settings},
        },
    )
    preprocess_bases(options, dataset, bases, report)
    study = Study(options, task, dataset, folder, cases, {arm.name: (arm, bases[arm.keep]) for arm in arms})
    report(f"{len(cases.pool)} labelled cases, {len(cases.test)} unseen ones; results in {folder}")
    names, classes = [arm.name for arm in arms], task.classes(dataset)
    run_missing(study, design_runs(cases.pool, options.fractions, options.seeds, names, classes))

    from nnunet_pretrain.study.report import write_report

    report(write_report(folder, len(cases.pool), options.nsd_mm, task))
    return folder


def _facts(options: StudyOptions, dataset: str, checkpoint: Path) -> dict[str, Any]:
    """Returns what must not change between the calls of one study."""
    return {
        "task": options.task,
        "target": dataset,
        "checkpoint_sha256": sha256_of(checkpoint),
        "preset": options.preset,
        "branch": options.branch,
        "crop_mm": options.crop_mm,
        "test": options.test,
        "nsd_mm": options.nsd_mm,
    }


def _check_unchanged(folder: Path, memory: dict[str, Any], facts: dict[str, Any]) -> None:
    """Refuses options that would change what finished runs mean.

    Raises:
        ValueError: Something differs from what the folder's study began with.
    """
    for key, now in facts.items():
        if memory and (then := memory.get(key, _BEFORE.get(key))) != now:
            found = "" if key == "cases" else f": it has {then}, now it is {now}"
            raise ValueError(
                f"{folder} holds a study with another {_OPTIONS[key]}{found}; choose another -n and -o, or delete it"
            )


def _settings(
    folder: Path,
    memory: dict[str, Any],
    dataset: str,
    arms: Sequence[Arm],
    bases: dict[Keep, Base],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the settings of each arm, and refuses arms whose settings have changed since their first run.

    Raises:
        ValueError: An arm has changed.
    """
    found: dict[str, Any] = {}
    for arm in arms:
        settings = settings_of(arm, bases[arm.keep].plans_of(arm, dataset)).model_dump(mode="json")
        now = {"keep": arm.keep, "stock_weights": arm.stock_weights, "settings": settings}
        then = memory.get("arms", {}).get(arm.name, now)
        if then != now:
            parts = [key for key in settings if then["settings"].get(key) != settings[key]] or ["keep"]
            raise ValueError(
                f"arm '{arm.name}' of the study in {folder} was begun with another {' and '.join(parts)}; restore the "
                f"plans or the arm's file, or choose another name"
            )
        if twin := next((name for name, other in found.items() if other == now), None):
            report(f"note: arm '{arm.name}' has the same settings as '{twin}' here")
        found[arm.name] = now
    return found


def run_missing(study: Study, runs: Sequence[Run]) -> None:
    """Does the runs that have no result yet, several at a time.

    Raises:
        ValueError: A run failed; the others are stopped after their step.
        KeyboardInterrupt: The user stopped the study; a second Ctrl-C does not wait for the runs.
    """
    missing = [run for run in runs if not study.result_file(run).is_file()]
    children = Children()
    try:
        with (
            _sigterm_as_interrupt(),
            ThreadPoolExecutor(study.options.jobs) as pool,
            tqdm(total=len(runs), initial=len(runs) - len(missing), desc="Runs", unit="run", smoothing=0) as bar,
        ):
            try:
                futures = [pool.submit(do_run, study, run, children) for run in missing]
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                children.stop()
                if isinstance(error, KeyboardInterrupt):
                    bar.write("Runs finish their step and save. Once more to stop at once.")
                raise
    except KeyboardInterrupt:
        children.kill()  # those a second Ctrl-C did not wait for
        raise


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM stop the runs as Ctrl-C does; otherwise they would go on without the study."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
