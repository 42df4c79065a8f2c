"""The command line: output, exit codes and one clear line for a user's mistake."""

import json

import pytest

from nnunet_pretrain.cli import main


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_sources_lists_names_cases_licences_and_structures(capsys):
    assert main(["sources"]) == 0
    out = capsys.readouterr().out
    for expected in ("BTCV  30 cases", "KiTS23  489 cases, CC BY-NC-SA 4.0", "TotalSegmentatorV2", "kidney_cyst"):
        assert expected in out
    assert main(["sources", "kits23"]) == 0
    out = capsys.readouterr().out
    assert "1: kidney_left or kidney_right" in out
    assert "IPL" in out


def test_merge_then_plan_is_said(nnunet, sources, capsys):
    assert main(["merge", "-d", "900", "-n", "M", "--source", f"BTCV={sources / 'BTCV'}", "-np", "1"]) == 0
    assert "then: nnunet_pretrain plan -d 900" in capsys.readouterr().out
    assert json.loads((nnunet / "nnUNet_raw/Dataset900_M/dataset.json").read_text(encoding="utf-8"))["numTraining"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "-d", "900", "-n", "M", "--source", "BTCV"], "--source must be NAME=PATH, got 'BTCV'"),
        (["merge", "-d", "900", "-n", "M", "--source", "BTCV=/no/such"], "folder /no/such not found"),
        (["merge", "-d", "900", "-n", "M", "--source", "BTVC=."], "unknown source 'BTVC'"),
        (["merge", "-d", "1000", "-n", "M"], "between 1 and 999, got 1000"),
        (["merge", "-d", "900", "-n", "M", "--source", "BTCV={sources}/BTCV", "-np", "0"], "-np must be at least 1"),
        (["plan", "-d", "900"], "no dataset with id 900"),
        (["plan", "-d", "Dataset900_X"], "dataset 'Dataset900_X' not found"),
        (["plan", "-d", "900", "--preset", "huge"], "unknown preset 'huge'; known are default"),
        (["plan_transfer", "-d", "901", "-c", "/no/such.pth"], "checkpoint /no/such.pth not found"),
        (["inspect", "/no/such.pth"], "checkpoint /no/such.pth not found"),
        (["sources", "nosuch"], "unknown source 'nosuch'"),
        (["demo", "--cases", "1"], "--cases must be at least 2"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(nnunet, sources, capsys, arguments, message):
    assert main([argument.format(sources=sources) for argument in arguments]) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize("arguments", [[], ["merge"], ["merge", "-d", "", "-n", "M"], ["fly"], ["plan", "--typo", "1"]])
def test_wrong_options_give_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_variable_that_is_not_set_is_named(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["merge", "-d", "900", "-n", "M", "--source", "BTCV=."]) == 2
    assert "nnUNet_raw is not set; export nnUNet_raw=" in error_line(capsys)


def test_plan_refuses_a_dataset_without_schemes(nnunet, capsys):
    folder = nnunet / "nnUNet_raw/Dataset005_Prostate"
    folder.mkdir()
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "prostate": 1}}')
    assert main(["plan", "-d", "5"]) == 2
    assert "make the dataset with `nnunet_pretrain merge`" in error_line(capsys)
