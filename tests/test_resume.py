"""Merges that are killed, interrupted, or run again: what is kept, what is redone, and that nothing differs after."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import nnunet_folders

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion import MergeOptions, merge
from nnunet_pretrain.files import read_json

KILLS = 20
CASES = 3
PATIENCE_S = 10
HEAD = (
    "title: t\nlicence: none\ncitation: none\nlayouts: [{images: 'ct/{case}.nii.gz', labels: 'labels/{case}.nii.gz'}]\n"
)
SOURCES = {
    "First": f"{HEAD}name: First\nprefix: F\nlabels: {{1: aorta, 2: stomach}}\n",
    "Second": f"{HEAD}name: Second\nprefix: S\nlabels: {{1: colon, 2: bladder}}\n",
}


def write_case(folder, case, seed, shape):
    """Writes noise with two blocks of labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:6, 2:6, 2:6], labels[6:8, 2:6, 2:6] = 1, 2
    hu = rng.integers(-1000, 1000, shape).astype(np.int16)
    for kind, array in (("ct", hu), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 3, 1])), folder / kind / f"{case}.nii.gz")


def write_sources(root, cases, shape):
    """Writes two sources, and returns what `merge` takes."""
    pairs = []
    for position, (name, text) in enumerate(SOURCES.items()):
        for case in range(cases):
            write_case(root / name, f"{case:02d}", 100 * position + case, shape)
        (root / f"{name}.yaml").write_text(text)
        pairs.append((str(root / f"{name}.yaml"), root / name))
    return pairs


def content_of(folder):
    """Returns every file of a folder, hidden ones too, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_of(folder):
    """Returns inode and modification time of every label."""
    found = {path.name.removesuffix(".nii.gz"): path.stat() for path in (folder / "labelsTr").iterdir()}
    return {case: (stat.st_ino, stat.st_mtime_ns) for case, stat in found.items()}


def redone(before, after):
    """Returns the cases whose label was written anew."""
    return {case for case, facts in after.items() if before.get(case) != facts}


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    """A merge of a second or two on the command line, and what comes of it without interruption."""
    root = tmp_path_factory.mktemp("resume")
    pairs = write_sources(root / "sources", 12, (96, 96, 40))
    environment = {**os.environ, **nnunet_folders(root)}
    command = [sys.executable, "-m", "nnunet_pretrain", "merge", "-d", "900", "-n", "M", "-np", "2"]
    command += [f"--source={yaml}={folder}" for yaml, folder in pairs]

    def start(*further):
        return subprocess.Popen(
            [*command, *further],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    raw, seconds = root / "nnUNet_raw", []
    for _ in range(2):  # the faster one counts: a time taken on a busy machine lets runs end before their kill
        empty(raw)
        started = time.monotonic()
        process = start()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        seconds.append(time.monotonic() - started)
    return SimpleNamespace(start=start, raw=raw, seconds=min(seconds), expected=content_of(raw))


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def living(group):
    """Returns the processes of a group that have not ended (nobody may be there to collect those that have)."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                state, _, process_group = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state not in "ZX":
            found.append(int(name))
    return found


def assert_all_end(group):
    deadline = time.monotonic() + PATIENCE_S
    while living(group):
        assert time.monotonic() < deadline, f"still running: {living(group)}"
        time.sleep(0.02)


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for left-over processes in /proc")


@needs_proc
def test_a_killed_merge_is_finished_by_resume_as_if_nothing_had_been(workload):
    """Kill -9 at a random moment of the run, twenty times; then --resume at once."""
    rng = np.random.default_rng(0)
    moments = (np.arange(KILLS) + rng.random(KILLS)) / KILLS * workload.seconds
    unfinished = 0
    for moment in rng.permutation(moments):
        empty(workload.raw)
        process = workload.start()
        time.sleep(moment)
        process.kill()
        process.communicate()
        unfinished += not (workload.raw / "Dataset900_M").exists()
        resumed = workload.start("--resume")  # at once, while orphans may still be ending
        _, errors = resumed.communicate(timeout=60)
        assert resumed.returncode == 0, errors
        assert_all_end(process.pid)
        assert_all_end(resumed.pid)
        found = content_of(workload.raw)
        assert sorted(found) == sorted(workload.expected), moment
        assert [name for name in found if found[name] != workload.expected[name]] == [], moment
    assert unfinished >= KILLS / 2


@needs_proc
@pytest.mark.parametrize("records", [1, 12])
def test_ctrl_c_ends_with_130_and_one_line(workload, records):
    empty(workload.raw)
    process = workload.start()
    written = workload.raw / ".partial-Dataset900_M/records"
    while len(list(written.glob("[!.]*.json"))) < records:  # of 24 cases
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "nnunet_pretrain merge: interrupted"
    assert_all_end(process.pid)
    assert not (workload.raw / "Dataset900_M").exists()
    resumed = workload.start("--resume")
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert content_of(workload.raw) == workload.expected


