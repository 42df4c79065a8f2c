"""What the user is told at the end of a conversion: how many, how large, how fast, and what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nnunet_pretrain.conversion.dataset_json import QUARANTINE
from nnunet_pretrain.conversion.natural_images.index import ImageIndex
from nnunet_pretrain.conversion.natural_images.shards import ShardResult

PREPROCESSED_BYTES_PER_VALUE = 1.7
"""What nnU-Net's compressed files need for one value of an image, by benchmarks/natural_images.py."""

_SLICES = 3


def summary(
    tally: ShardResult, index: ImageIndex, classes: Sequence[str], storage: str, seconds: float
) -> Iterator[str]:
    """Yields lines for the user.

    Args:
        tally: What became of all shards.
        index: The usable images.
        classes: Names of the classes; empty for masks.
        storage: `volumes` or `originals`.
        seconds: Duration of this run.
    """
    parts = Counter(index.parts.tolist())
    split = ", ".join(f"{count} {part}" for part, count in sorted(parts.items()) if part)
    kinds = f", {len(classes)} classes" if classes else ""
    yield f"{len(index)} images{kinds}{f' ({split})' if split else ''}, {len(tally.quarantined)} quarantined"
    if tally.quarantined:
        case, reason = min(tally.quarantined.items())
        yield f"  all reasons are in {QUARANTINE}, such as {case}: {reason}"
    speed = f", {tally.converted / seconds:.0f} images per second" if tally.converted else ""
    unchanged = len(index) - tally.converted
    yield f"{tally.converted} converted now, {unchanged} were there and unchanged; {seconds:.1f} s{speed}"
    originals, written = tally.bytes_read / len(index), tally.bytes_written / len(index)
    yield f"per image: {_size(originals)} as original, {_size(written)} written here"
    values = _SLICES * float(index.shapes.astype(float).prod(axis=1).mean())
    if storage == "volumes":
        need = values * PREPROCESSED_BYTES_PER_VALUE
        yield (
            f"preprocessing will add about {_size(need)} per image, {_size(need * len(index))} in all; "
            f"with --storage originals it is not needed"
        )
    else:
        yield "nothing needs to be preprocessed: training reads the originals"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
