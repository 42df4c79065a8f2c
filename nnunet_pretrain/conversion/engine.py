"""Converting many cases: in parallel, with progress, past faulty ones, and so that an interruption costs little.

A case's record is written after its files, each by an atomic rename: where a record is, the case is complete.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_pretrain.conversion.convert import convert_case
from nnunet_pretrain.conversion.record import Conversion, Record
from nnunet_pretrain.files import read_json, write_json

RECORDS = "records"

Item = TypeVar("Item")
Result = TypeVar("Result")


def convert_or_quarantine(conversion: Conversion) -> Record:
    """Converts one case and writes its record; a case that cannot be converted gets a record that says why."""
    case, folder = conversion.files.case, conversion.folder
    try:
        record = convert_case(conversion)
    except Exception as error:  # one damaged file among thousands must not end the run
        known = isinstance(error, (ValueError, OSError))
        reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        record = Record(case, conversion.source.name, conversion.rules, quarantined=" ".join(reason.split()))
        for path in (f"labelsTr/{case}.nii.gz", f"imagesTr/{case}_0000.nii.gz", f"report/{case}.png"):
            (folder / path).unlink(missing_ok=True)
    write_json(folder / RECORDS / f"{case}.json", record.as_dict())
    return record


def can_restore(manifest: Path, fingerprints: Path) -> bool:
    """Tells whether the records of a finished dataset can be taken from these files: both are there and whole."""
    try:
        cases, contents = read_json(manifest)["cases"], read_json(fingerprints)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False
    whole = isinstance(cases, dict) and isinstance(contents, dict)
    return whole and all(isinstance(cases[case], dict) and case in contents for case in cases)


def read_records(folder: Path) -> dict[str, Record]:
    """Returns the records an interrupted run left; damaged ones count as missing."""
    records = {}
    for path in sorted((folder / RECORDS).glob("[!.]*.json")):
        try:
            record = Record(**read_json(path))
        except (ValueError, TypeError):
            continue
        records[record.case] = record
    return records


def run_all(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_processes: int,
    what: str,
    dask: str | None = None,
    done: int = 0,
    unit: str = "case",
) -> Iterator[Result]:
    """Calls a function for every item and yields the results as they come, with a progress bar.

    Args:
        function: What to do; importable from a module, for it runs in other processes.
        items: What to do it with.
        num_processes: Worker processes; 1 works in this one.
        what: Text of the progress bar.
        dask: Address of a Dask scheduler that runs the calls instead; its workers must see the same files.
        done: Number of items done in an earlier run, for the progress bar.
        unit: What the progress bar calls an item.

    Raises:
        ValueError: `num_processes` is not positive, Dask is not installed, or a worker died.
    """
    if num_processes < 1:
        raise ValueError(f"-np must be at least 1, got {num_processes}")
    results = _serial if num_processes == 1 or len(items) < 2 else _pooled
    stream = _on_cluster(function, items, dask) if dask else results(function, items, num_processes)
    with tqdm(total=len(items) + done, initial=done, desc=what, unit=unit, smoothing=0.05) as progress:
        for result in stream:
            progress.update()
            yield result


def _serial(function: Callable[[Item], Result], items: Sequence[Item], _: int) -> Iterator[Result]:
    return map(function, items)


def _pooled(function: Callable[[Item], Result], items: Sequence[Item], num_processes: int) -> Iterator[Result]:
    # spawn: threads of numerical libraries and forked processes do not go together
    workers = min(num_processes, len(items))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        try:
            with _interrupts_held_back():
                futures = [pool.submit(function, item) for item in items]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, most likely for lack of memory; run it again with fewer processes"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Holds Ctrl-C back while workers start; they inherit that, and so none of them prints a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Leaves Ctrl-C to the main process, and ends with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _on_cluster(function: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[Result]:
    try:
        from distributed import Client
        from distributed import as_completed as completed_on_cluster
    except ImportError:
        raise ValueError("--dask needs the package 'distributed'; pip install 'nnunet-pretrain[dask]'") from None
    try:
        client: Any = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        futures = client.map(function, items, pure=False)
        for future in completed_on_cluster(futures):
            yield future.result()
            future.release()
