"""From a text and two columns to a packed summariser, through the command line: the fables and their morals."""

import json

import pytest
import yaml

from abridged.checkpoint.load import load
from isolated import Stop
from teachers import FABLES, make_recipe

MODEL = {
    "architecture": "bart",
    "model": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 96, "init_std": 0.15,
        "dropout": 0.0,
    },
    "tokenizer": {"vocab_size": 400},
}  # fmt: skip
QUICK = ["evaluate_every=4", "save_every=3", "compile=no", "mixed_precision=no", "batch_size=4", "evaluate_tokens=500"]


def settings(*pairs):
    return [word for pair in (*QUICK, *pairs) for word in ("--set", pair)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("summaries")


@pytest.fixture(scope="module")
def teacher(command, folder):
    """A BART that has restored the fables from noise, and then learned their morals."""
    (folder / "bart.yaml").write_text(yaml.safe_dump(MODEL))
    stories = [json.loads(line)["text"] for line in FABLES.read_text().splitlines()]
    (folder / "stories.txt").write_text("\n".join(stories * 4))
    denoise = ["--data", folder / "stories.txt", "--output", folder / "denoised", "--json"]
    ended = command("finetune", folder / "bart.yaml", *denoise, *settings("steps=30", "learning_rate=3e-3"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["validation"]["after"]["perplexity"] < 400  # 400 is to know nothing
    pairs = ["--data", FABLES, "--output", folder / "teacher", "--json"]
    ended = command("finetune", folder / "denoised", *pairs, *settings("steps=60", "learning_rate=3e-3"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["data"]["columns"] == ["text", "summary"]
    assert record["validation"]["before"]["perplexity"] > record["validation"]["after"]["perplexity"]
    assert "lose their ends" in ended.stderr
    return folder / "teacher"


@pytest.fixture(scope="module")
def recipe(folder):
    objectives = {
        "logits": {"weight": 1.0}, "hidden": {"weight": 0.1}, "attention": {"weight": 0.1},
        "contrastive": {"weight": 0.1, "bank": "position", "dimensions": 8},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(make_recipe(objectives=objectives, target_context=16)))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def compressed(command, folder, teacher, recipe):
    ended = command("compress", teacher, "--recipe", recipe, "--data", FABLES, "--output", folder / "small", "--json")
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_account_and_the_report(compressed, folder):
    metrics = compressed["metrics"]
    assert set(metrics) == {"teacher", "untrained", "student"}
    for measured in metrics.values():
        assert set(measured["rouge"]) >= {"rouge1", "rouge2", "rougeL", "words", "repeated"}
    assert compressed["data"]["columns"] == ["text", "summary"]
    assert compressed["data"]["targets_cut"] > 0
    page = (folder / "small" / "report.html").read_text()
    assert "ROUGE-1" in page
    assert "The same documents, summed up" in page
    assert "AutoModelForSeq2SeqLM.from_pretrained" in page
    card = (folder / "small" / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card
    assert "pipeline_tag: summarization" in card


def test_what_was_measured_is_what_was_stored(compressed, command, folder):
    small = folder / "small"
    ended = command("evaluate", small, "--data", FABLES, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["examples"] == 16
    (folder / "test.jsonl").write_text(FABLES.read_text().splitlines()[-1] + "\n")
    ended = command("evaluate", small, "--data", folder / "test.jsonl", "--metric", "rouge", "--json")
    # a file of one pair has no training part: what is held out is what there is
    assert ended.code == 0, ended.stderr
    rouge = json.loads(ended.stdout)
    assert rouge["pairs"] == 1
    assert rouge["rouge1"] == pytest.approx(compressed["metrics"]["student"]["rouge"]["rouge1"])
    assert rouge["settings"]["num_beams"] == 4


def test_summarize(compressed, command, folder):
    small = folder / "small"
    ended = command("summarize", small, FABLES, "--beams", "2", "--max-new-tokens", "8")
    assert ended.code == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 16
    assert (
        "16 documents are longer" in ended.stderr or "of 16 documents are longer than the model reads" in ended.stderr
    )
    (folder / "one.txt").write_text("A crow found a pitcher with a little water.")
    ended = command("summarize", small, folder / "one.txt", "--json", "--max-new-tokens", "400")
    assert ended.code == 0, ended.stderr
    assert "end after 95 tokens" in ended.stderr
    assert len(json.loads(ended.stdout)["summaries"]) == 1
    (folder / "empty.txt").write_text("\n")
    ended = command("summarize", small, folder / "empty.txt")
    assert ended.code == 0
    assert "1 of 1 documents are empty" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summarize", "{small}", "nowhere.txt"], "no such file: nowhere.txt"),
        (["summarize", "bundled", "{fables}"], "goes on with a text and does not make one of another"),
        (["summarize", "{small}", "{fables}", "--column", "body"], "has no column 'body'"),
        (["generate", "{small}", "a prompt"], "use summarize"),
        (["evaluate", "{small}", "--data", "{fables}", "--columns", "text,title"], "has no column 'title'"),
        (["evaluate", "{small}", "--data", "{fables}", "--stride", "4"], "a stride is for a text"),
        (["evaluate", "bundled", "--data", "{fables}", "--columns", "text,summary"], "for an encoder-decoder"),
        (["evaluate", "bundled", "--data", "{fables}", "--metric", "rouge"], "goes on with a text"),
    ],
)
def test_bad_input_ends_in_one_sentence(compressed, command, folder, arguments, message):
    filled = [argument.format(small=folder / "small", fables=FABLES) for argument in arguments]
    ended = command(*filled)
    assert ended.code == 1
    assert message in ended.stderr
    assert len(ended.said) == 1


def test_columns_are_three_at_most(command):
    ended = command("evaluate", "bundled", "--data", FABLES, "--columns", "text,title,summary,text")
    assert ended.code == 2
    assert "give one, two or three names with commas" in ended.stderr


def test_stopped_and_resumed_it_is_the_same(compressed, command, folder, teacher, recipe):
    files = ["compress", teacher, "--recipe", recipe, "--data", FABLES, "--output", folder / "again"]
    assert command(*files, stop=Stop("abridged.training.loop:Trainer.step", 5)).code == -9
    ended = command(*files, "--resume")
    assert ended.code == 0, ended.stderr
    stored = [next((folder / name).glob("*.safetensors")).read_bytes() for name in ("small", "again")]
    assert stored[0] == stored[1]


def test_a_teacher_cache_is_refused(command, folder, teacher, recipe):
    files = ["compress", teacher, "--recipe", recipe, "--data", FABLES, "--output", folder / "cached"]
    ended = command(*files, "--teacher-cache", folder / "cache")
    assert ended.code == 1
    assert "train an encoder-decoder without one" in ended.stderr
    assert not (folder / "cached").exists()


def test_it_loads_as_a_sequence_to_sequence_model(compressed, folder):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    import abridged  # noqa: F401

    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "small")
    tokenizer = AutoTokenizer.from_pretrained(folder / "small")
    ids = tokenizer("A fox saw ripe grapes.", return_tensors="pt")["input_ids"]
    written = model.generate(ids, num_beams=3, max_new_tokens=5)
    assert written.tolist() == load(folder / "small").generate(ids, num_beams=3, max_new_tokens=5).tolist()