@pytest.fixture
def small(nnunet, tmp_path):
    """A finished merge of two small sources."""
    pairs = write_sources(tmp_path / "sources", CASES, (12, 11, 10))
    folder = merge(900, "M", pairs)

    def resume(**options):
        lines = []
        assert merge(900, "M", pairs, MergeOptions(resume=True, **options), lines.append) == folder
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        return lines

    return SimpleNamespace(
        folder=folder,
        resume=resume,
        root=tmp_path / "sources",
        pairs=pairs,
        before=files_of(folder),
        bytes=content_of(folder),
    )


def test_resume_of_a_finished_merge_redoes_nothing(small):
    lines = small.resume()
    assert f"{2 * CASES} of {2 * CASES} cases are there already and unchanged" in lines
    assert redone(small.before, files_of(small.folder)) == set()
    assert content_of(small.folder) == small.bytes
    small.resume(num_processes=2)
    assert redone(small.before, files_of(small.folder)) == set()


def test_without_resume_an_existing_dataset_is_refused_or_made_anew(small):
    with pytest.raises(ValueError, match="replace it with --overwrite, or update it with --resume"):
        merge(900, "M", small.pairs)
    merge(900, "M", small.pairs, MergeOptions(overwrite=True))
    assert redone(small.before, files_of(small.folder)) == set(small.before)
    assert content_of(small.folder) == small.bytes


@pytest.mark.parametrize("kind", ["ct", "labels"])
def test_only_the_case_whose_input_changed_is_redone(small, kind):
    path = small.root / f"First/{kind}/02.nii.gz"
    image = nib.load(path)
    array = np.array(image.dataobj)
    array[6:8, 2:6, 2:6] = 1
    nib.save(nib.Nifti1Image(array, image.affine), path)
    small.resume()
    assert redone(small.before, files_of(small.folder)) == {"F_02"}
    counts = read_json(small.folder / "manifest.json")["cases"]["F_02"]["voxels"]
    assert counts["1"] == (96 if kind == "labels" else 64)


def test_an_input_of_equal_size_and_other_content_is_noticed(small):
    path = small.root / "First/labels/02.nii.gz"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in gzip's header
    path.write_bytes(content)
    small.resume()
    assert redone(small.before, files_of(small.folder)) == {"F_02"}


def test_a_touched_but_equal_input_is_not_redone(small):
    for path in small.root.rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    small.resume()
    assert redone(small.before, files_of(small.folder)) == set()


def test_a_removed_case_goes_and_a_new_one_comes(small):
    (small.root / "Second/ct/01.nii.gz").unlink()
    (small.root / "Second/labels/01.nii.gz").unlink()
    write_case(small.root / "Second", "77", 5, (12, 11, 10))
    small.resume()
    after = files_of(small.folder)
    assert redone(small.before, after) == {"S_77"}
    assert set(after) == set(small.before) - {"S_01"} | {"S_77"}
    assert set(read_json(small.folder / "dataset.json")["dataset"]) == set(after)
    assert not list(small.folder.rglob("S_01*"))


def test_a_source_left_out_goes(small):
    small.pairs.pop()
    small.resume()
    assert set(files_of(small.folder)) == {f"F_0{i}" for i in range(CASES)}
    assert [source["name"] for source in read_json(small.folder / "dataset.json")["sources"]] == ["First"]


@pytest.mark.parametrize("rule", ["also_background: [aorta]", "known_absent: [bladder]", "unknown_if_absent: all"])
def test_a_changed_rule_redoes_the_cases_of_its_source(small, rule):
    (small.root / "First.yaml").write_text(f"{SOURCES['First']}{rule}\n")
    small.resume()
    assert redone(small.before, files_of(small.folder)) == {f"F_0{i}" for i in range(CASES)}
    assert content_of(small.folder) == content_of(merge(901, "Anew", small.pairs)) | {
        name: (small.folder / name).read_bytes() for name in ("dataset.json", "report.html")
    }


def test_other_facts_of_a_source_redo_nothing(small):
    (small.root / "First.yaml").write_text(f"{SOURCES['First'].replace('licence: none', 'licence: CC0')}notes: new\n")
    small.resume()
    assert redone(small.before, files_of(small.folder)) == set()
    assert read_json(small.folder / "dataset.json")["sources"][0]["licence"] == "CC0"


def test_splitting_pairs_redoes_every_case(small):
    small.resume(split_paired=True)
    assert redone(small.before, files_of(small.folder)) == set(small.before)


