"""What data are to a model, and how it is measured on them."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import abridged
import tiny
from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.opening import open_data
from abridged.evaluation.perplexity import reference_perplexity
from abridged.families.kinds import LabelSet
from abridged.models.load import load_dense, load_tokenizer
from abridged.tasks import task_for
from abridged.tasks.denoising import TextDenoising
from abridged.tasks.language_modeling import LanguageModeling
from abridged.tasks.sequence_to_sequence import SequenceToSequence
from teachers import FABLES, write_bert, write_reviews

SETTINGS = TrainingSettings(evaluate_tokens=200)


def test_the_model_and_the_data_say_what_the_task_is(bart, teacher, text, tmp_path):
    gpt2 = load_dense(teacher)
    assert type(task_for(gpt2, load_tokenizer(teacher), open_data(text))) is LanguageModeling
    assert type(task_for(*bart, open_data(FABLES))) is SequenceToSequence
    assert type(task_for(*bart, open_data(text))) is TextDenoising
    (tmp_path / "text.jsonl").write_text('{"text": "only a text"}\n' * 40)
    assert type(task_for(*bart, open_data(tmp_path / "text.jsonl"))) is TextDenoising
    with pytest.raises(AbridgedError, match="for an encoder-decoder"):
        task_for(gpt2, load_tokenizer(teacher), open_data(FABLES, ("text", "summary")))


def test_what_has_no_task_yet_is_said_with_what_works(text, teacher):
    with pytest.raises(
        AbridgedError, match="gives hidden states, for which there is no task yet: it can be .* to label"
    ):
        task_for(tiny.build("llama-bare"), load_tokenizer(teacher), open_data(text))


def test_a_task_is_for_a_model_that_labels(teacher, tmp_path):
    rows = write_reviews(tmp_path / "reviews.tsv", 40)
    with pytest.raises(AbridgedError, match="a GPT2LMHeadModel does not label texts, which the task labels asks for"):
        task_for(load_dense(teacher), load_tokenizer(teacher), open_data(rows, task="labels"))


def test_perplexity_of_targets_is_that_of_each_pair_on_its_own(bart):
    model, tokenizer = bart
    task = task_for(model, tokenizer, open_data(FABLES))
    total = count = 0
    for pair in task.pairs.to_evaluate:
        source = tokenizer(pair.source, return_tensors="pt", truncation=True, max_length=64)["input_ids"]
        target = tokenizer(pair.target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=source, labels=target).logits
        total += F.cross_entropy(logits[0, 1:], target[0, 1:], reduction="sum").item()
        count += target.shape[1] - 1
    measured = task.evaluate(model, None, None)
    assert measured["tokens"] == count
    assert measured["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert measured["words"] == sum(len(pair.target.split()) + 1 for pair in task.pairs.to_evaluate)
    with pytest.raises(AbridgedError, match="a stride is for"):
        task.evaluate(model, None, 8)


def test_what_is_cut_is_counted_and_said(bart):
    task = task_for(*bart, open_data(FABLES))
    examples = task.examples(TrainingSettings(context=32, target_context=8))
    assert max(map(len, examples.sources)) == 32
    assert max(map(len, examples.targets)) == 8
    assert task.facts()["sources_cut"] == examples.source_cut == len(examples)
    assert f"{len(examples)} of {len(examples)} sources are longer than 32 tokens and lose their ends" in task.notes
    assert any(note.endswith("targets are longer than 8 tokens and lose their ends") for note in task.notes)
    assert task.examples(TrainingSettings(context=32, target_context=8)) is examples
    with pytest.raises(AbridgedError, match=r"training.context is 65, but the model's positions end at 64"):
        task.examples(TrainingSettings(context=65))


def test_rows_that_are_left_out_are_said(bart, tmp_path):
    rows = [json.loads(line) for line in FABLES.read_text().splitlines()]
    rows[3]["summary"] = "  "
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_for(*bart, open_data(tmp_path / "rows.jsonl"))
    assert "; 1 rows without summary left out (line 4)" in task.data.describe()


def test_validation_reads_part_of_what_measuring_reads(bart):
    model, _ = bart
    task = task_for(*bart, open_data(FABLES))
    quick = task.validation(model, SETTINGS.model_copy(update={"evaluate_tokens": 10_000}))()
    assert quick["perplexity"] == pytest.approx(task.measure(model, "validation", SETTINGS)["perplexity"])


def test_denoising_is_measured_on_the_same_noise_and_leaves_the_generator_alone(bart, text):
    model, _ = bart
    task = task_for(*bart, open_data(text))
    torch.manual_seed(5)
    task.examples(SETTINGS)
    first = task.measure(model, "test", SETTINGS)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert task.measure(model, "test", SETTINGS) == first
    assert task.facts()["train_tokens"] == len(task.examples(SETTINGS).text)
    assert task.samples({}) == []


def test_a_limit_reads_the_first_ones(bart):
    model, _ = bart
    examples = task_for(*bart, open_data(FABLES)).examples(SETTINGS)
    some = reference_perplexity(model, examples, words=100, limit=3)
    assert some["examples"] == 3
    assert some["tokens"] == sum(len(target) - 1 for target in examples.targets[:3])


@pytest.fixture
def encoder(tmp_path):
    reviews = write_reviews(tmp_path / "reviews.tsv", 40)
    write_bert(tmp_path / "bert", reviews.read_text())
    model = load_dense(tmp_path / "bert", LabelSet(("bad", "good")))
    return model, load_tokenizer(tmp_path / "bert"), reviews


TEXT = " = Heading = \n\n The first sentence is here . And here is the second one ! No . \n A third @-@ long one ends ."


@pytest.mark.parametrize("pairs", [False, True])
def test_a_stage_reads_the_sentences_of_a_text_instead(encoder, tmp_path, pairs):
    model, tokenizer, reviews = encoder
    (tmp_path / "text.txt").write_text(TEXT + "\n" * 4 + "The end that is held out for validation .\n" * 2)
    if pairs:
        rows = [line.split("\t") for line in reviews.read_text().splitlines()[1:]]
        lines = [f"{text}\t{text}\t{label}" for text, label in rows]
        reviews.write_text("\n".join(["first\tsecond\tlabel", *lines]) + "\n")
    task = task_for(model, tokenizer, open_data(reviews))
    examples = task.examples(TrainingSettings(texts=str(tmp_path / "text.txt")))
    first, second = "The first sentence is here .", "And here is the second one !"
    wanted = tokenizer(first, second if pairs else None, truncation=True, max_length=48)
    assert examples.ids[0].tolist() == wanted["input_ids"]
    assert task.examples(TrainingSettings()).fingerprint() != examples.fingerprint()
    assert task.facts()["train_texts"] == len(task.examples(TrainingSettings()))
    (tmp_path / "none.txt").write_text("Too short .\n" * 50)
    with pytest.raises(AbridgedError, match="has no"):
        task.examples(TrainingSettings(texts=str(tmp_path / "none.txt")))


def test_a_stage_of_a_model_that_writes_reads_another_text(teacher, text, tmp_path):
    (tmp_path / "other.txt").write_text("other words than those " * 200)
    task = task_for(load_dense(teacher), load_tokenizer(teacher), open_data(text))
    own, other = (task.examples(TrainingSettings(texts=t)) for t in (None, str(tmp_path / "other.txt")))
    assert own.fingerprint() != other.fingerprint()
    assert task.facts()["train_tokens"] == len(task.tokens()) != len(task.tokens(str(tmp_path / "other.txt")))


def test_an_encoder_decoder_reads_no_other_text(bart, text):
    with pytest.raises(AbridgedError, match=r"training\.texts"):
        task_for(*bart, open_data(FABLES)).examples(TrainingSettings(texts=str(text)))


def test_labels_from_python(teacher):
    model = load_dense(teacher, LabelSet(("bad", "fair", "good")))
    tokenizer = load_tokenizer(teacher, model)
    found = abridged.classify(model, tokenizer, ["a b", "a longer text", "a b"], ["c", "d", "c"])
    assert [list(row) for row in found] == [["bad", "fair", "good"]] * 3
    assert found[0] == pytest.approx(found[2]) != found[1]
    assert sum(found[1].values()) == pytest.approx(1)
    assert abridged.classify(model, tokenizer, []) == []
    for texts, seconds in (("a text", None), (["a", "b"], ["c"])):
        with pytest.raises(AbridgedError, match="takes a list of texts, and as many seconds"):
            abridged.classify(model, tokenizer, texts, seconds)
    with pytest.raises(AbridgedError, match="a GPT2LMHeadModel does not label texts"):
        abridged.classify(load_dense(teacher), tokenizer, ["a"])
