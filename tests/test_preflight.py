"""What is refused before the first step of a pre-training."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.preflight import check_dataset, check_preprocessed, check_stored_ids

SPACE = LabelSpace(name="test", structures=("liver", "spleen"))
SCHEME = LabelScheme(name="A", sets={0: ("background", "spleen"), 1: ("liver",)})
TABLE = LabelSetTable(SPACE, (SCHEME,), {"a": 0, "b": 0})


def stored(folder, **segmentations):
    """Preprocessed cases as nnU-Net writes them."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder.mkdir(exist_ok=True)
    for case, ids in segmentations.items():
        for old in folder.glob(f"{case}*.b2nd"):
            old.unlink()
        seg = np.array(ids, dtype=np.int16).reshape(1, 1, 1, -1)
        sizes = {"chunks": seg.shape, "blocks": seg.shape}
        nnUNetDatasetBlosc2.save_case(seg.astype(np.float32), seg, {}, str(folder / case), **sizes)
    return nnUNetDatasetBlosc2(str(folder), list(segmentations))


def test_plans_of_another_dataset_are_refused(tmp_path):
    content = {"labels": {"background": 0, "liver": 1}, "label_schemes": {}, "dataset": {"a": {}}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    check_dataset(content, "P", tmp_path)
    with pytest.raises(
        ValueError, match=f"plans 'P' were made for {tmp_path.name}, whose dataset.json has other 'labels'"
    ):
        check_dataset({**content, "labels": {"background": 0}}, "P", tmp_path)


def test_an_incomplete_or_stale_folder_is_refused(tmp_path):
    folder = tmp_path / "data"
    stored(folder, a=[0, 1], b=[0, 1])
    check_preprocessed(folder, ["a", "b"], ["a", "b"], "P")
    with pytest.raises(ValueError, match=r"data lacks 1 of 3 cases, such as c; run `nnunet_pretrain preprocess -p P`"):
        check_preprocessed(folder, ["a", "b"], ["a", "b", "c"], "P")
    with pytest.raises(ValueError, match=r"holds cases dataset.json does not have: 1 of 1 cases, such as b"):
        check_preprocessed(folder, ["a", "b"], ["a"], "P")
    (folder / "b.pkl").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 cases, such as b"):
        check_preprocessed(folder, ["a", "b"], ["a", "b"], "P")


def test_ids_the_scheme_does_not_know_are_refused_and_checked_cases_remembered(tmp_path):
    folder, remembered = tmp_path / "data", tmp_path / "checked.json"
    dataset = stored(folder, a=[-1, 0, 1], b=[0, 1, 1])
    check_stored_ids(dataset, ["a", "b"], TABLE, remembered)
    refuse = SimpleNamespace(source_folder=str(folder))  # has no load_case: nothing may be read again
    check_stored_ids(refuse, ["a", "b"], TABLE, remembered)
    stored(folder, b=[0, 2, 9])
    os.utime(folder / "b_seg.b2nd", (1, 1))  # two writes may share a tick of the clock
    with pytest.raises(
        ValueError, match=r"case 'b' in .*data stores the ids \[2, 9\], but its label scheme 'A' knows \[0, 1\]"
    ):
        check_stored_ids(dataset, ["a", "b"], TABLE, remembered)
    (folder / "b_seg.b2nd").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"preprocessed case 'b' in .* cannot be read .*delete its files"):
        check_stored_ids(dataset, ["a", "b"], TABLE, remembered)
