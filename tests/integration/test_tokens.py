"""From tagged words, and from a plain text, to packed models that label tokens and fill masks, through the command
line."""

import json
import random

import pytest
import yaml
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

import abridged as package
from abridged.tasks.masked_language_modeling import fill_masks
from abridged.tasks.token_classification import find_entities
from isolated import Stop
from teachers import make_recipe, write_bert

QUICK = ["evaluate_every=20", "save_every=7", "compile=no", "mixed_precision=no", "batch_size=8"]
TEXT = "the old man saw the sea and the old town saw the man . a man and a town are old .\n" * 60


def settings(*pairs):
    return [word for pair in (*QUICK, *pairs) for word in ("--set", pair)]


def write_names(path, count=160):
    """Sentences in which names of people and places are told by their words."""
    draw, lines = random.Random(0), []
    for _ in range(count):
        person = [("Anna", "B-PER")] + ([("Curie", "I-PER")] if draw.random() < 0.5 else [])
        place = [(draw.choice(["Paris", "Oslo"]), "B-LOC")]
        middle = [(word, "O") for word in draw.choice(["saw the", "went to", "lives in old"]).split()]
        words = [*person, *middle, *place] if draw.random() < 0.7 else [*place, *middle, *person]
        lines += [f"{word} {tag}\n" for word, tag in words] + ["\n"]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def names(folder):
    return write_names(folder / "names.conll")


