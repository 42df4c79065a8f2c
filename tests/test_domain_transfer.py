"""One branch of many as an ordinary model: exported, inspected, transferred, and given to stock nnU-Net."""

import copy
import json
from functools import cache
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import SMALL
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from small_checkpoints import INTENSITY, checkpoint, no_path_of_this_machine, same_weights, save_as_trained

from nnunet_pretrain.checkpoints.branches import branch_names, chosen_branch, is_branched, ordinary
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.cli import main
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import TRAINER_VARIABLE, leaf
from nnunet_pretrain.networks.branches import BranchedNetwork
from nnunet_pretrain.networks.parts import parts_of, unaliased
from nnunet_pretrain.phantom.datasets import write_phantom_target
from nnunet_pretrain.planning.domain_plans import BRANCHED_NETWORK
from nnunet_pretrain.transfer.export import export
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer
from nnunet_pretrain.transfer.stock_weights import write_stock_weights

LIVER, HEART = "Dataset003_Liver", "Dataset007_Heart1.5"
LABELS = {
    LIVER: {"background": 0, "liver": 1, "liver tumor": 2},
    HEART: {"background": 0, "heart": 1},
}
WHOLE = {
    "background": 0,
    "Dataset003_Liver__liver": 1,
    "Dataset003_Liver__liver_tumor": 2,
    "Dataset007_Heart1_5__heart": 3,
}
CHANNELS = {LIVER: "CT", HEART: "MRI"}
SPACINGS = {LIVER: [3.0, 1.0, 1.0], HEART: [9.0, 9.0, 9.0]}
DICE = {LIVER: {"Dataset003_Liver__liver": 0.75, "Dataset003_Liver__liver_tumor": None}, HEART: {}}


def whole_dataset_json():
    own = {LIVER: (1, 2), HEART: (3,)}
    names = list(WHOLE)
    schemes = {
        domain: {
            "0": ["background", *(names[i] for other in own for i in own[other] if other != domain)],
            **{str(i): [names[i]] for i in ids},
        }
        for domain, ids in own.items()
    }
    cases = {
        f"{domain[:10]}_{i}": {
            "images": [f"/home/someone/{i}.nii.gz"],
            "label": f"labelsTr/{i}.nii.gz",
            "scheme": domain,
        }
        for domain in own
        for i in range(2)
    }
    return {
        "name": "Dataset910_MyDomains",
        "channel_names": {"0": "image"},
        "labels": WHOLE,
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "label_space": "domains",
        "label_schemes": schemes,
        "sources": [{"name": d, "cases": 2, "licence": "CC0", "citation": "", "url": "https://x"} for d in own],
        "dataset": {case: {**entry, "source": entry["scheme"]} for case, entry in cases.items()},
        "domains": {d: {"labels": LABELS[d], "channel_names": {"0": CHANNELS[d]}} for d in own},
    }


