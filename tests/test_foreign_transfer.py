"""A file of every origin is planned for a target: what fits is loaded, and the plans can be built and trained from."""

import pytest
import torch
from foreign_networks import (
    ISOTROPIC,
    SMALL_STUNET,
    nnssl_checkpoint,
    plain_unet,
    randomised,
    saved,
    suprem_checkpoint,
    v1_file,
    v1_model,
    v1_plans,
    v1_stage,
    wrapped,
    write_pickle,
)
from nnunet_runs import SMALL, TARGET_LABELS
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_pretrain.networks.genesis_unet import GenesisUNet
from nnunet_pretrain.networks.stunet import STUNet
from nnunet_pretrain.phantom.datasets import write_phantom_target
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """nnU-Net's folders with one target."""
    root = tmp_path_factory.mktemp("foreign")
    write_phantom_target(root / "nnUNet_raw/Dataset940_Target", TARGET_LABELS, [80], [81], [], **SMALL)
    return {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}


@pytest.fixture
def plan(folders, monkeypatch):
    for variable, value in folders.items():
        monkeypatch.setenv(variable, value)

    def planned(path, **options):
        said = []
        made = plan_transfer(PlanOptions(dataset=940, checkpoint=path, num_processes=1, **options), said.append)
        return made, said

    return planned


def test_nnunet_v1_with_and_without_its_plans(plan, tmp_path):
    _, path = v1_file(tmp_path, ISOTROPIC)
    with pytest.raises(ValueError, match=r"does not say at which spacing or patch it was trained, .*--keep target"):
        plan(path)
    write_pickle(tmp_path / "any_name.bin.pkl", v1_plans({0: v1_stage([9, 9, 9], [16, 16, 16], ISOTROPIC["pools"])}))
    made, said = plan(path)
    assert [made.report.share(part) for part in ("encoder", "decoder")] == [1, 1]
    assert made.comparison.recommended == "pretrained"
    assert any(line.startswith("leakage: unknown") for line in said)


def test_nnssl_gives_its_encoder_and_takes_its_own_schedule(plan, tmp_path):
    architecture = plain_unet(residual=True)
    network = get_network_from_plans(*architecture.values(), 1, 1, deep_supervision=False)
    weights = {k: v for k, v in randomised(network).state_dict().items() if k.startswith("encoder.")}
    imported = architecture["_kw_requires_import"]
    content = nnssl_checkpoint(weights, "ResidualEncoderUNet", architecture["arch_kwargs"], imported, [9.0, 9.0, 9.0])
    path = saved(tmp_path / "nnssl.pth", content)
    with pytest.raises(ValueError, match=r"0.0% of the target's decoder would come from"):
        plan(path)
    made, _ = plan(path, parts="encoder")
    assert (made.report.share("encoder"), made.report.share("decoder")) == (1, 0)
    settings = made.transfer.read_text(encoding="utf-8")
    assert '"preset": "nnssl"' in settings


def test_suprems_segresnet_is_trained_without_deep_supervision_and_its_sigmoid_rows_are_taken(plan, tmp_path):
    nets = pytest.importorskip("monai.networks.nets")
    network = nets.SegResNet(
        in_channels=1, out_channels=32, init_filters=8, blocks_down=[1, 2, 2, 4], blocks_up=[1, 1, 1]
    )
    path = saved(tmp_path / "suprem.pth", suprem_checkpoint(wrapped(randomised(network).state_dict())))
    made, said = plan(path)
    assert "note: SegResNet is trained without deep supervision, which it does not offer" in said
    assert [made.report.share(part) for part in ("encoder", "decoder")] == [1, 1]
    assert made.report.heads == {
        "background": "0, as a sigmoid's background has no row of its own",
        "liver": "from liver",
        "kidneys": "from kidney_left and kidney_right",
    }
    assert made.comparison.recommended == "target"
    assert "spacing of 9 mm is 6.0 times away from the checkpoint's 1.5 mm" in made.comparison.reason


def test_suprems_u_net_has_a_body_and_no_head(plan, tmp_path):
    network = randomised(GenesisUNet(1, 4))
    weights = {f"module.backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("out_tr")}
    made, _ = plan(saved(tmp_path / "unet.pth", suprem_checkpoint(weights)), keep="target")
    assert [made.report.share(part) for part in ("encoder", "decoder", "heads")] == [1, 1, 0]
    assert set(made.report.heads.values()) == {"initialised, the checkpoint holds no head"}


def test_stunet_is_fitted_by_its_own_class(plan, tmp_path):
    network = randomised(STUNet(1, 4, **SMALL_STUNET))
    path = saved(tmp_path / "base_ep4k.model", v1_model(wrapped(network.state_dict())))
    made, _ = plan(path)
    assert [made.report.share(part) for part in ("encoder", "decoder")] == [1, 1]
    assert {t.part for t in made.report.tensors if t.status == "initialised"} <= {"heads"}


def test_plans_that_name_a_function_instead_of_a_network_are_refused_before_it_is_called(plan, tmp_path):
    from foreign_networks import v2_checkpoint

    architecture = {**plain_unet(), "network_class_name": "os.mkdir"}
    network = get_network_from_plans(*plain_unet().values(), 1, 2, deep_supervision=False)
    content = v2_checkpoint(
        network.state_dict(), architecture, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    )
    path = tmp_path / "bad.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"'os\.mkdir' is no network"):
        plan(path)
