"""The folder beside the output: claimed by one run, never in the way of something good."""

import pytest
import torch

from abridged.errors import AbridgedError
from abridged.training.workspace import Workspace

STATE = {"a": torch.arange(3.0)}


def finished(work, content="new"):
    folder = work.folder / work.output.name
    folder.mkdir()
    (folder / "config.json").write_text(content)
    return folder


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
        work.publish(finished(work))
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
    with pytest.raises(AbridgedError, match="exists already"):
        Workspace(output)
    with pytest.raises(AbridgedError, match="exists already"):
        Workspace(output, resume=True)
    interrupted(output, overwrite=True)
    assert (output / "config.json").read_text() == "old"
    with Workspace(output, resume=True) as work:  # the run that was allowed to replace it goes on
        work.publish(finished(work))
    assert (output / "config.json").read_text() == "new"
    assert [p.name for p in output.parent.iterdir()] == ["student"]


def test_an_output_that_appears_meanwhile_is_not_replaced(output):
    with Workspace(output) as work:
        work.save_state(STATE, {"stage": 0})
        output.mkdir()
        (output / "precious").write_text("")
        with pytest.raises(AbridgedError, match="has appeared while this run worked"):
            work.publish(finished(work))
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
        first.publish(finished(first))
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
        work.publish(output)
    assert not output.parent.exists()


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_a_damaged_checkpoint(output, damage):
    interrupted(output)
    with Workspace(output, resume=True) as work:
        whole = work.state_path.read_bytes()
        work.state_path.write_bytes(whole[:-4] if damage is None else damage)
        with pytest.raises(AbridgedError, match="is damaged: begin anew with --overwrite"):
            work.load_state()


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
        assert [p.name for p in work.folder.iterdir() if p.suffix == ".tmp"] == []


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
