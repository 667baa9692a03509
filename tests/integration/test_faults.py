"""Bad input and faults, through the command line: one clear sentence, exit code 1, and nothing good is harmed."""

import subprocess

import pytest

import abridged
import isolated
import tiny
from abridged.core.errors import AbridgedError
from isolated import Stop
from teachers import write_teacher, write_text


@pytest.fixture
def compress(tmp_path, teacher, text, recipe_file):
    """compress(data=…, model=…, recipe=…, *more, stop=…) -> how the command ended."""
    default = recipe_file()
    count = iter(range(100))

    def run(*more, model=teacher, data=text, recipe=default, output=None, **launch):
        arguments = ["compress", model, "--recipe", recipe, "--data", data, "--output", output or tmp_path / "student"]
        return isolated.abridged(*arguments, *more, folder=tmp_path / f"process-{next(count)}", **launch)

    return run


def assert_one_sentence(ended, *words):
    """Exit code 1, nothing on standard output, and one line of ours as the last on standard error."""
    assert ended.code == 1, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.said if not line.startswith("warning")]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("abridged: ")
    for word in words:
        assert word in lines[0]


def test_an_unknown_model(compress, tmp_path):
    assert_one_sentence(compress(model="nobody/no-such-model"), "cannot load the model 'nobody/no-such-model'")
    (tmp_path / "empty").mkdir()
    assert_one_sentence(compress(model=tmp_path / "empty"), "cannot load the model")
    assert [p.name for p in tmp_path.glob("student*")] == []


def test_an_unknown_recipe_or_key(compress):
    assert_one_sentence(compress(recipe="quantgtp-2-2-8"), "did you mean 'quantgpt-2-2-8'?")
    assert_one_sentence(
        compress("--set", "stages.0.stepps=5"), "unknown key stages.0.stepps", "did you mean 'training.steps'"
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "is empty"), ("\n \n", "is empty"), ("a few words", "fewer than one context of 16"), (None, "no such file")],
    ids=["empty", "blank", "shorter than a context", "missing"],
)
def test_a_text_that_is_no_text(compress, tmp_path, content, word):
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_text(content)
    assert_one_sentence(compress(data=path), word)
    assert [p.name for p in tmp_path.glob("student*")] == []


def test_an_unknown_dataset(compress):
    assert_one_sentence(compress(data="wikitext-3"), "no text called 'wikitext-3'", "wikitext-2")


def test_a_context_beyond_the_models_positions(compress):
    assert_one_sentence(compress("--set", "stages.0.context=17"), "training.context is 17", "positions end at 16")


def test_a_rate_for_what_does_not_exist(compress):
    ended = compress("--set", "stages.0.learning_rates={skale: 1.0}")
    assert_one_sentence(ended, "learning_rates names the group skale", "scale, rounding, clip")


def test_a_tokenizer_that_does_not_fit(compress, tmp_path, text):
    model = write_teacher(tmp_path / "other", text, vocab_size=290)
    assert_one_sentence(compress(model=model), "does not fit the model: 300 entries for a vocabulary of 290")


