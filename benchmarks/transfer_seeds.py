"""Repeats the demo's transfer with several seeds: pre-trained against from scratch, same budget, unseen cases.

The named peer is the control from scratch: same plans, steps, schedule and initial heads, no pre-trained weights. The
pre-training of the demo is used as it is, so the spread is that of the training on the target alone.

Run `nnunet_pretrain demo --out DIR` first, then `python benchmarks/transfer_seeds.py DIR --seeds 3`.
"""

import argparse
import statistics
from pathlib import Path

from nnunet_pretrain.demo.commands import Workflow
from nnunet_pretrain.demo.run import train_and_test
from nnunet_pretrain.demo.workspace import ARMS, TARGET, TARGET_LABELS, Workspace
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.planning import SETTINGS_KEY


def run_arm(work: Workspace, workflow: Workflow, arm: str, seed: int, device: str) -> dict[str, float]:
    """Trains, predicts and evaluates one arm with one seed; returns Dice per structure."""
    trainer, plans_name = ARMS[arm]
    folder = work.preprocessed(TARGET)
    plans = read_json(folder / f"{plans_name}.json")
    plans["plans_name"] = f"{plans_name}__seed{seed}"
    plans[SETTINGS_KEY]["training"]["seed"] = seed
    write_json(folder / f"{plans['plans_name']}.json", plans)
    output = work.root / "predictions_by_seed" / f"{arm.replace(' ', '_')}_{seed}"
    return train_and_test(workflow, work, (trainer, plans["plans_name"]), output, device)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-device", default="cpu")
    arguments = parser.parse_args()
    work = Workspace(arguments.demo.absolute())
    memory = work.root / "seeds"
    memory.mkdir(exist_ok=True)
    workflow = Workflow(memory, work.environment(arguments.device), print)
    seeds = range(1, arguments.seeds + 1)
    dice = {arm: [run_arm(work, workflow, arm, seed, arguments.device) for seed in seeds] for arm in ARMS}
    print(f"| structure | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}")
    for name in (*TARGET_LABELS, "mean"):
        cells = []
        for runs in dice.values():
            values = [statistics.mean(run.values()) if name == "mean" else run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