def test_what_was_damaged_in_a_finished_dataset_is_redone(small):
    (small.folder / "labelsTr/F_00.nii.gz").write_bytes(b"")
    (small.folder / "labelsTr/F_01.nii.gz").unlink()
    (small.folder / "report/S_02.png").write_bytes(b"no picture")
    (small.folder / "dataset.json").write_text("{")
    (small.folder / "labelsTr/.partial-x-F_02.nii.gz").write_bytes(b"left over")
    (small.folder / "somebodys_note.txt").write_text("left over")
    small.resume()
    assert redone(small.before, files_of(small.folder)) == {"F_00", "F_01", "S_02"}
    assert content_of(small.folder) == small.bytes


@pytest.mark.parametrize("name", ["manifest.json", "fingerprints.json"])
@pytest.mark.parametrize("content", [b'{"cases"', b"[]", b'{"cases": {"F_00": {"case": "F_00"}}}', None])
def test_a_damaged_manifest_costs_work_but_not_the_dataset(small, name, content):
    (small.folder / name).unlink() if content is None else (small.folder / name).write_bytes(content)
    small.resume()
    assert content_of(small.folder) == small.bytes


@pytest.fixture
def interrupted(small, monkeypatch):
    """The same merge, interrupted when all cases were converted."""

    def stop(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[merge.__module__]._Run, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            merge(900, "M", small.pairs, MergeOptions(overwrite=True))
    partial = small.folder.with_name(f".partial-{small.folder.name}")
    assert len(list((partial / "records").iterdir())) == 2 * CASES
    assert content_of(small.folder) == small.bytes  # the finished dataset was not touched
    return SimpleNamespace(partial=partial, before=files_of(partial))


def test_what_was_converted_before_an_interruption_is_kept(small, interrupted):
    small.resume()
    assert redone(interrupted.before, files_of(small.folder)) == set()
    assert content_of(small.folder) == small.bytes


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'{"case": "F_01"}', b"\xff\xfe", None])
def test_a_damaged_record_is_redone(small, interrupted, content):
    record = interrupted.partial / "records/F_01.json"
    record.unlink() if content is None else record.write_bytes(content)
    small.resume()
    assert redone(interrupted.before, files_of(small.folder)) == {"F_01"}
    assert content_of(small.folder) == small.bytes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", {}),
        ("inputs", {"/no/such": {}}),
        ("inputs", 3),
        ("outputs", {}),
        ("outputs", None),
        ("rules", "x"),
        ("case", "F_00"),
    ],
)
def test_a_record_that_makes_no_sense_is_redone(small, interrupted, key, value):
    record = interrupted.partial / "records/F_01.json"
    record.write_text(json.dumps({**read_json(record), key: value}))
    small.resume()
    assert "F_01" in redone(interrupted.before, files_of(small.folder))
    assert content_of(small.folder) == small.bytes


def test_damaged_outputs_of_an_interrupted_merge_are_redone(small, interrupted):
    (interrupted.partial / "labelsTr/F_00.nii.gz").write_bytes(b"")
    (interrupted.partial / "labelsTr/S_02.nii.gz").unlink()
    (interrupted.partial / "labelsTr/.partial-abc-S_02.nii.gz").write_bytes(b"x")
    small.resume()
    assert redone(interrupted.before, files_of(small.folder)) == {"F_00", "S_02"}
    assert content_of(small.folder) == small.bytes


def test_without_resume_an_interrupted_merge_begins_anew(small, interrupted):
    merge(900, "M", small.pairs, MergeOptions(overwrite=True))
    assert redone(interrupted.before, files_of(small.folder)) == set(interrupted.before)
    assert [path.name for path in small.folder.parent.iterdir()] == [small.folder.name]


def test_a_repaired_case_leaves_quarantine_and_a_spoiled_one_enters_it(small):
    first, second = small.root / "First/labels/00.nii.gz", small.root / "Second/labels/00.nii.gz"
    good = first.read_bytes()
    first.write_bytes(good[:100])
    small.resume()
    assert list(read_json(small.folder / "quarantine.json")) == ["F_00"]
    assert not list(small.folder.rglob("F_00*"))
    first.write_bytes(good)
    second.write_bytes(b"")
    small.resume()
    assert list(read_json(small.folder / "quarantine.json")) == ["S_00"]
    assert redone(small.before, files_of(small.folder)) == {"F_00"}


def test_the_command_line_tells_what_it_kept(small, capsys):
    (small.folder / "labelsTr/F_01.nii.gz").unlink()
    sources = [f"--source={yaml}={folder}" for yaml, folder in small.pairs]
    assert main(["merge", "-d", "900", "-n", "M", "--resume", "-np", "1", *sources]) == 0
    assert "5 of 6 cases are there already and unchanged" in capsys.readouterr().out
