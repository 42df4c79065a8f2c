"""Classification without training: the table, crops, the network, and how a study draws its subsets."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from classification_targets import made_up, write_csv
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_checkpoints import NETWORKS, bits, checkpoint

from nnunet_pretrain.checkpoints.classifiers import without_classifier
from nnunet_pretrain.classification.crops import lesion_crop, whole_image
from nnunet_pretrain.classification.labels import (
    Example,
    classes_by_case,
    read_examples,
    read_table,
    write_examples,
)
from nnunet_pretrain.classification.lesions import lesion_boxes
from nnunet_pretrain.classification.metrics import auc
from nnunet_pretrain.classification.plan_classification import classifier_architecture, patch_of
from nnunet_pretrain.networks.classifier import Classifier
from nnunet_pretrain.networks.parts import layers_of, parts_of
from nnunet_pretrain.planning.settings import TransferSettings
from nnunet_pretrain.study import StudyOptions
from nnunet_pretrain.study.arms import ARMS
from nnunet_pretrain.study.classification import CLASSIFICATION, exchange_p
from nnunet_pretrain.study.design import design_runs, subset
from nnunet_pretrain.study.report import write_report
from nnunet_pretrain.transfer.heads import Outputs
from nnunet_pretrain.transfer.pretrained_network import NetworkFacts, pretrained_network
from nnunet_pretrain.transfer.weights import transfer_weights

DATASET = {"labels": {"background": 0, "nodule": 1, "cyst": 2, "any": [1, 2], "ignore": 3}}
CASES = [f"c{i}" for i in range(12)]


def row(case, label, lesion="", component=""):
    return {"case": case, "class": label, "lesion": lesion, "component": component}


GOOD = [row("c0", "benign", "nodule", "1"), row("c0", "malign", "nodule", "2"), row("c1", "malign", "any")]
GOOD += [row("c2", "benign", "cyst"), row("c3", "benign", "nodule")]


def test_csv_and_json_say_the_same(tmp_path):
    write_csv(tmp_path / "classification.csv", GOOD)
    found = read_table(tmp_path, DATASET, CASES)
    assert found[1] == Example("c0", "malign", "nodule", 2)
    assert found[2] == Example("c1", "malign", "any")
    assert len({example.key for example in found}) == 5
    assert classes_by_case(found)["c0"] == {"benign", "malign"}
    write_examples(tmp_path / "kept.json", found)
    assert read_examples(tmp_path / "kept.json") == found
    objects = [{key: int(v) if v.isdigit() else v for key, v in entry.items() if v} for entry in GOOD]
    (tmp_path / "classification.json").write_text(json.dumps(objects), encoding="utf-8")
    with pytest.raises(ValueError, match="keep one of them"):
        read_table(tmp_path, DATASET, CASES)
    (tmp_path / "classification.csv").unlink()
    assert read_table(tmp_path, DATASET, CASES) == found


PAIR = [row("c0", "a"), row("c1", "a"), row("c2", "b"), row("c3", "b")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*PAIR, row("c99", "a")], r"row 5 \(c99: a\) name no training case"),
        ([*PAIR, row("c4", "c")], r"row 5 \(c4: c\) are the only case of their class"),
        ([*PAIR, row("c0", "b")], r"row 1 .*row 5 .*more than once"),
        ([*PAIR, row("c4", "b", "nodule")], r"row 1 .*have no lesion, others have"),
        ([row(f"c{i}", "ab"[i % 2], "tumor") for i in range(4)], "labels are nodule, cyst, any"),
        ([*GOOD, row("c0", "benign", "nodule")], "another row takes as a whole"),
        ([row("c0", "a"), row("c1", "a")], r"classes \['a'\]; expected at least two"),
        ([*PAIR, row("c4", "")], "row 5: expected a value for case and for class"),
        ([*PAIR, row("c4", "a", "nodule", "0")], "component is '0'"),
        ([*PAIR, row("c4", "a", "", "1")], "needs a lesion"),
        ([{"case": "c0", "klass": "a"}], "expected case,class"),
    ],
)
def test_wrong_tables_are_refused_by_row(tmp_path, rows, message):
    write_csv(tmp_path / "classification.csv", rows)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path, DATASET, CASES)


def test_a_missing_table_and_wrong_json_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="write it with the columns case,class"):
        read_table(tmp_path, DATASET, CASES)
    (tmp_path / "classification.json").write_text('{"case": "c0"}', encoding="utf-8")
    with pytest.raises(ValueError, match="must hold a list"):
        read_table(tmp_path, DATASET, CASES)
    with pytest.raises(FileNotFoundError, match="plan again"):
        read_examples(tmp_path / "none.json")


def test_lesions_are_found_largest_first_and_cut_around_their_middle():
    seg = np.zeros((12, 12, 12), np.int16)
    seg[1:3, 1:3, 1:3] = 1
    seg[6:10, 6:10, 6:11] = 1
    seg[5, 5, 5] = 2  # touches the large one by a corner
    small, large = ((1, 3),) * 3, ((6, 10), (6, 10), (6, 11))
    assert lesion_boxes(seg, (1,), components=True) == [large, small]
    assert lesion_boxes(seg, (1,), components=False) == [((1, 10), (1, 10), (1, 11))]
    assert lesion_boxes(seg, (1, 2), components=True)[0] == ((5, 10), (5, 10), (5, 11))
    assert lesion_boxes(seg, (3,), components=True) == lesion_boxes(seg, (3,), components=False) == []
    data = np.arange(12**3, dtype=np.float32).reshape(1, 12, 12, 12)
    assert np.array_equal(lesion_crop(data, large, (4, 4, 4)), data[:, 6:10, 6:10, 6:10])
    corner = lesion_crop(data, small, (6, 6, 6), -1)
    assert np.array_equal(corner[:, 1:, 1:, 1:], data[:, :5, :5, :5])
    assert (corner[:, 0] == -1).all()


def test_whole_images_are_resampled_linearly():
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None, None], (16, 10, 6))[None]
    assert np.allclose(whole_image(ramp, (8, 5, 9))[0, :, 0, 0], np.arange(8) * 2 + 0.5)
    labels = whole_image(ramp.astype(np.int16) % 3, (8, 8, 8), nearest=True)
    assert set(np.unique(labels)) <= {0, 1, 2}


MEDICALNET = ("nnunet_pretrain.networks.medicalnet.MedicalNet", {"depth": 10, "shortcut": "B", "features": 4}, [])


def classifier(network, classes=3, normalised=False):
    path, arguments, imported = NETWORKS.get(network, MEDICALNET)
    names = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    inner = dict(zip(names, (path, arguments, imported), strict=True))
    architecture = classifier_architecture(inner, classes, normalised)
    return architecture, get_network_from_plans(*architecture.values(), 1, 2, deep_supervision=False)


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet", "MedicalNet"])
def test_a_classifier_is_the_encoder_with_pooling_and_a_linear_layer(network):
    path, arguments, imported = NETWORKS.get(network, MEDICALNET)
    whole = get_network_from_plans(path, arguments, imported, 1, 2, deep_supervision=False)
    architecture, made = classifier(network)
    assert type(made) is Classifier
    assert set(made.state_dict()) - {"head.weight", "head.bias"} == {
        name for name in whole.state_dict() if name.startswith("encoder.")
    }
    image = torch.rand(2, 1, 16, 32, 32)
    expected = made.head(made.encoder(image)[-1].mean((2, 3, 4)))
    torch.testing.assert_close(made.eval()(image), made.head(made.encoder(image)[-1].mean((2, 3, 4))))
    assert expected.shape == (2, 3)
    parts = parts_of(made)
    assert {name for name, part in parts.items() if part == "heads"} == {"head.weight", "head.bias"}
    assert set(parts.values()) == {"encoder", "heads"}
    assert max(layers_of(made).values()) == layers_of(made)["head.weight"]
    plans = {
        "configurations": {"3d_fullres": {"architecture": architecture, "patch_size": [8, 8, 8]}},
        "nnunet_pretrain": {"classification": {}, "preset": "default"},
    }
    content = {"init_args": {"plans": plans, "configuration": "3d_fullres"}, "network_weights": {}}
    plain = without_classifier(content)["init_args"]["plans"]
    names = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    inner = dict(zip(names, (path, arguments, imported), strict=True))
    assert plain["configurations"]["3d_fullres"] == {"architecture": inner, "patch_size": [8, 8, 8]}
    assert plain["nnunet_pretrain"] == {"preset": "default"}
    assert classifier_architecture(architecture, 3) == architecture
    assert without_classifier(without_classifier(content)) == without_classifier(content)


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_normalised_readout_sees_what_tells_images_apart_and_not_what_they_share(network):
    _, made = classifier(network, normalised=True)
    _, plain = classifier(network)
    images = torch.rand(8, 1, 16, 32, 32)
    pooled = made.encoder(images)[-1].mean((2, 3, 4))
    scores = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(made.train()(images), made.head[1](scores), rtol=1e-3, atol=1e-4)
    assert parts_of(made)["head.0.running_mean"] == "heads"
    encoder = {name for name in made.state_dict() if name.startswith("encoder.")}
    assert encoder == {name for name in plain.state_dict() if name.startswith("encoder.")}
    made.head[0].momentum = 1.0  # the running statistics are those of the last batch
    made.head[0](pooled)
    running = (pooled - pooled.mean(0)) / (pooled.var(0) + 1e-5).sqrt()
    torch.testing.assert_close(made.eval()(images), made.head[1](running), rtol=1e-2, atol=1e-2)


def test_networks_without_an_encoder_are_refused():
    with pytest.raises(ValueError, match="no encoder with `output_channels`"):
        classifier("SegResNet")


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_the_encoder_is_transferred_bit_for_bit(network):
    content = checkpoint(network)
    del content["init_args"]["dataset_json"]["label_schemes"]
    architecture, made = classifier(network)
    facts = NetworkFacts(architecture, ("CT",), Outputs(("a", "b", "c")))
    settings = TransferSettings(checkpoint="c.pth", parts="encoder")
    report = transfer_weights(made, facts, pretrained_network(content), settings)
    own = made.state_dict()
    assert all(bits(own[name]) == bits(content["network_weights"][name]) for name in own if name.startswith("encoder."))
    assert report.share("encoder") == 1.0
    assert report.count("loaded", "heads") == 0
    assert set(report.heads) == {"a", "b", "c"}


def test_patches_around_lesions_can_be_divided():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert patch_of(40, (3.0, 1.0, 1.0), strides) == [14, 40, 40]
    assert patch_of(1, (3.0, 1.0, 1.0), strides) == [4, 8, 8]


CLASSES = {f"c{i}": frozenset({"rare"} if i < 4 else {"common"}) for i in range(24)}


def test_subsets_of_a_study_keep_every_class_and_are_nested():
    pool = sorted(CLASSES)
    sets = [set(subset(pool, 1, number, CLASSES)) for number in (2, 6, 12, 24)]
    assert all(small < large for small, large in pairwise(sets))
    for number, cases in zip((2, 6, 12, 24), sets, strict=True):
        assert len(cases) == number
        rare = sum("rare" in CLASSES[case] for case in cases)
        assert rare == pytest.approx(number / 6, abs=1)
        assert 0 < rare < number
    runs = design_runs(pool, (0.01, 0.5), 3, ("scratch",), CLASSES)
    assert {len(run.train) for run in runs} == {2, 12}
    assert all({name for case in run.train for name in CLASSES[case]} == {"rare", "common"} for run in runs)


def test_exchanging_arms_finds_what_differs():
    truth, good = made_up(80, 2, 1)
    bad = np.full_like(good, 0.5) + np.random.default_rng(2).normal(0, 0.01, (80, 1)) * [1, -1]
    cases = [str(i // 2) for i in range(80)]
    assert exchange_p(cases, truth, (good[None], good[None]), "AUC", 200) == 1.0
    assert exchange_p(cases, truth, (good[None], bad[None]), "AUC", 200) < 0.02
    assert exchange_p(cases, truth, (bad[None], bad[::-1][None]), "AUC", 200) > 0.05


def test_options_a_classification_does_not_have_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    with pytest.raises(ValueError, match="--task must be"):
        StudyOptions(1, path, task="detection")
    with pytest.raises(ValueError, match="--crop-mm must be left out"):
        StudyOptions(1, path, crop_mm=20)
    with pytest.raises(ValueError, match="name a fold"):
        CLASSIFICATION.check(StudyOptions(1, path, task="classification", test="imagesTs"), [])
    with pytest.raises(ValueError, match="cannot load weights"):
        CLASSIFICATION.check(StudyOptions(1, path, task="classification"), [ARMS["stock-weights"]])


def result(arm, number, seed, strength):
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(20):
        p = 1 / (1 + np.exp(-(strength * (1 if i % 2 else -1) + rng.normal())))
        examples.append(
            {"case": f"t{i}", "lesion": None, "component": None, "class": "ab"[i % 2], "probabilities": [1 - p, p]}
        )
    return {
        "arm": arm,
        "number_of_cases": number,
        "seed": seed,
        "scores": {"classes": ["a", "b"], "examples": examples},
        "AUC_by_epoch": [0.5, 0.6, 0.7 + strength / 10],
        "train_seconds": 1.0,
    }


def test_a_report_on_a_classification(tmp_path):
    (tmp_path / "runs").mkdir()
    for arm, strength in (("scratch", 0.2), ("pretrained", 2.0)):
        for seed in (0, 1):
            text = json.dumps(result(arm, 10, seed, strength))
            (tmp_path / f"runs/{arm}_{seed}.json").write_text(text, encoding="utf-8")
    text = write_report(tmp_path, 20, 1.0, CLASSIFICATION)
    entries = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["arms"]
    control, own = entries
    made = [result("pretrained", 10, seed, 2.0)["scores"]["examples"] for seed in (0, 1)]
    truth = np.arange(20) % 2
    areas = [auc(truth, np.array([e["probabilities"] for e in examples])) for examples in made]
    assert own["AUC"]["mean"] == pytest.approx(np.mean(areas))
    assert (own["AUC"]["seed_min"], own["AUC"]["seed_max"]) == (min(areas), max(areas))
    assert own["AUC"]["low"] <= own["AUC"]["mean"] <= own["AUC"]["high"]
    difference = own["against_scratch"]["AUC"]["difference"]
    assert difference["mean"] == pytest.approx(own["AUC"]["mean"] - control["AUC"]["mean"])
    assert difference["low"] > 0
    assert own["against_scratch"]["AUC"]["p"] < 0.05
    assert own["examples"] == {"a": 10, "b": 10}
    assert "| pretrained | 10 (50%) |" in text
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "arm,number_of_cases,seed,case,lesion,component,class,p_a,p_b"
    assert len(lines) == 1 + 4 * 20
