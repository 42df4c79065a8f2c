"""New photographs are classified as the final validation of their model classified those held out."""

import csv
from types import SimpleNamespace

import pytest
import torch
from nnunet_runs import nnunet_folders, variables_set
from small_checkpoints import save_as_trained
from small_photographs import CLASSIFIER, planned, trainer_of, write_textures

from nnunet_pretrain.classification.classify import classify

DATASET = 925
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """Photographs of four textures and several aspects, planned as volumes; the environment points to them."""
    root = tmp_path_factory.mktemp("photographs")
    with variables_set(nnunet_folders(root, nnUNet_n_proc_DA="0")):
        images = write_textures(root / "textures", 16)
        path = planned(root, images, DATASET, "classification", "volumes", patch_size=(32, 24))
        yield SimpleNamespace(root=root, raw=root / "nnUNet_raw" / path.parent.name, plans=path)


def save(trainer, model):
    """Saves the network as if its training were over."""
    content = {"network_weights": trainer.network.state_dict(), "init_args": trainer.my_init_kwargs}
    axes = trainer.inference_allowed_mirroring_axes
    save_as_trained(model, {**content, "inference_allowed_mirroring_axes": axes, "trainer_name": CLASSIFIER})


@pytest.mark.parametrize("plans", ["nnUNetVDTPlans", "nnUNetVDTPlans__grey"])
def test_new_photographs_are_seen_as_those_held_out(textures, tmp_path, plans):
    trainer = trainer_of(DATASET, CLASSIFIER, plans)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == (2,)  # for which the validation has no use
    trainer.get_tr_and_val_datasets()
    held_out = trainer.held_out.identifiers
    assert len(held_out) == 4
    with torch.no_grad():  # as drawn, the network would give all images the same
        trainer.network.head[0].momentum = 1.0
        trainer.network.train()(next(iter(trainer._in_order(held_out)))["data"])
        trainer.network.head[1].weight *= 5
    save(trainer, tmp_path / "model")
    assert classify(textures.raw / "imagesTr", tmp_path / "out.csv", tmp_path / "model", device="cpu") == 16
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        found = {row["case"]: [float(row[f"p_{name}"]) for name in trainer.classes] for row in csv.DictReader(file)}
    network = trainer.network.eval()
    batches = trainer._in_order(held_out)
    for batch, _ in zip(batches, range(len(batches)), strict=False):
        with torch.no_grad():
            expected = network(batch["data"]).double().softmax(1).tolist()
        for case, one in zip(batch["keys"], expected, strict=True):
            assert found[str(case)] == pytest.approx(one, abs=2e-4), case
    assert max(abs(a[0] - b[0]) for a in found.values() for b in found.values()) > 0.2


def test_models_of_originals_are_refused(textures, tmp_path, monkeypatch):
    trainer = trainer_of(DATASET, CLASSIFIER, "nnUNetVDTPlans")
    trainer.initialize()
    trainer.my_init_kwargs["plans"]["nnunet_pretrain"]["natural_images"]["storage"] = "originals"
    save(trainer, tmp_path / "model")
    with pytest.raises(ValueError, match=r"own final validation, .* plan_transfer`; .*storage volumes"):
        classify(textures.raw / "imagesTr", tmp_path / "out.csv", tmp_path / "model", device="cpu")
