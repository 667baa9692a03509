"""From a two-column .tsv to a packed classifier, through the command line."""

import json

import pytest
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import abridged as package
from abridged.data.opening import open_data
from abridged.tasks.augment import write_rows
from isolated import Stop
from teachers import make_recipe, write_bert, write_reviews, write_teacher

QUICK = ["evaluate_every=20", "save_every=7", "compile=no", "mixed_precision=no", "batch_size=8"]


def settings(*pairs):
    return [word for pair in (*QUICK, *pairs) for word in ("--set", pair)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reviews")


@pytest.fixture(scope="module")
def reviews(folder):
    return write_reviews(folder / "reviews.tsv")


@pytest.fixture(scope="module")
def teacher(command, folder, reviews):
    model = write_bert(folder / "bert", reviews.read_text())
    arguments = ["--data", reviews, "--output", folder / "teacher", "--json"]
    ended = command("finetune", model, *arguments, *settings("steps=80", "learning_rate=3e-3"))
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["data"]["labels"] == ["bad", "good"]
    assert record["validation"]["after"]["accuracy"] > 90 > record["validation"]["before"]["accuracy"]
    return folder / "teacher"


@pytest.fixture(scope="module")
def recipe(folder):
    objectives = {"logits": {"weight": 1.0}, "hidden": {"weight": 0.1}, "attention": {"weight": 0.1, "loss": "mse"}}
    quantize = {"weights": {"bits": 1}, "embeddings": {"bits": 1}, "positions": True, "unquantized": "float16"}
    quantize["gptq"] = True
    made = make_recipe(stages=1, objectives=objectives, quantize=quantize, steps=20, learning_rate=3e-3)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def compressed(command, folder, teacher, reviews, recipe):
    files = ["compress", teacher, "--recipe", recipe, "--data", reviews, "--output", folder / "small", "--json"]
    ended = command(*files)
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_account_and_the_report(compressed, folder):
    assert set(compressed["metrics"]) == {"teacher", "untrained", "student"}
    assert compressed["metrics"]["student"]["accuracy"] > 80
    assert compressed["loss_percent"].keys() == {"score"}
    page = (folder / "small" / "report.html").read_text()
    assert "Validation score" in page
    assert "accuracy" in page
    assert "perplexity per token" not in page
    assert "AutoModelForSequenceClassification.from_pretrained" in page
    assert "pipeline_tag: text-classification" in (folder / "small" / "README.md").read_text()


def test_what_was_measured_is_what_was_stored(compressed, command, folder, reviews):
    write_rows(open_data(reviews).as_labelled().test, folder / "held-out.tsv")
    ended = command("evaluate", folder / "small", "--data", folder / "held-out.tsv", "--json")
    assert ended.code == 0, ended.stderr
    assert "; 24 to measure" in ended.stderr
    measured = json.loads(ended.stdout)
    assert measured["accuracy"] == compressed["metrics"]["student"]["accuracy"]


def test_classify(compressed, command, folder):
    small = folder / "small"
    ended = command("classify", small, "a bright story and a warm scene")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.split("\t")[0] in ("good", "bad")
    (folder / "lines.txt").write_text("plot plot dull scene\n\nplot plot fine scene\n")
    ended = command("classify", small, "--file", folder / "lines.txt", "--json")
    assert ended.code == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert len(rows) == 3
    assert all(sum(row.values()) == pytest.approx(1) for row in rows)
    model = AutoModelForSequenceClassification.from_pretrained(small)
    assert model.config.id2label == {0: "bad", 1: "good"}
    texts = ["plot plot dull scene", "", "plot plot fine scene"]
    found = package.classify(model, AutoTokenizer.from_pretrained(small), texts)
    assert [row == pytest.approx(other, abs=1e-6) for row, other in zip(found, rows, strict=True)] == [True] * 3
    assert package.inspect(small)["ratio"] > 3


def test_stopped_and_resumed_it_is_the_same(compressed, command, folder, teacher, reviews, recipe):
    files = ["compress", teacher, "--recipe", recipe, "--data", reviews, "--output", folder / "again"]
    assert command(*files, stop=Stop("abridged.training.loop:Trainer.step", 13)).code == -9
    ended = command(*files, "--resume")
    assert ended.code == 0, ended.stderr
    stored = [next((folder / name).glob("*.safetensors")).read_bytes() for name in ("small", "again")]
    assert stored[0] == stored[1]


def test_a_stage_learns_from_sentences_without_labels(command, folder, teacher, reviews):
    (folder / "sentences.txt").write_text("A plain sentence about a town . Another one about music .\n" * 60)
    learning = {"hidden": {}, "attention": {"loss": "mse"}, "logits": {}}
    stages = make_recipe(stages=2, objectives=learning, learning_rates={}, batch_size=8)
    stages["stages"][0]["training"]["texts"] = str(folder / "sentences.txt")
    (folder / "texts.yaml").write_text(yaml.safe_dump(stages))
    files = ["compress", teacher, "--recipe", folder / "texts.yaml", "--data", reviews]
    ended = command(*files, "--output", folder / "general")
    assert ended.code == 0, ended.stderr
    record = json.loads((folder / "general" / "abridged.json").read_text())
    assert record["data"]["train_texts"] == 240 * 9 // 10
    stages["stages"][0]["objectives"] = {"labels": {}}
    (folder / "texts.yaml").write_text(yaml.safe_dump(stages))
    ended = command(*files, "--output", folder / "none")
    assert ended.code == 1
    assert "has no labels" in ended.stderr
    texts = settings("steps=2", f"texts={folder / 'sentences.txt'}")
    ended = command("finetune", teacher, "--data", reviews, "--output", folder / "none", *texts)
    assert ended.code == 1
    assert "has no labels" in ended.stderr


def test_labels_that_are_not_the_models(command, folder, teacher, recipe):
    strange = folder / "strange.tsv"
    strange.write_text("text\tlabel\n" + "x\tyes\ny\tno\n" * 20)
    ended = command("compress", teacher, "--recipe", recipe, "--data", strange, "--output", folder / "no")
    assert ended.code == 1
    assert "has the label 'no', and the model's labels are bad, good" in ended.stderr
    assert not (folder / "no").exists()


def test_a_teacher_of_other_labels_gets_a_new_head(command, folder, teacher):
    strange = folder / "other.tsv"
    strange.write_text("text\tlabel\n" + "x\tyes\ny\tno\nz\tperhaps\n" * 20)
    files = ["finetune", teacher, "--data", strange, "--output", folder / "three", "--json"]
    ended = command(*files, *settings("steps=2"))
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["data"]["labels"] == ["no", "perhaps", "yes"]


def test_a_gpt2_learns_to_label_and_is_packed(command, folder, reviews, recipe):
    text = folder / "text.txt"
    text.write_text(reviews.read_text())
    small = write_teacher(folder / "gpt2", text)
    files = ["finetune", small, "--data", reviews, "--task", "labels", "--output", folder / "labelling"]
    ended = command(*files, *settings("steps=80", "learning_rate=3e-3"))
    assert ended.code == 0, ended.stderr
    files = ["compress", folder / "labelling", "--recipe", recipe, "--data", reviews, "--output", folder / "packed"]
    ended = command(*files, "--set", "stages.0.methods.quantize.positions=false", "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["metrics"]["student"]["accuracy"] > 80
    ended = command("classify", folder / "packed", "plot plot dull scene")
    assert ended.stdout.split("\t")[0] == "bad"
    ended = command("generate", folder / "packed", "plot")
    assert ended.code == 1
    assert "a GPT2ForSequenceClassification writes no text" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "bundled", "text"], "does not label texts"),
        (["evaluate", "bundled", "--data", "{reviews}", "--task", "sst2"], "with the files of sst2"),
        (["evaluate", "bundled", "--data", "{glue}", "--task", "sst2"], "does not label texts"),
        (["evaluate", "{small}", "--data", "{folder}", "--task", "sst3"], "no task called 'sst3'"),
        (["evaluate", "{small}", "--data", "{reviews}", "--context", "1"], "a context of 1 is too short"),
        (["generate", "{small}", "text"], "a BertForSequenceClassification writes no text"),
        (["classify", "{small}", "--file", "nowhere.txt"], "cannot read nowhere.txt"),
    ],
)
def test_bad_input_ends_in_one_sentence(compressed, command, folder, reviews, arguments, message):
    glue = folder / "glue"
    glue.mkdir(exist_ok=True)
    for part in ("train", "dev"):
        (glue / f"{part}.tsv").write_text("sentence\tlabel\n" + "good\t1\nbad\t0\n" * 10)
    filled = [a.format(small=folder / "small", reviews=reviews, folder=folder, glue=glue) for a in arguments]
    ended = command(*filled)
    assert ended.code == 1
    assert message in ended.stderr
    assert len(ended.said) == 1
