"""The command as a whole: fast to answer, strict about usage, one sentence and an exit code for each fault."""

import json
import resource
import subprocess
import sys
import textwrap

import pytest
import typer
from typer.testing import CliRunner

import abridged as package
from abridged.cli import app as command
from abridged.core.errors import AbridgedError
from abridged.recipe import Recipe

VERBS = (
    "finetune", "compress", "evaluate", "generate", "summarize", "classify", "augment", "trim", "inspect", "probe",
    "export", "bench", "recipes", "index", "search", "plan", "embed",
)  # fmt: skip


@pytest.fixture
def failing():
    """Run an app of our group whose one verb raises what it is given."""

    def run(fault, verb="compress"):
        app = typer.Typer(cls=command.Verbs)

        @app.callback()
        def root():
            pass

        @app.command(verb)
        def raises():
            raise fault

        return CliRunner().invoke(app, [verb])

    return run


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["recipes", "show", "quantgpt-2-2-8"]])
def test_what_needs_no_model_imports_neither_torch_nor_transformers(arguments):
    code = f"""
        import sys
        from abridged.cli import main
        sys.argv = ["abridged", *{arguments!r}]
        try:
            main()
        except SystemExit as exit:
            assert not exit.code, exit.code
        heavy = {{"torch", "transformers", "accelerate", "datasets", "matplotlib"}} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "bundled", "--size", "2MB", "--data", "nowhere.txt"], "no such file or folder: nowhere.txt"),
        (["plan", "./nowhere", "--size", "2MB", "--data", "wikitext-2"], "cannot load the model './nowhere'"),
        (["compress", "bundled", "--size", "2MB", "--data", "./no", "--output", "x"], "no such file or folder: ./no"),
        (["evaluate", "bundled", "--data", "nowhere.jsonl"], "no such file or folder: nowhere.jsonl"),
    ],
)
def test_what_is_not_there_is_said_before_torch_is_imported(arguments, told, tmp_path):
    code = f"""
        import sys
        from abridged.cli import main
        sys.argv = ["abridged", *{arguments!r}]
        try:
            main()
        except SystemExit as exit:
            assert exit.code == 1, exit.code
        heavy = {{"torch", "transformers", "accelerate", "datasets", "matplotlib"}} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"]])
def test_it_answers_within_half_a_second(abridged, arguments):
    """In processor time, the least of five: other work on the machine is none of ours."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(5):
        before = spent()
        assert abridged(*arguments).returncode == 0
        times.append(spent() - before)
    assert min(times) <= 0.5, times


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"]])
def test_what_needs_no_model_imports_no_torch(arguments):
    code = f"import sys; sys.argv = ['abridged', *{arguments}]; from abridged.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


def test_the_verbs_are_those_of_the_command():
    assert set(typer.main.get_command(command.app).commands) == set(VERBS)


def test_help_names_every_verb(abridged):
    text = abridged("--help").stdout
    assert [verb for verb in VERBS if verb not in text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(abridged, verb):
    run = abridged(verb, "--help")
    assert run.returncode == 0
    assert "Usage: " in run.stdout


@pytest.mark.parametrize("verb", ["finetune", "compress", "plan", "evaluate", "inspect", "export", "recipes"])
def test_every_verb_that_measures_has_json(abridged, verb):
    assert "--json" in abridged(verb, "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["compress"],
        ["compress", "bundled", "--recipe", "quantgpt-2-2-8"],
        ["evaluate", "bundled", "--data", "wikitext-2", "--context", "many"],
        ["generate", "bundled", "hello", "--max-new-tokens", "0"],
        ["recipes", "show"],
        ["--unknown"],
    ],
)
def test_wrong_usage_ends_in_2_and_on_standard_error(abridged, arguments):
    run = abridged(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "Usage" in run.stderr


@pytest.mark.parametrize("name", ["bundled", "bundled-video"])
def test_what_comes_along_is_inspected_by_its_name(name):
    ended = CliRunner().invoke(command.app, ["inspect", name])
    assert "bits per weight" in ended.stdout


COMPRESS = ["compress", "bundled", "--data", "wikitext-2", "--output", "small", "--recipe"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recipes", "show", "quantgtp-2-2-8"], "did you mean 'quantgpt-2-2-8'"),
        (["recipes", "show", "mine.yaml"], "mine.yaml does not exist"),
        ([*COMPRESS, "quantgpt-2-2-8", "--set", "stages.0.stepz=1"], "unknown key stages.0.stepz"),
        ([*COMPRESS, "nothing"], "unknown recipe 'nothing'"),
    ],
)
def test_bad_input_ends_in_1_with_one_sentence_on_standard_error(abridged, arguments, expected):
    run = abridged(*arguments)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("abridged: ")
    assert run.stderr.count("\n") == 1
    assert expected in run.stderr


def test_faults_become_exit_codes(failing):
    result = failing(AbridgedError("the text is empty"))
    assert (result.exit_code, result.stderr) == (1, "abridged: the text is empty\n")


@pytest.mark.parametrize(("verb", "resumes"), [("compress", True), ("finetune", True), ("evaluate", False)])
def test_an_interrupt_ends_in_130_and_says_how_to_go_on(failing, verb, resumes):
    result = failing(KeyboardInterrupt(), verb)
    assert result.exit_code == 130
    assert result.stderr.startswith("abridged: interrupted")
    assert ("--resume" in result.stderr) == resumes


def test_errors_in_the_code_are_not_hidden(failing):
    assert isinstance(failing(ZeroDivisionError("a bug")).exception, ZeroDivisionError)


def test_recipes_lists_all_of_them(abridged):
    listed = json.loads(abridged("recipes", "--json").stdout)
    assert [row["name"] for row in listed] == Recipe.names()
    shown = abridged("recipes").stdout.splitlines()
    assert [line.split()[0] for line in shown] == Recipe.names()


def test_recipes_show_prints_the_commented_file_or_what_it_comes_to(abridged):
    assert abridged("recipes", "show", "quantgpt-2-2-8").stdout == Recipe.text("quantgpt-2-2-8")
    shown = abridged("recipes", "show", "quantgpt-2-2-8", "--set", "stages.0.steps=7").stdout
    assert "steps: 7\n" in shown
    keys = abridged("recipes", "show", "--keys").stdout
    assert "stages.N.training.steps: int = 1000" in keys
    assert "stages.N.methods.quantize.exceptions: dict[str, settings] = {}" in keys


def test_version(abridged):
    assert abridged("--version").stdout.strip() == package.__version__