def test_a_model_without_a_tokenizer(compress, teacher, tmp_path):
    import shutil

    shutil.copytree(teacher, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert_one_sentence(compress(model=tmp_path / "bare"), "cannot load the tokenizer")


def test_an_output_that_exists(compress, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "precious").write_text("")
    assert_one_sentence(compress(), "exists already", "--overwrite")
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["precious"]


def test_an_output_is_replaced_only_when_its_successor_is_whole(compress, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "precious").write_text("")
    (tmp_path / "student" / "abridged.json").write_text("{}")
    for point in ("loop:Trainer.step", "publisher:write_report", "workspace:Workspace.publish"):
        assert compress("--overwrite", stop=Stop(f"abridged.training.{point}")).code == -9
        assert {p.name for p in (tmp_path / "student").iterdir()} == {"precious", "abridged.json"}
    assert compress("--resume").code == 0  # the interrupted run had been allowed to replace it
    assert "precious" not in [p.name for p in (tmp_path / "student").iterdir()]


def test_an_output_that_cannot_be_made(compress, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_sentence(compress(output=tmp_path / "file" / "student"), "cannot write to")


def test_two_runs_into_one_directory(compress, tmp_path):
    from abridged.training.workspace import Workspace

    with Workspace(tmp_path / "student") as first:
        first.save_state({}, {"stage": 0})
        for more in ([], ["--resume"], ["--overwrite"]):
            assert_one_sentence(compress(*more), "another run is writing to")
        assert first.load_state() is not None


def test_a_loss_that_is_not_finite(compress, tmp_path):
    ended = compress("--set", "stages.0.learning_rate=1e30", "--set", "stages.0.warmup=0")
    assert ended.code == 1
    assert "back to step 0, at a tenth of the learning rate" in ended.said[0]
    assert "also at a tenth" in ended.said[-1]
    assert "Traceback" not in ended.stderr
    state = tmp_path / "student.partial" / "state.safetensors"
    assert f"the last good checkpoint, of step 0, is {state}" in ended.said[-1]
    assert state.exists()
    assert not (tmp_path / "student").exists()


def test_a_limit_on_file_sizes(compress, tmp_path):
    ended = compress(file_limit=50_000)
    assert_one_sentence(ended, "cannot write the training checkpoint", "is the disk full?")
    assert [p.name for p in tmp_path.glob("student*")] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of the size that is asked for."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kilobytes, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"]), "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("cannot mount a file system here")
        return place

    yield size
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_full_disk_in_the_middle(compress, small_disk, tmp_path):
    """The first checkpoint fits, the second, with the optimiser's state, does not beside it."""
    output = small_disk(600) / "student"
    assert_one_sentence(compress(output=output), "cannot write the training checkpoint", "free some space and --resume")
    assert not output.exists()
    small_disk(20_000, "remount")
    ended = compress("--resume", output=output)
    assert ended.code == 0, ended.stderr
    assert compress().code == 0
    whole = (tmp_path / "student" / "model.safetensors").read_bytes()
    assert (output / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("arguments", [["compress"], ["compress", "gpt2", "--recipe"], ["finetune", "gpt2"]])
def test_wrong_usage(tmp_path, arguments):
    ended = isolated.abridged(*arguments, folder=tmp_path)
    assert ended.code == 2
    assert ended.stdout == ""
    assert ended.stderr


def test_evaluate_says_what_is_wrong(tmp_path, teacher):
    short = tmp_path / "short.txt"
    short.write_text("a")
    for arguments, word in (
        ([teacher, "--data", short], "fewer than two tokens"),
        ([teacher, "--data", write_text(tmp_path / "long.txt"), "--stride", "17"], "do not fit"),
        ([tmp_path / "nowhere", "--data", short], "cannot load the model"),
    ):
        assert_one_sentence(isolated.abridged("evaluate", *arguments, folder=tmp_path / "process"), word)


def test_a_model_that_would_be_left_half_as_it_is_is_refused_before_its_weights_are_looked_for(compress, tmp_path):
    kind, config = tiny.REFUSED["mixtral"]()
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path / "mixtral")
    assert_one_sentence(compress(model=tmp_path / "mixtral"), "the experts of mixtral are not compressed yet: 78 %")
    assert_one_sentence(compress("--allow-uncompressed", model=tmp_path / "mixtral"), "cannot load the model")


@pytest.mark.parametrize("command", ["trim", "finetune", "export dense", "export gguf"])
def test_a_full_disk_whoever_writes(tmp_path, teacher, text, command):
    """What libraries raise then is as many kinds as there are libraries."""
    verb, _, form = command.partition(" ")
    more = ["--format", form, "--dtype", "float32"] if form else ["--data", text]
    more += ["--set", "context=16", "--set", "steps=0"] if verb == "finetune" else []
    ended = isolated.abridged(
        verb, teacher, "--output", tmp_path / "out" / "student", *more, folder=tmp_path / "process", file_limit=20_000
    )
    assert_one_sentence(ended, "cannot write", "is the disk full?" if form == "gguf" else "File too large")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_nobody_may_write_is_found_before_the_model_is_read(small_disk, tmp_path):
    place = small_disk(100, "ro")
    for form in ("dense", "gguf", "onnx", "compressed-tensors", "web"):
        with pytest.raises(AbridgedError, match="nothing can be written in"):
            abridged.export("no/model", place / "student", form)