def branched(network="PlainConvUNet", branch="unet", clip=(0.5, 99.5)):
    """A checkpoint as nnUNetTrainerDomains writes it, of a tiny network with drawn weights; nothing is trained."""
    content = checkpoint(network)
    plans = content["init_args"]["plans"]
    configuration = plans["configurations"]["3d_fullres"]
    inner = configuration["architecture"]
    arguments = {
        "network_class_name": inner["network_class_name"],
        "arch_kwargs": inner["arch_kwargs"],
        "imported": inner["_kw_requires_import"],
        "branches": {domain: len(labels) for domain, labels in LABELS.items()},
        "branch": branch,
        "strides": inner["arch_kwargs"]["strides"],
    }
    configuration["architecture"] = {
        "network_class_name": BRANCHED_NETWORK,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    configuration.update(normalization_schemes=["ZScoreNormalization"], batch_dice=False)
    numbers = {
        domain: {
            "spacing": spacing,
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "foreground_intensity_properties_per_channel": {"0": dict(INTENSITY)},
        }
        for domain, spacing in SPACINGS.items()
    }
    plans.update(dataset_name="Dataset910_MyDomains", plans_name="nnUNetDomainPlans")
    plans["nnunet_pretrain"] = {"preset": "default", "domains": {"clip_percentiles": clip, "numbers": numbers}}
    torch.manual_seed(5)
    made = get_network_from_plans(BRANCHED_NETWORK, arguments, [], 1, len(WHOLE), deep_supervision=True)
    content["network_weights"] = made.state_dict()
    content["init_args"]["dataset_json"] = whole_dataset_json()
    extras = content["init_args"]["nnunet_pretrain"]
    extras["progress"] = {"epochs": [{"epoch": 11, "pseudo_dice": DICE}], "seen": []}
    extras["card"]["validation"] = {
        "foreground_mean": {"Dice": 0.5},
        "per_source": {d: {"cases": 1, "mean": {"x": {"Dice": 0.25}}, "foreground_mean": {}} for d in LABELS},
    }
    content["trainer_name"] = "nnUNetTrainerDomains"
    return content


def network_of(content, deep_supervision=False):
    """The network nnU-Net builds from a checkpoint's plans, with its weights loaded strictly."""
    arguments = content["init_args"]
    architecture = arguments["plans"]["configurations"]["3d_fullres"]["architecture"]
    outputs = len(arguments["dataset_json"]["labels"])
    network = get_network_from_plans(*architecture.values(), 1, outputs, deep_supervision=deep_supervision)
    network.load_state_dict(content["network_weights"])
    return network.eval()


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint where nnU-Net would, and returns the file."""
    return lambda content: save_as_trained(tmp_path / "trained", content)


def logits(network, image):
    with torch.no_grad():
        found = network(image)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("branch", ["unet", "simple"])
@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_branch_alone_computes_what_it_did_among_the_others(network, branch):
    content, image = branched(network, branch), torch.randn(2, 1, 16, 16, 16)
    deep_supervision = branch == "unet"
    whole = network_of(content, deep_supervision)
    assert isinstance(whole, BranchedNetwork)
    assert (is_branched(content), branch_names(content)) == (True, (LIVER, HEART))
    for number, domain in (("3", LIVER), ("007", HEART)):
        alone = ordinary(content, number)
        whole.route = domain
        wanted, found = logits(whole, image), logits(network_of(alone, deep_supervision), image)
        assert len(wanted) == (2 if deep_supervision else 1)
        assert all(torch.equal(w, f) for w, f in zip(wanted, found, strict=True))
        assert wanted[0].shape[1] == len(LABELS[domain])
        arguments = alone["init_args"]
        assert arguments["plans"]["dataset_name"] == domain
        assert arguments["plans"]["configurations"]["3d_fullres"]["spacing"] == SPACINGS[domain]
        assert arguments["dataset_json"]["labels"] == LABELS[domain]
        assert arguments["nnunet_pretrain"]["card"]["fingerprints"] == {
            "case_1": {"voxels": "ab", "sketch": "AAAAAAAAAAA="}
        }
        assert not is_branched(alone)
        if branch == "unet":
            assert list(alone["network_weights"]) == list(checkpoint(network)["network_weights"])


def test_a_source_of_a_merged_dataset_has_the_names_of_the_structures_it_stores():
    content = branched()
    del content["init_args"]["dataset_json"]["domains"]
    alone = ordinary(content, LIVER)["init_args"]["dataset_json"]
    assert alone["labels"] == {"background": 0, "Dataset003_Liver__liver": 1, "Dataset003_Liver__liver_tumor": 2}
    assert (alone["channel_names"], alone["numTraining"]) == ({"0": "image"}, 2)


def test_the_encoder_alone_belongs_to_the_network_it_was_taken_from():
    for branch in ("unet", "simple"):
        content = branched(branch=branch)
        alone = ordinary(content)
        architecture = alone["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]
        assert architecture["network_class_name"].endswith("PlainConvUNet")
        stock = checkpoint()["network_weights"]
        assert set(alone["network_weights"]) == {name for name in stock if name.startswith("encoder.")}
        assert all(torch.equal(t, content["network_weights"][n]) for n, t in alone["network_weights"].items())


def without(start):
    content = branched()
    content["network_weights"] = {n: t for n, t in content["network_weights"].items() if not n.startswith(start)}
    return content


@pytest.mark.parametrize(
    ("make", "branch", "message"),
    [
        (branched, "Dataset004_Hippocampus", r"no branch 'Dataset004_Hippocampus'; name one of Dataset003_Liver, Data"),
        (branched, "4", "no branch '4'; name one of"),
        (checkpoint, LIVER, "an ordinary network without branches; leave --branch out"),
        (lambda: without("encoder."), LIVER, "lacks 12 weights of its encoder, such as encoder.stages.0"),
        (lambda: without("encoder."), None, "weights of its encoder"),
        (lambda: without("branches.Dataset003_Liver."), LIVER, "weights of its branch of 'Dataset003_Liver'"),
    ],
)
def test_what_is_not_there_is_refused(make, branch, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        ordinary(make(), branch)
    with pytest.raises(ValueError, match=message):
        export(saved(make()), tmp_path / "out.safetensors", branch=branch, encoder_only=branch is None)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_ordinary_checkpoint_is_left_as_it_is_and_a_number_must_be_unique():
    content = checkpoint()
    assert ordinary(content) == content
    assert branch_names(content) == ()
    double = branched()
    branches = double["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["branches"]
    branches["Dataset003_Other"] = 2
    with pytest.raises(ValueError, match="2 branches '3'"):
        chosen_branch(double, "3")
    with pytest.raises(ValueError, match=r"branches for Dataset003_Other, but its dataset\.json knows only"):
        ordinary(double, LIVER)


def test_a_hostile_network_inside_the_branched_one_is_never_built(saved, tmp_path, capsys):
    content, touched = branched(), tmp_path / "touched"
    inner = content["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    inner["arch_kwargs"].update(nonlin="os.mkdir", nonlin_kwargs={"path": str(touched)})
    with pytest.raises(ValueError, match=r"os\.mkdir"):
        export(saved(content), tmp_path / "encoder.safetensors", encoder_only=True)
    lines = export(saved(content), tmp_path / "results", branch=LIVER)
    assert any("not checked" in line and "os.mkdir" in line for line in lines)
    assert main(["plan_transfer", "-d", "901", "-c", str(saved(content))]) == 2
    assert "os.mkdir" in capsys.readouterr().err
    assert not touched.exists()


def test_all_branches_go_into_one_safetensors_file_and_come_out_of_it_one_by_one(saved, tmp_path):
    content = branched()
    lines = export(saved(content), tmp_path / "all.safetensors")
    assert lines[-1].endswith("all.safetensors --branch NAME")
    assert no_path_of_this_machine((tmp_path / "all.safetensors").read_bytes())
    back = read_pretrained(tmp_path / "all.safetensors")
    assert "dataset" not in back["init_args"]["dataset_json"]
    assert same_weights(back["network_weights"], content["network_weights"])
    for domain in LABELS:
        direct, again = ordinary(content, domain), ordinary(back, domain)
        assert same_weights(direct["network_weights"], again["network_weights"])
        for key in ("plans", "dataset_json"):
            wanted = json.loads(json.dumps(direct["init_args"][key]))
            wanted.pop("nnunet_pretrain", None)
            found = {k: v for k, v in again["init_args"][key].items() if k != "nnunet_pretrain"}
            assert found == wanted
    assert json.loads(json.dumps(read_card(tmp_path / "all.safetensors").domains)) == json.loads(
        json.dumps(read_card(saved(content)).domains)
    )


@pytest.mark.parametrize("name", ["results", "model.zip"])
def test_stock_nnunet_is_given_one_branch(name, saved, tmp_path):
    source = saved(branched())
    (source.parent / "validation").mkdir()
    (source.parent / "validation/summary.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"with --branch: {LIVER}, {HEART}"):
        export(source, tmp_path / name)
    lines = export(source, tmp_path / name, branch=LIVER)
    assert "clip yours first, with nnunet_pretrain clip --percentiles 0.5 99.5" in lines[-1]
    assert not any("installed" in line or "not checked" in line for line in lines)


def test_both_branches_go_into_one_results_folder_and_predict_like_the_whole_network(saved, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    content = branched(clip=None)
    source, image = saved(content), torch.randn(1, 24, 20, 16)
    (source.parent / "validation").mkdir()
    (source.parent / "validation/summary.json").write_text("{}", encoding="utf-8")
    whole = network_of(content)
    for domain in LABELS:
        lines = export(source, tmp_path / "results", branch=domain)
        assert not any("clip" in line for line in lines)
        model = tmp_path / "results" / domain / "nnUNetTrainer__nnUNetDomainPlans__3d_fullres"
        files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
        assert files == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth"}
        assert read_json(model / "dataset.json")["labels"] == LABELS[domain]
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
        found = predictor.predict_logits_from_preprocessed_data(image)
        whole.route = domain
        predictor.network, predictor.list_of_parameters = whole, [content["network_weights"]]
        assert torch.equal(found, predictor.predict_logits_from_preprocessed_data(image))
        assert found.shape == (len(LABELS[domain]), *image.shape[1:])
        assert found.std() > 0


def test_the_encoder_is_written_for_transfers_and_for_nnssl(saved, tmp_path):
    source = saved(branched(branch="simple"))
    for name, form in (("encoder.safetensors", None), ("encoder.pth", "nnssl")):
        export(source, tmp_path / name, encoder_only=True, form=form)
        back = read_pretrained(tmp_path / name)
        expected = ordinary(branched(branch="simple"))["network_weights"]
        found = {n: t for n, t in back["network_weights"].items() if n.startswith("encoder.")}
        assert same_weights(found, expected)
    assert "the encoder alone" in describe(read_card(tmp_path / "encoder.safetensors"))


def test_the_card_shows_every_domain(saved, tmp_path, capsys):
    content = branched()
    assert main(["inspect", str(saved(content))]) == 0
    text = capsys.readouterr().out
    parts = {
        "encoder": sum(p.numel() for p in network_of(content).encoder.parameters()),
        **{
            d: sum(p.numel() for p in b.parameters())
            for d, b in zip(LABELS, network_of(content).branches.values(), strict=True)
        },
    }
    assert f"  encoder        {parts['encoder']:,} parameters, shared by 2 domains" in text
    for domain in LABELS:
        assert f"  domain         {domain}: branch of {parts[domain]:,} parameters" in text
    assert "spacing 9 x 9 x 9 mm, MRI: ZScoreNormalization" in text
    assert "labels 0 background, 1 liver, 2 liver tumor" in text
    assert "pseudo Dice Dataset003_Liver__liver 0.750\n" in text
    card = read_card(saved(content))
    assert card.parameters == sum(parts.values())
    export(saved(content), tmp_path / "liver.safetensors", branch="3")
    alone = describe(read_card(tmp_path / "liver.safetensors"))
    assert f"taken from     Dataset910_MyDomains with the domains {LIVER}, {HEART}: branch {LIVER}" in alone
    assert "clipped to its percentiles 0.5 and 99.5" in alone
    assert "pseudo Dice    Dataset003_Liver__liver 0.750" in alone
    assert f"validation     {LIVER}" in alone
    assert HEART not in alone.split("made with")[1]


TARGET = {"liver": ("liver", "liver_tumor", "hepatic_vessel"), "spleen": ("spleen",), "kidneys": ("kidney_left",)}
MED3D = {
    "description": "Med3D's ratio: new layers learn 100 times as fast",
    "training": {"deep_supervision": True},
    "transfer": {"initial_lr": 1e-3, "weight_decay": 1e-3, "warmup_epochs": 3, "num_epochs": 12},
    "fine_tuning": {"decoder_lr_factor": 100, "heads_lr_factor": 100},
}


RATIOS = {
    "base rate for the encoder": (1e-3, {"decoder_lr_factor": 100, "heads_lr_factor": 100}),
    "base rate for the new layers": (1e-1, {"encoder_lr_factor": 0.01}),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """nnU-Net's folders with a target of two channels and other classes than the checkpoint's."""
    root = tmp_path_factory.mktemp("domains")
    raw = root / "nnUNet_raw/Dataset940_Target"
    write_phantom_target(raw, TARGET, [80], [81], [], **SMALL)
    for image in sorted((raw / "imagesTr").glob("*_0000.nii.gz")):
        loaded = nib.load(image)
        second = nib.Nifti1Image(np.asanyarray(loaded.dataobj)[::-1].copy(), loaded.affine)
        nib.save(second, image.with_name(image.name.replace("_0000", "_0001")))
    write_json(raw / "dataset.json", {**read_json(raw / "dataset.json"), "channel_names": {"0": "T1", "1": "CT"}})
    write_json(root / "med3d.json", MED3D)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv(TRAINER_VARIABLE, str(leaf("trainers")))
        yield root


@pytest.fixture(scope="module")
def plan(target):
    """Plans a transfer from a tiny checkpoint; what several tests ask for is planned once."""

    @cache
    def planned(kind="unet", **options):
        said, name = [], "_".join([kind, *map(str, options.values())])
        path = save_as_trained(target / f"trained/{name}", branched(branch=kind))
        weights = target / f"{name}.pth"
        fixed = {"preset": str(target / "med3d.json"), "num_processes": 1, "weights": weights}
        names = {} if kind == "unet" and "keep" not in options else {"name": name}  # no plans in place of others
        return plan_transfer(PlanOptions(940, path, **fixed, **names, **options), said.append), said, weights

    return planned


def settings_of(path):
    return read_json(path)["nnunet_pretrain"]


@pytest.mark.slow
def test_a_branch_is_transferred_with_its_own_label_names(plan):
    made, said, _ = plan(branch="3")
    assert made.transfer.stem == "nnUNetTransferPlans_Liver"
    transfer = settings_of(made.transfer)["transfer"]
    assert (transfer["branch"], transfer["parts"]) == (LIVER, "all")
    assert transfer["heads"] == {"background": ["background"], "liver": ["liver"]}
    assert "branch" not in settings_of(made.scratch)["transfer"]
    assert read_json(made.transfer)["configurations"]["3d_fullres"]["spacing"] == SPACINGS[LIVER]
    assert [made.report.share(part) for part in ("encoder", "decoder")] == [1, 1]
    assert made.report.heads["liver"] == "from liver"
    assert "initialised" in made.report.heads["spleen"]
    assert any("3 x 1 x 1" in line and line.startswith("spacing") for line in said)
    assert any("clip yours first" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"keep": "pretrained"}, {"kind": "simple"}])
def test_without_a_branch_only_the_encoder_is_taken_and_the_target_keeps_its_plan(options, plan):
    made, said, _ = plan(**options)
    kept = "keep" in options
    transfer = settings_of(made.transfer)["transfer"]
    assert "branch" not in transfer
    assert (transfer["parts"], transfer["heads"]) == ("encoder", {})
    assert [made.report.share(part) for part in ("decoder", "heads")] == [0, 0]
    assert made.report.used_share("encoder") == 1
    notes = [line for line in said if "only the shared encoder is taken" in line]
    assert len(notes) == 1
    assert f"--branch takes one of {LIVER}, {HEART}" in notes[0]
    assert f"with spacing and intensities of {LIVER if kept else 'the target'};" in notes[0]
    configuration = read_json(made.transfer)["configurations"]["3d_fullres"]
    assert (configuration["spacing"] == SPACINGS[LIVER]) is kept
    architecture = configuration["architecture"]
    assert architecture["network_class_name"].endswith("PlainConvUNet")


@pytest.mark.slow
def test_a_simple_branch_is_transferred_without_deep_supervision(plan):
    made, said, _ = plan(kind="simple", branch=LIVER)
    assert made.report.share("encoder") == 1
    assert made.report.heads["liver"] == "from liver"
    assert settings_of(made.transfer)["training"]["deep_supervision"] is False
    assert any("SimpleBranchNetwork is trained without deep supervision" in line for line in said)


def test_wrong_branches_and_heads_without_a_branch_are_refused_before_anything_is_written(target, saved):
    source, wrong = saved(branched()), target / "nnUNet_preprocessed/Dataset941_Missing"
    for options, message in (
        ({"branch": "5"}, "no branch '5'; name one of"),
        ({"heads": {"liver": ("liver",)}}, f"heads belong to a branch; choose one with --branch: {LIVER}"),
        ({"weights": wrong / "weights.safetensors"}, "end the name in .pth"),
        ({"weights": source}, "is there already; choose another name"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_transfer(PlanOptions(941, source, **options))
    with pytest.raises(ValueError, match="an ordinary network without branches"):
        plan_transfer(PlanOptions(941, saved(checkpoint()), branch=LIVER))
    assert not wrong.exists()


STEM = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.mark.slow
@pytest.mark.parametrize("branch", [None, "3"])
def test_stock_nnunet_loads_the_written_weights_for_other_classes_and_channels(branch, plan):
    made, _, path = plan(branch=branch) if branch else plan(keep="pretrained")
    architecture = read_json(made.scratch)["configurations"]["3d_fullres"]["architecture"]
    torch.manual_seed(1)
    network = get_network_from_plans(*architecture.values(), 2, 1 + len(TARGET), deep_supervision=True)
    before = copy.deepcopy(network.state_dict())
    load_pretrained_weights(network, str(path))
    loaded, source = network.state_dict(), ordinary(branched(), LIVER)["network_weights"]
    exact = [name for name in source if unaliased(name).startswith("encoder.") and unaliased(name) != STEM]
    assert len(exact) == 4 * (12 - 1)
    assert all(torch.equal(loaded[name], source[name]) for name in exact)
    assert torch.equal(loaded[STEM][:, 1:], source[STEM])  # the target's second channel is the domain's "CT"
    assert not loaded[STEM][:, 0].any()
    decoder = [n for n in source if unaliased(n).startswith("decoder.") and ".seg_layers." not in n]
    assert all(torch.equal(loaded[name], source[name]) for name in decoder) is (branch is not None)
    heads = [name for name in loaded if ".seg_layers." in name]
    assert all(torch.equal(loaded[name], before[name]) for name in heads)  # stock nnU-Net never takes heads
    report = read_json(path.with_name(f"{path.stem}_report.json"))
    listed = {tensor["name"]: tensor["status"] for tensor in report["tensors"]}
    assert set(listed) == set(dict(network.named_parameters()))
    assert listed[STEM] == "adapted"
    assert {listed[name] for name in decoder if name in listed} == {"loaded" if branch else "initialised"}
    assert read_pretrained(path)["trainer_name"] == "nnUNetTrainer"
    assert read_card(path).trainer == "nnUNetTrainer"


@pytest.mark.slow
def test_written_weights_depend_on_checkpoint_and_seed_alone_and_too_little_is_refused(plan, target, tmp_path):
    made, _, path = plan()
    dataset_json = read_json(target / "nnUNet_raw/Dataset940_Target/dataset.json")
    plans, again, content = read_json(made.transfer), tmp_path / "again.pth", ordinary(branched())
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    write_stock_weights(again, content, plans, "3d_fullres", dataset_json)
    assert torch.equal(torch.rand(1), expected)
    assert same_weights(*(torch.load(p, weights_only=True)["network_weights"] for p in (path, again)))
    plans["nnunet_pretrain"]["training"]["seed"] = 7
    write_stock_weights(tmp_path / "seven.pth", content, plans, "3d_fullres", dataset_json)
    first, other = (torch.load(p, weights_only=True) for p in (path, tmp_path / "seven.pth"))
    seeds = [file["init_args"]["nnunet_pretrain"]["seed"] for file in (first, other)]
    assert seeds == [0, 7]
    name = "decoder.stages.0.convs.0.conv.weight"
    assert not torch.equal(first["network_weights"][name], other["network_weights"][name])
    for start, message in (
        ("encoder.", r"0\.0% of the target's encoder"),
        ("encoder.stages.2", "of the target's encoder"),
    ):
        kept = {n: t[:1] if n.startswith(start) else t for n, t in content["network_weights"].items()}
        with pytest.raises(ValueError, match=message):
            write_stock_weights(
                tmp_path / "little.pth", {**content, "network_weights": kept}, plans, "3d_fullres", dataset_json
            )
    assert not list(tmp_path.glob("*little*"))


def trainer_of(target, made, **settings):
    """A trainer of the planned target, with its weights loaded and its optimiser made."""
    from nnunetv2.run.run_training import get_trainer_from_args

    plans = read_json(made.transfer)
    for key, changes in settings.items():
        plans["nnunet_pretrain"][key].update(changes)
    name = f"Changed{made.transfer.stem}"
    folder = target / "nnUNet_preprocessed/Dataset940_Target"
    write_json(folder / f"{name}.json", {**plans, "plans_name": name})
    data = folder / plans["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir(exist_ok=True)
    (data / "case_0080.b2nd").touch()  # nnU-Net looks for the kind of files; nothing is read
    trainer = get_trainer_from_args("940", "3d_fullres", 0, "nnUNetTrainerTransfer", name, device=torch.device("cpu"))
    trainer._starts = True  # as at the start of a training: weights are loaded before the optimiser is made
    trainer.initialize()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("way", RATIOS)
def test_new_layers_learn_a_hundred_times_as_fast_in_every_epoch(way, plan, target):
    rate, factors = RATIOS[way]
    neutral = {"encoder_lr_factor": 1, "decoder_lr_factor": 1, "heads_lr_factor": 1}
    trainer = trainer_of(target, plan()[0], training={"initial_lr": rate}, fine_tuning=neutral | factors)
    name = "encoder.stages.2.0.convs.0.conv.weight"
    assert torch.equal(trainer.network.state_dict()[name], branched()["network_weights"][name])
    part, names = parts_of(trainer.network), {id(p): n for n, p in trainer.network.named_parameters()}
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        groups = trainer.optimizer.param_groups
        by_part = {part[names[id(p)]]: group["lr"] for group in groups for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(names)
        assert by_part["decoder"] == by_part["heads"] == pytest.approx(100 * by_part["encoder"], rel=1e-12)
        rates.append(by_part["encoder"])
    assert rates[:4] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert len(rates) == 12
    assert all(a > b > 0 for a, b in pairwise(rates[3:]))


@pytest.mark.slow
def test_the_trainer_takes_the_planned_branch(plan, target):
    source = ordinary(branched(), LIVER)["network_weights"]
    loaded = trainer_of(target, plan(branch="3")[0]).network.state_dict()
    name = "decoder.stages.0.convs.0.conv.weight"
    assert torch.equal(loaded[name], source[name])
    assert torch.equal(loaded["decoder.seg_layers.1.weight"][:2], source["decoder.seg_layers.1.weight"][:2])


@pytest.mark.slow
def test_the_command_line_names_the_stock_command(target, saved, tmp_path, capsys):
    source, output = saved(branched()), tmp_path / "weights.pth"
    arguments = ["plan_transfer", "-d", "940", "-c", str(source), "--branch", "7", "-np", "1"]
    assert main([*arguments, "--head", "spleen=heart", "--write-weights", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"-p nnUNetTransferPlans_Heart1_5__scratch -pretrained_weights {output}" in said
    plans = read_json(target / "nnUNet_preprocessed/Dataset940_Target/nnUNetTransferPlans_Heart1_5.json")
    assert plans["nnunet_pretrain"]["transfer"]["branch"] == HEART
    assert plans["configurations"]["3d_fullres"]["spacing"] == SPACINGS[HEART]
    written = torch.load(output, weights_only=True)["network_weights"]["decoder.seg_layers.1.weight"]
    taught = ordinary(branched(), HEART)["network_weights"]["decoder.seg_layers.1.weight"]
    assert torch.equal(written[2], taught[1])
    assert main(["export", "-c", str(source), "-o", str(tmp_path / "m.zip"), "--branch", "8"]) == 2
    assert "no branch '8'" in capsys.readouterr().err
