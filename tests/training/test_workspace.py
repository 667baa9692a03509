"""The folder beside the output: claimed by one run, never in the way of something good."""

import json
import os
import shutil

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.training.workspace import Workspace

STATE = {"a": torch.arange(3.0)}


def finish(work, content="new"):
    work.finished.mkdir(parents=True)
    (work.finished / "config.json").write_text(content)
    (work.finished / "abridged.json").write_text("{}")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "here" / "student"


def interrupted(output, **options):
    """A run that saved its state once and was stopped."""
    with Workspace(output, **options) as work:
        work.check_same_run({"recipe": "a"})
        work.log({"event": "train", "stage": 0, "step": 1})
        work.save_state(STATE, {"stage": 0, "step": 1})


def test_what_is_published_is_all_that_stays(output):
    with Workspace(output) as work:
        work.save_state(STATE, {"stage": 0})
        finish(work)
        work.publish()
    assert [p.name for p in output.parent.iterdir()] == ["student"]
    assert (output / "config.json").read_text() == "new"


def test_looking_makes_nothing(output):
    Workspace(output)
    assert not output.parent.exists()


def test_a_run_that_saved_nothing_leaves_nothing(output):
    with Workspace(output) as work:
        work.log({"event": "train"})
    assert list(output.parent.iterdir()) == []


def test_state_and_metrics_survive(output):
    interrupted(output)
    with Workspace(output, resume=True) as work:
        tensors, position = work.load_state()
        assert torch.equal(tensors["a"], STATE["a"])
        assert position == {"stage": 0, "step": 1}
        assert work.metrics() == [{"event": "train", "stage": 0, "step": 1}]
        work.check_same_run({"recipe": "a"})
        with pytest.raises(AbridgedError, match="its recipe differ"):
            work.check_same_run({"recipe": "b"})


def test_an_interrupted_run_is_not_trodden_on(output):
    interrupted(output)
    with pytest.raises(AbridgedError, match="add --resume to go on with it, or --overwrite"):
        Workspace(output)
    with Workspace(output, overwrite=True) as work:
        assert work.load_state() is None
        assert work.metrics() == []


def test_resuming_nothing_begins_anew(output):
    with Workspace(output, resume=True) as work:
        assert work.load_state() is None


def test_an_output_that_exists_is_replaced_only_on_demand_and_only_in_the_end(output):
    output.mkdir(parents=True)
    (output / "config.json").write_text("old")
    (output / "abridged.json").write_text("{}")
    with pytest.raises(AbridgedError, match="exists already"):
        Workspace(output)
    with pytest.raises(AbridgedError, match="exists already"):
        Workspace(output, resume=True)
    interrupted(output, overwrite=True)
    assert (output / "config.json").read_text() == "old"
    with Workspace(output, resume=True) as work:  # the run that was allowed to replace it goes on
        finish(work)
        work.publish()
    assert (output / "config.json").read_text() == "new"
    assert [p.name for p in output.parent.iterdir()] == ["student"]


def test_an_output_that_appears_meanwhile_is_not_replaced(output):
    with Workspace(output) as work:
        work.save_state(STATE, {"stage": 0})
        output.mkdir()
        (output / "precious").write_text("")
        finish(work)
        with pytest.raises(AbridgedError, match="has appeared while this run worked"):
            work.publish()
    assert [p.name for p in output.iterdir()] == ["precious"]
    assert (output.with_name("student.partial") / "state.safetensors").exists()


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("precious")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(AbridgedError, match="exists already|is a file"):
            Workspace(tmp_path / "file", **options)
    with pytest.raises(AbridgedError, match="cannot write to"), Workspace(tmp_path / "file" / "below"):
        pass


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_one_run_at_a_time(output, options):
    with Workspace(output) as work:
        work.save_state(STATE, {"stage": 0})
        with pytest.raises(AbridgedError, match="another run is writing to"):
            Workspace(output, **options)
        assert work.load_state() is not None
    with Workspace(output, resume=True):
        pass


def test_two_that_both_looked_before_either_began(output):
    first, second = Workspace(output), Workspace(output)
    with first:
        with pytest.raises(AbridgedError, match="another run is writing to"), second:
            pass
        first.save_state(STATE, {"stage": 0})
        finish(first)
        first.publish()
    with pytest.raises(AbridgedError, match="exists already"), second:
        pass
    assert (output / "config.json").read_text() == "new"


