"""The top of a merge's report: numbers, what calls for attention, how to go on."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_pretrain.conversion.duplicates import groups_of
from nnunet_pretrain.conversion.licences import licence_terms
from nnunet_pretrain.conversion.report_facts import FATES, Merged, Outlier, counted, first_few
from nnunet_pretrain.html_page import Report


def add_summary(report: Report, merged: Merged, unusual: Sequence[Outlier]) -> None:
    """Adds the numbers that matter, what to look at, and how to go on."""
    taught = len(merged.space.structures) - len(merged.untaught)
    numbers = {fate: len(merged.left_out[fate]) for fate in FATES}
    groups = len(groups_of(merged.pairs))
    report.cards(
        [
            (f"{len(merged.records):,}", "cases", False),
            (str(len(merged.sources)), "sources", False),
            (f"{taught} of {len(merged.space.structures)}", "structures annotated", bool(merged.untaught)),
            (f"{numbers['quarantined']:,}", "quarantined", numbers["quarantined"] > 0),
            (f"{numbers['excluded']:,}", "excluded", False),
            (f"{groups:,}", "found more than once", groups > 0),
            (f"{numbers['dropped']:,}", "duplicates dropped", False),
        ]
    )
    report.contents()
    report.subsection("What to look at")
    report.points(
        _to_look_at(merged, unusual) or [("Nothing stood out. Look at the pictures all the same.", "pictures")]
    )
    report.subsection("How to go on")
    number = merged.name.removeprefix("Dataset").split("_")[0].lstrip("0")
    report.commands(
        [
            *(
                ["# repair what was quarantined and repeat the merge with --resume, or leave it out, then:"]
                if numbers["quarantined"]
                else []
            ),
            f"nnunet_pretrain plan -d {number} --preset resenc_m -np 8",
            f"nnunet_pretrain preprocess -d {number} -p nnUNetPretrainPlans -c 3d_fullres -np 8",
            f"nnUNetv2_train {number} 3d_fullres all -tr nnUNetTrainerPretrain -p nnUNetPretrainPlans",
        ]
    )
    structures = merged.space.structures
    report.folded(f"Label space {merged.space.name}: {counted(len(structures), 'structure')}", [", ".join(structures)])


def _to_look_at(merged: Merged, unusual: Sequence[Outlier]) -> list[tuple[str, str]]:
    """Returns what calls for attention, each with the section that shows it."""
    points = []
    if merged.left_out["quarantined"]:
        points.append((f"{counted(len(merged.left_out['quarantined']), 'case')} could not be converted.", "left-out"))
    if merged.untaught:
        text = f"No source labels {first_few(merged.untaught)} apart; a network trained on this will not predict them."
        points.append((text, "coverage"))
    found = merged.found
    differing = [
        f"{name} {found[name]:,} of {source.cases:,}"
        for name, source in merged.sources.items()
        if source.cases is not None and source.cases != found[name]
    ]
    if differing:
        points.append((f"Not the number of cases that was published: {first_few(differing)}.", "sources"))
    if unusual:
        points.append((f"{counted(len(unusual), 'volume')} out of the ordinary.", "volumes"))
    warned = sum(bool(record.warnings) for record in merged.records)
    if warned:
        points.append((f"{counted(warned, 'case')} with warnings.", "remarks"))
    if merged.pairs:
        points.append((f"{counted(len(groups_of(merged.pairs)), 'image')} found more than once.", "duplicates"))
    asked = [name for name, source in merged.sources.items() if licence_terms(source.licence) == "unclear"]
    if asked:
        points.append((f"The licence is unclear: {first_few(asked)}.", "licences"))
    return points
