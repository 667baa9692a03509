"""Going on with a packed model by adapters, through the command line."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import isolated
from abridged.data.text import load_text
from isolated import Stop
from teachers import make_recipe

pytest.importorskip("peft")
SETTINGS = [
    *("steps=8", "context=16", "batch_size=4", "evaluate_every=4", "evaluate_tokens=200", "save_every=3"),
    *("mixed_precision=no", "learning_rates.adapter=2e-2", "dropout=0.1"),
]
SET = [word for setting in SETTINGS for word in ("--set", f"stages.0.{setting}")]


@pytest.fixture(scope="module")
def small(tmp_path_factory, teacher, text):
    """A packed student and its text; the adapters of all tests stand beside it."""
    import yaml

    folder = tmp_path_factory.mktemp("adapters")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(make_recipe(objectives={"logits": {}}, steps=2)))
    return isolated.student_of("compress", teacher, "--recipe", folder / "recipe.yaml", "--data", text, folder=folder)


@pytest.fixture
def run(small, text, tmp_path):
    """run(verb, …) -> how it ended, in a folder of its own."""
    count = iter(range(100))

    def run(*arguments, **launch):
        return isolated.abridged(*arguments, folder=tmp_path / f"process-{next(count)}", **launch)

    return run


@pytest.fixture
def finetune(run, small, text, tmp_path):
    """finetune(output, *more) by the recipe lora."""

    def finetune(output, *more, recipe=("--recipe", "lora"), model=small, **launch):
        return run("finetune", model, *recipe, "--data", text, "--output", tmp_path / output, *more, **launch)

    return finetune


def perplexity(record, when):
    return record["validation"][when]["perplexity"]


def held_out(text, folder):
    """What a run validates on, as a file."""
    (folder / "held-out.txt").write_text(load_text(text).validation)
    return folder / "held-out.txt"


def test_from_a_packed_model_to_a_text(finetune, run, small, text, tmp_path):
    before = (small / "model.safetensors").read_bytes()
    ended = finetune("mine", *SET, "--json")
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record == json.loads((tmp_path / "mine" / "abridged.json").read_text())
    assert perplexity(record, "after") < perplexity(record, "before")
    assert record["base"]["name"] == "student"
    assert str(tmp_path) not in json.dumps(record)
    assert (small / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "mine" / "model.safetensors").exists()
    written = run("generate", tmp_path / "mine", "aa", "--max-new-tokens", "4", "--seed", "1")
    assert written.code == 0, written.stderr
    measured = run("evaluate", tmp_path / "mine", "--data", held_out(text, tmp_path), "--json")
    assert json.loads(measured.stdout)["perplexity"] == pytest.approx(perplexity(record, "after"), rel=1e-5)


def test_killed_and_resumed_it_is_the_same(finetune, tmp_path):
    assert finetune("whole", *SET).code == 0
    assert finetune("parts", *SET, stop=Stop("abridged.training.loop:Trainer.step", 6)).code == -9
    state = load_file(tmp_path / "parts.partial" / "state.safetensors")
    assert not any(name.endswith(("codes", "scales")) for name in state)  # the base has them
    ended = finetune("parts", *SET, "--resume")
    assert ended.code == 0, ended.stderr
    files = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_folded_while_trained_or_afterwards(finetune, run, text, tmp_path):
    assert finetune("mine", *SET).code == 0
    ended = finetune("late", "--fold", recipe=(), model=tmp_path / "mine")
    assert ended.code == 0, ended.stderr
    table = [line.split() for line in ended.stdout.splitlines()]
    assert [row[0] for row in table if row and row[0] == "packed" or row[:1] == ["packed,"]] == [
        "packed",
        *["packed,"] * 2,
    ]
    assert finetune("now", *SET, "--fold").code == 0
    both = [load_file(tmp_path / name / "model.safetensors") for name in ("late", "now")]
    late, record = (json.loads((tmp_path / name / "abridged.json").read_text()) for name in ("late", "now"))
    for when in ("before", "after"):
        assert perplexity(late, when) == pytest.approx(perplexity(record, when), rel=1e-5)
    assert perplexity(record, "folded") < perplexity(record, "before")
    assert both[0].keys() == both[1].keys()
    measured = run("evaluate", tmp_path / "now", "--data", held_out(text, tmp_path), "--json")
    assert json.loads(measured.stdout)["perplexity"] == pytest.approx(perplexity(record, "folded"), rel=1e-5)
    assert run("inspect", tmp_path / "now").code == 0


PROMPT = ("--recipe", "prompt-tuning")
SET_PROMPT = [word.replace("adapter=2e-2", "prompt=1e-1").replace("context=16", "context=12") for word in SET]


def test_a_prompt_is_trained_killed_resumed_and_read(finetune, run, small, text, tmp_path):
    own = [*SET_PROMPT, "--set", "stages.0.methods.prompt_tuning.tokens=4"]
    ended = finetune("mine", *own, "--json", recipe=PROMPT)
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert perplexity(record, "after") < perplexity(record, "before")
    assert record["adapter"]["parameters"] == 4 * json.loads((small / "config.json").read_text())["n_embd"]
    written = run("generate", tmp_path / "mine", "aa", "--max-new-tokens", "4", "--seed", "1")
    assert written.code == 0, written.stderr
    measured = run("evaluate", tmp_path / "mine", "--data", held_out(text, tmp_path), "--json")
    assert json.loads(measured.stdout)["perplexity"] == pytest.approx(perplexity(record, "after"), rel=1e-5)
    assert finetune("parts", *own, recipe=PROMPT, stop=Stop("abridged.training.loop:Trainer.step", 6)).code == -9
    assert finetune("parts", *own, "--resume", recipe=PROMPT).code == 0
    files = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("mine", "parts")]
    assert files[0] == files[1]
    assert "cannot be folded into codes" in said(finetune("no", "--fold", recipe=(), model=tmp_path / "mine"))


def test_norms_are_trained_alone_and_folded(finetune, run, text, tmp_path):
    own = [word.replace("adapter=2e-2", "norm=2e-2") for word in SET]
    ended = finetune("mine", *own, "--json", recipe=("--recipe", "norms"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert perplexity(record, "after") < perplexity(record, "before")
    assert not any("lora" in name for name in load_file(tmp_path / "mine" / "adapter.safetensors"))
    measured = run("evaluate", tmp_path / "mine", "--data", held_out(text, tmp_path), "--json")
    assert json.loads(measured.stdout)["perplexity"] == pytest.approx(perplexity(record, "after"), rel=1e-5)
    ended = finetune("folded", "--fold", "--json", recipe=(), model=tmp_path / "mine")
    assert ended.code == 0, ended.stderr
    folded = json.loads(ended.stdout)
    assert perplexity(folded, "before") == pytest.approx(perplexity(record, "before"), rel=1e-5)
    assert perplexity(folded, "folded") == pytest.approx(perplexity(record, "after"), rel=1e-2)
    assert run("inspect", tmp_path / "folded").code == 0


def test_a_model_in_full_precision_gets_them_added_up(finetune, run, teacher, tmp_path):
    ended = finetune("plain", *SET, "--json", model=teacher)
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert perplexity(record, "after") < perplexity(record, "before")
    assert not (tmp_path / "plain" / "adapter.safetensors").exists()
    assert run("generate", tmp_path / "plain", "aa", "--max-new-tokens", "2").code == 0


def said(ended):
    assert ended.code == 1
    assert len(ended.said) == 1, ended.stderr
    return ended.said[0]


def test_what_cannot_be_done_is_said_in_a_sentence(finetune, run, small, teacher, text, tmp_path):
    assert "its codes have no gradients: train adapters beside them (--recipe lora)" in said(finetune("no", recipe=()))
    assert "is packed, and its codes" in said(finetune("no", "--set", "stages.0.freeze_weights=false"))
    assert "is not packed" in said(finetune("no", "--fold", model=teacher))
    assert "stands beside a packed model" in said(finetune("no", recipe=PROMPT, model=teacher))
    assert "cannot be folded into codes" in said(finetune("no", "--fold", recipe=PROMPT))
    long = ("--set", "stages.0.methods.prompt_tuning.tokens=5000")
    assert "a prompt of 5000 tokens leaves texts 0 of the model's positions" in said(
        finetune("no", *long, recipe=PROMPT)
    )
    assert finetune("mine", *SET).code == 0
    mine = tmp_path / "mine"
    assert "holds adapters: train others beside their base" in said(finetune("no", model=mine))
    assert "holds adapters alone" in said(run("export", mine, "--format", "dense", "--output", tmp_path / "no"))
    shutil.copytree(mine, tmp_path / "far" / "mine")
    assert "put that packed model there" in said(run("generate", tmp_path / "far" / "mine", "aa"))
    assert not list(tmp_path.glob("no*"))