@pytest.fixture(scope="module")
def recipe(folder):
    objectives = {"logits": {"weight": 1.0}, "hidden": {"weight": 0.1}, "attention": {"weight": 0.1, "loss": "mse"}}
    quantize = {"weights": {"bits": 2}, "embeddings": {"bits": 2}, "positions": True, "unquantized": "float16"}
    quantize["gptq"] = True
    made = make_recipe(stages=1, objectives=objectives, quantize=quantize, steps=20, learning_rate=3e-3)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def teacher(command, folder, names):
    model = write_bert(folder / "bert", names.read_text())
    arguments = ["finetune", model, "--data", names, "--output", folder / "teacher", "--json"]
    ended = command(*arguments, *settings("steps=60", "learning_rate=3e-3"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["data"]["tags"] == ["B-LOC", "B-PER", "I-PER", "O"]
    assert record["validation"]["after"]["f1"] > 90 > record["validation"]["before"]["f1"]
    return folder / "teacher"


@pytest.fixture(scope="module")
def compressed(command, folder, teacher, names, recipe):
    files = ["compress", teacher, "--recipe", recipe, "--data", names, "--output", folder / "small", "--json"]
    ended = command(*files)
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_account_and_the_report_of_tags(compressed, folder):
    assert compressed["metrics"]["student"]["f1"] > 80
    assert compressed["loss_percent"].keys() == {"score"}
    page = (folder / "small" / "report.html").read_text()
    for told in ("Validation score", "F1 of each kind", "PER (", "as each model reads them", "accuracy of tags"):
        assert told in page
    assert "AutoModelForTokenClassification.from_pretrained" in page
    assert "pipeline_tag: token-classification" in (folder / "small" / "README.md").read_text()


def test_entities_of_a_packed_model(compressed, command, folder, names):
    small = folder / "small"
    ended = command("classify", small, "Anna Curie saw the Oslo")
    assert ended.code == 0, ended.stderr
    lines = [line.split("\t") for line in ended.stdout.splitlines()]
    assert [[line[0], line[1], line[3]] for line in lines] == [["Anna Curie", "PER", "0-10"], ["Oslo", "LOC", "19-23"]]
    (folder / "lines.txt").write_text("Anna saw the Oslo\n\nParis saw the Anna\n")
    ended = command("classify", small, "--file", folder / "lines.txt")
    assert [line.split("\t")[0] for line in ended.stdout.split("\n")[:-1]] == [
        *["Anna", "Oslo"],
        "",
        "",
        *["Paris", "Anna"],
        "",
    ]
    model = AutoModelForTokenClassification.from_pretrained(small)
    assert type(model.bert.encoder.layer[0].attention.self.query).__name__ == "PackedLinear"
    found, _ = find_entities(model, AutoTokenizer.from_pretrained(small), ["Anna Curie saw the Oslo"])
    assert [one["label"] for one in found[0]] == ["PER", "LOC"]
    ended = command("evaluate", small, "--data", names, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["texts"] == 160
    ended = command("classify", small, "one", "two")
    assert ended.code == 1
    assert "reads one text at a time" in ended.stderr
    assert package.inspect(small)["ratio"] > 3


def test_stopped_and_resumed_a_masked_model_is_the_same(command, folder, recipe):
    """Masks are drawn in every step, from the step alone."""
    model = write_bert(folder / "masked-bert", TEXT)
    (folder / "text.txt").write_text(TEXT)
    files = ["finetune", model, "--data", folder / "text.txt", "--output", folder / "filler", "--json"]
    ended = command(*files, *settings("steps=60", "learning_rate=3e-3", "evaluate_tokens=3000"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["validation"]["after"]["perplexity"] < record["validation"]["before"]["perplexity"] / 4
    files = ["compress", folder / "filler", "--recipe", recipe, "--data", folder / "text.txt", "--output"]
    ended = command(*files, folder / "small-filler", "--json")
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["metrics"]["student"]["perplexity"] < 100
    assert record["loss_percent"].keys() == {"perplexity", "word_perplexity"}
    page = (folder / "small-filler" / "report.html").read_text()
    assert "pseudo-perplexity per token" in page
    assert "AutoModelForMaskedLM.from_pretrained" in page
    assert "pipeline_tag: fill-mask" in (folder / "small-filler" / "README.md").read_text()
    small = AutoModelForMaskedLM.from_pretrained(folder / "small-filler")
    found = fill_masks(small, AutoTokenizer.from_pretrained(folder / "small-filler"), ["the old [MASK] saw"], 2)
    ended = command("classify", folder / "small-filler", "the old [MASK] saw", "--top", "2")
    assert ended.code == 0, ended.stderr
    assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == [one["word"] for one in found[0][0]]
    ended = command("evaluate", folder / "small-filler", "--data", folder / "text.txt", "--limit", "20")
    assert "pseudo-perplexity per token" in ended.stdout
    assert command(*files, folder / "again", stop=Stop("abridged.training.loop:Trainer.step", 13)).code == -9
    ended = command(*files, folder / "again", "--resume")
    assert ended.code == 0, ended.stderr
    stored = [next((folder / name).glob("*.safetensors")).read_bytes() for name in ("small-filler", "again")]
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "bundled", "--task", "mlm", "--data", "wikitext-2"], "only an encoder learns to fill masks"),
        (["finetune", "{bert}", "--data", "{broken}"], "line 2 of"),
        (["finetune", "{bert}", "--data", "{one}"], "needs one to learn from and one to choose by"),
        (["compress", "{teacher}", "--recipe", "{recipe}", "--data", "wikitext-2"], "words with tags are wanted"),
        (["compress", "{teacher}", "--recipe", "{recipe}", "--data", "{other}"], "has the tag 'B-ORG'"),
    ],
)
def test_bad_input_ends_in_one_sentence(teacher, command, folder, recipe, arguments, message):
    (folder / "broken.conll").write_text("Anna B-PER\nsaw\n")
    (folder / "one.conll").write_text("Anna B-PER\nsaw O\n")
    (folder / "other.conll").write_text("Acme B-ORG\nsaw O\n\n" * 4)
    files = {name: folder / f"{name}.conll" for name in ("broken", "one", "other")}
    filled = [a.format(bert=folder / "bert", teacher=teacher, recipe=recipe, **files) for a in arguments]
    ended = command(*filled, "--output", folder / "none")
    assert ended.code == 1
    assert message in ended.stderr
    assert len(ended.said) == 1
    assert not (folder / "none").exists()