def test_a_process_that_is_not_the_main_one_writes_nothing(output):
    with Workspace(output, main=False) as work:
        work.save_state(STATE, {"stage": 0})
        work.save_best(0, STATE)
        work.log({"event": "train"})
        work.forget_metrics_after(0, 0)
        work.check_same_run({})
        work.publish()
    assert not output.parent.exists()


@pytest.mark.parametrize("kind", ["state", "best-0", "student-0"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"\xff" * 100,
        lambda whole: whole[:-4],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),  # one bit of a weight
        lambda whole: whole.replace(b"position", b"Position"),
        lambda whole: whole.replace(b"crc32", b"crc23"),
        lambda whole: whole.replace(b"F32", b"I32"),
    ],
)
def test_a_damaged_checkpoint(output, damage, kind):
    interrupted(output)
    with Workspace(output, resume=True) as work:
        best, student = lambda: work.load_best(0), lambda: work.load_student(0)
        load = {"state": work.load_state, "best-0": best, "student-0": student}[kind]
        work.save_best(0, STATE)
        work.save_student(0, STATE)
        assert load() is not None
        path = work.folder / f"{kind}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(AbridgedError, match="is missing or damaged: begin anew with --overwrite"):
            load()


def test_a_full_disk_while_writing_a_checkpoint_keeps_the_last(output, monkeypatch):
    from safetensors import SafetensorError

    from abridged.training import workspace

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with Workspace(output) as work:
        work.save_state(STATE, {"step": 1})
        monkeypatch.setattr(workspace, "save_file", full)
        with pytest.raises(AbridgedError, match="is the disk full.*No space left.*free some space and --resume"):
            work.save_state(STATE, {"step": 2})
        assert work.load_state()[1] == {"step": 1}
        assert {p.name for p in work.folder.iterdir()} == {"lock", "state.safetensors"}


@pytest.mark.parametrize(("number", "hint"), [(28, "free some space and --resume"), (122, "--resume"), (13, "cannot")])
def test_a_full_disk_at_any_other_time_is_one_sentence(output, number, hint):
    work = Workspace(output)
    with work:
        work.save_state(STATE, {"step": 1})
    fault = OSError(number, "what the system says")
    with pytest.raises(AbridgedError, match=hint):
        work.__exit__(OSError, fault, None)


def test_metrics_after_the_last_checkpoint_are_forgotten(output):
    with Workspace(output) as work:
        for stage in (0, 1):
            for step in (1, 2, 3):
                work.log({"stage": stage, "step": step})
        work.forget_metrics_after(1, 2)
        assert [(m["stage"], m["step"]) for m in work.metrics()] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


def test_metrics_are_json_whatever_they_measure(output):
    with Workspace(output) as work:
        work.log({"loss": float("nan"), "perplexity": float("inf"), "step": 1})
        with (work.folder / "metrics.jsonl").open("a") as file:
            file.write('{"loss": 1.0, "st')  # cut short by a fault
        assert work.metrics() == [{"loss": None, "perplexity": None, "step": 1}]


@pytest.mark.parametrize("damage", ["", "{", "[]", "7", '{"recipe": "a"}', "[" * 100_000, None])
def test_a_damaged_note_of_what_the_run_is(output, damage):
    interrupted(output)
    note = output.with_name("student.partial") / "run.json"
    note.unlink() if damage is None else note.write_text(damage)
    with Workspace(output, resume=True) as work:
        with pytest.raises(AbridgedError, match=r"run.json is missing or damaged: begin anew with --overwrite"):
            work.check_same_run({"recipe": "a"})
        assert work.load_state() is not None


