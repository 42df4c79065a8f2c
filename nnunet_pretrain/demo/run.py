"""The whole path on phantom CTs: three sources, merge, pre-train, transfer with control, predict, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunet_pretrain import __version__
from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.demo.commands import Workflow
from nnunet_pretrain.demo.real_data import SOURCE, find_real_source
from nnunet_pretrain.demo.workspace import (
    ARMS,
    CONFIGURATION,
    PRETRAIN,
    PRETRAINING,
    SOURCES,
    TARGET,
    TARGET_LABELS,
    TARGET_SEEDS,
    Workspace,
    dataset_id,
    target_dice,
)
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import NNUNET_VARIABLES
from nnunet_pretrain.planning import PretrainSettings


def run_demo(
    out: Path,
    *,
    cases: int = 6,
    data: Path | None = None,
    device: str | None = None,
    preset: str = "tiny",
    show: Callable[[str], None] = print,
) -> Path:
    """Runs the demo, or what is missing of it.

    Args:
        out: Folder for everything, created if needed.
        cases: Phantom cases per source.
        data: A real CT with TotalSegmentator labels, used as a further source (`find_real_source`), or None.
        device: Device for nnU-Net; None takes cuda if there is one, else cpu.
        preset: Preset for both trainings.
        show: Called with each line for the user.

    Returns:
        The report.

    Raises:
        ValueError: Fewer than two cases, another demo lies in `out`, or a command failed.
        FileNotFoundError: `data` holds no usable CT.
    """
    if cases < 2:
        raise ValueError(f"--cases must be at least 2 (one is held out per source), got {cases}")
    work = Workspace(out.expanduser().absolute())
    device = device or _best_device()
    settings = {"version": __version__, "cases": cases, "data": data and str(data.absolute()), "preset": preset}
    _claim(work.root, settings)
    environment = work.environment(device)
    show("\n".join(f"export {name}={value}" for name, value in environment.items()))
    workflow = Workflow(work.root, environment, show)

    sources = _write_sources(work, cases, data, show)
    _pretrain(workflow, work, sources, preset, device)
    _transfer(workflow, work, preset, device)
    real = sources[SOURCE] / "ct.nii.gz" if SOURCE in sources else None
    if real is not None:
        _predict_real(workflow, work, real, device)

    from nnunet_pretrain.demo.story import write_report

    report = write_report(work, workflow, environment, real)
    show(f"report: {report}")
    return report


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _claim(root: Path, settings: dict[str, object]) -> None:
    """Makes sure that the folder holds this demo or nothing."""
    path = root / "demo.json"
    if path.is_file() and read_json(path) != settings:
        raise ValueError(
            f"{root} holds a demo with other settings {read_json(path)}; choose another --out or delete it"
        )
    if not path.is_file() and root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no demo; choose another --out")
    for variable in NNUNET_VARIABLES:
        (root / variable).mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _write_sources(work: Workspace, cases: int, data: Path | None, show: Callable[[str], None]) -> dict[str, Path]:
    from nnunet_pretrain.phantom.datasets import write_phantom_source, write_phantom_target

    folders = {}
    for position, (name, orientations) in enumerate(SOURCES.items(), start=1):
        folders[name] = work.sources(name)
        seeds = range(1000 * position, 1000 * position + cases)
        show(f"drawing {cases} phantoms as {name} publishes its cases: {folders[name]}")
        write_phantom_source(find_source(name), folders[name], seeds, orientations)
    show(f"drawing the target: {', '.join(TARGET_LABELS)}, {len(TARGET_SEEDS['train'])} training cases")
    write_phantom_target(work.raw(TARGET), TARGET_LABELS, **TARGET_SEEDS, orientation="LPS")
    if data is not None:
        folders[SOURCE] = find_real_source(data, work.sources(SOURCE))
    return folders


def _pretrain(workflow: Workflow, work: Workspace, sources: dict[str, Path], preset: str, device: str) -> None:
    number, name = dataset_id(PRETRAINING), PRETRAINING.partition("_")[2]
    pairs = [part for source, folder in sources.items() for part in ("--source", f"{source}={folder}")]
    workflow.run(["nnunet_pretrain", "merge", "-d", number, "-n", name, *pairs, "--overwrite"])
    workflow.run(["nnunet_pretrain", "plan", "-d", number, "--preset", preset])
    _preprocess(workflow, PRETRAINING, PRETRAIN[1])
    _train(workflow, work, PRETRAINING, PRETRAIN, "all", device)


def _transfer(workflow: Workflow, work: Workspace, preset: str, device: str) -> None:
    number = dataset_id(TARGET)
    checkpoint = work.fold(PRETRAINING, PRETRAIN, "all") / "checkpoint_final.pth"
    workflow.run(["nnunet_pretrain", "inspect", checkpoint])
    heads = ("--head", "great_vessels=aorta+postcava")
    workflow.run(["nnunet_pretrain", "plan_transfer", "-d", number, "-c", checkpoint, "--preset", preset, *heads])
    _preprocess(workflow, TARGET, ARMS["pre-trained"][1])
    for arm, run in ARMS.items():
        train_and_test(workflow, work, run, work.predictions(arm), device)


def train_and_test(
    workflow: Workflow, work: Workspace, run: tuple[str, str], output: Path, device: str
) -> dict[str, float]:
    """Trains on the target, predicts its held-out cases and evaluates them.

    Args:
        workflow: Runs the commands.
        work: The demo's folders.
        run: Trainer and plans.
        output: Folder for the predictions.
        device: Device for nnU-Net.

    Returns:
        Mean Dice of each of the target's labels.
    """
    _train(workflow, work, TARGET, run, "0", device)
    _predict(workflow, TARGET, work.raw(TARGET) / "imagesTs", output, run, "0", device)
    model = work.fold(TARGET, run, "0").parent
    files = ("-djfile", model / "dataset.json", "-pfile", model / "plans.json")
    workflow.run(["nnUNetv2_evaluate_folder", work.raw(TARGET) / "labelsTs", output, *files, "-np", "2"])
    return target_dice(output)


def _predict_real(workflow: Workflow, work: Workspace, image: Path, device: str) -> None:
    images = work.root / "real_images"
    images.mkdir(exist_ok=True)
    link = images / "real_0000.nii.gz"
    if not link.is_symlink():
        link.symlink_to(image.absolute())
    _predict(workflow, PRETRAINING, images, work.predictions("real"), PRETRAIN, "all", device)


def _preprocess(workflow: Workflow, dataset: str, plans: str) -> None:
    workflow.run(
        ["nnunet_pretrain", "preprocess", "-d", dataset_id(dataset), "-p", plans, "-c", CONFIGURATION, "-np", "2"]
    )


def _train(workflow: Workflow, work: Workspace, dataset: str, run: tuple[str, str], fold: str, device: str) -> None:
    settings = PretrainSettings.from_plans(read_json(work.preprocessed(dataset) / f"{run[1]}.json"))
    model = (dataset_id(dataset), CONFIGURATION, fold, "-tr", run[0], "-p", run[1])
    workflow.run(
        ["nnUNetv2_train", *model, "-device", device],
        epochs=settings.training.num_epochs,
        resume=lambda: any(work.fold(dataset, run, fold).glob("checkpoint_*.pth")),
    )


def _predict(
    workflow: Workflow, dataset: str, images: Path, output: Path, run: tuple[str, str], fold: str, device: str
) -> None:
    model = ("-d", dataset_id(dataset), "-c", CONFIGURATION, "-f", fold, "-tr", run[0], "-p", run[1])
    files = ("-i", images, "-o", output)
    workflow.run(["nnUNetv2_predict", *files, *model, "-device", device, "-npp", "1", "-nps", "1"])