def test_damaged_metrics_are_left_out(output):
    interrupted(output)
    good = {"event": "train", "stage": 0, "step": 1}
    with Workspace(output, resume=True) as work:
        with (work.folder / "metrics.jsonl").open("ab") as file:
            for line in (b"\xff\xfe", b"7", b"[]", b'{"step": "1"}', b'{"step": 1, "stage": null}', b"[" * 100_000):
                file.write(line + b"\n")
        assert work.metrics() == [good]
        work.forget_metrics_after(0, 1)
        assert (work.folder / "metrics.jsonl").read_text() == json.dumps(good) + "\n"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "work_on",
    [
        lambda work: work.save_state(STATE, {"stage": 0}),
        lambda work: work.log({"step": 1}),
        lambda work: work.forget_metrics_after(0, 1),
        lambda work: work.publish(),
    ],
    ids=["saving", "logging", "forgetting", "publishing"],
)
def test_the_folder_removed_under_a_run(output, work_on, again):
    """Whether or not another run has begun there since, whose folder it then is."""

    def removed():
        with Workspace(output) as work:
            work.save_state(STATE, {"stage": 0})
            shutil.rmtree(work.folder)
            if again:
                interrupted(output)
            work_on(work)

    with pytest.raises(AbridgedError, match=r"student.partial was removed while the run worked"):
        removed()
    assert (output.with_name("student.partial") / "state.safetensors").exists() == again
    assert not output.exists()


def test_files_removed_under_a_run_are_one_sentence(output):
    with (
        pytest.raises(AbridgedError, match=r"cannot write to .*student.partial: No such file"),
        Workspace(output) as work,
    ):
        (work.finished / "config.json").write_text("its folder has not been made")


def test_somebody_elses_folder_is_not_taken_for_a_runs(output):
    folder = output.with_name("student.partial")
    folder.mkdir(parents=True)
    Workspace(output)  # an empty one is what a run leaves that was killed at once
    (folder / "precious").write_text("")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(AbridgedError, match="is something else: move it away"):
            Workspace(output, **options)
    shutil.move(folder, output.with_name("elsewhere"))
    folder.symlink_to(output.with_name("elsewhere"))
    with pytest.raises(AbridgedError, match="is something else: move it away"):
        Workspace(output, overwrite=True)
    assert (output.with_name("elsewhere") / "precious").exists()


def test_what_was_at_the_output_comes_back_where_its_successor_does_not(output, monkeypatch):
    with Workspace(output) as work:
        finish(work, "old")
        work.publish()

    def replaced():
        with Workspace(output, overwrite=True) as work:
            finish(work)
            work.publish()

    rename = os.rename

    def fails(source, target):
        if str(source).endswith("finished/student"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(AbridgedError, match="Input/output error"):
        replaced()
    assert (output / "config.json").read_text() == "old"
    assert [p.name for p in output.parent.iterdir()] == ["student"]


def test_rights_are_those_that_umask_says(output):
    from safetensors.torch import save_file

    before = os.umask(0o027)
    try:
        with Workspace(output) as work:
            finish(work)
            save_file(STATE, work.finished / "model.safetensors")  # 0600 by itself
            work.publish()
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in output.iterdir()} == {"0o640"}
    assert output.stat().st_mode & 0o777 == 0o750


def test_other_libraries_are_told_and_another_version_is_refused(output):
    with Workspace(output) as work:
        assert work.check_same_run({"version": "0.1"}, {"torch": "2.0"}) == []
        work.save_state(STATE, {"stage": 0})
    with Workspace(output, resume=True) as work:
        assert work.check_same_run({"version": "0.1"}, {"torch": "2.0"}) == []
        (told,) = work.check_same_run({"version": "0.1"}, {"torch": "2.1"})
        assert told == "the run was begun with torch 2.0: it goes on, but not bit for bit"
        with pytest.raises(AbridgedError, match=r"its version \(0.1\) differ from the interrupted run's"):
            work.check_same_run({"version": "0.2"}, {"torch": "2.0"})


def test_a_damaged_position(output):
    interrupted(output)
    with Workspace(output, resume=True) as work:
        whole = work.state_path.read_bytes()
        work.state_path.write_bytes(whole.replace(b'step\\": 1', b'step\\": 0'))
        assert work.state_path.read_bytes() != whole
        with pytest.raises(AbridgedError, match="damaged"):
            work.load_state()


def test_the_lock_is_the_last_to_go(output, monkeypatch):
    """A run that is killed while it cleans up leaves a folder that is still known for a run's."""
    gone = []
    unlink = os.unlink
    monkeypatch.setattr(
        os, "unlink", lambda path, **named: gone.append(os.path.basename(path)) or unlink(path, **named)
    )
    with Workspace(output) as work:
        for name in ("a", "zz"):
            (work.folder / name).write_text("")
        finish(work)
        work.publish()
    assert gone[-1] == "lock"
    assert {"a", "zz"} < set(gone)
