"""Filling masks as a task: what is read, what is measured, what is filled in."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.masking import MaskedTexts
from abridged.data.opening import open_data
from abridged.data.text import count_words
from abridged.evaluation.pseudo_perplexity import pseudo_perplexity
from abridged.models.load import load_dense, load_tokenizer
from abridged.tasks import task_for
from abridged.tasks.masked_language_modeling import MaskedLanguageModeling, fill_masks
from teachers import write_bert

TEXT = "The old man looked at the sea . A dull plot and a bright scene in town .\n" * 30


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("bert"), TEXT)
    (folder / "text.txt").write_text(TEXT)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    return model, load_tokenizer(folder), open_data(folder / "text.txt", task="mlm")


def test_a_text_is_read_in_windows_and_measured_on_all_of_it(masked):
    model, tokenizer, data = masked
    task = task_for(*masked)
    assert isinstance(task, MaskedLanguageModeling)
    settings = TrainingSettings(context=16, evaluate_tokens=160)
    assert task.examples(settings).context == 16
    assert task.examples(TrainingSettings()).context == 48  # the model's own, below 128
    windows = MaskedTexts.of(data.validation, tokenizer, 16)
    wanted = pseudo_perplexity(model, windows, count_words(data.validation), limit=10)
    assert task.validation(model, settings)()["perplexity"] == wanted["perplexity"]
    assert task.measure(model, "test", settings)["tokens_in_all"] == sum(own.sum() for own in windows.own)
    found = task.evaluate(model, 16, None, limit=5)
    assert found["tokens"] == 5
    assert found["context"] == 16
    assert task.facts()["train_tokens"] == len(tokenizer(data.train, add_special_tokens=False)["input_ids"])


def test_samples_and_picture_read_the_test_part_and_leave_the_generator_alone(masked):
    task = task_for(*masked)
    torch.manual_seed(5)
    batch = task.picture()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert batch.labelled.any()
    group = task.samples({"teacher": masked[0]})[0]
    assert masked[1].mask_token in group.prompt
    said = {sample.name: sample.text for sample in group.samples}
    assert said["reference"] == "looked"
    assert said["teacher"].count("%") == 3


def test_masks_are_filled_with_the_likeliest_tokens(masked):
    model, tokenizer, _ = masked
    texts = ["The [MASK] man looked at <mask> sea", "A [MASK] plot"]
    found = fill_masks(model, tokenizer, texts, most=3)
    assert [len(masks) for masks in found] == [2, 1]
    ids = tokenizer(texts[1].replace("[MASK]", tokenizer.mask_token), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        chances = model(ids).logits[ids == tokenizer.mask_token_id].softmax(-1)[0]
    best = chances.topk(3)
    assert [one["probability"] for one in found[1][0]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert [one["word"] for one in found[1][0]] == [tokenizer.decode([i]).strip() for i in best.indices.tolist()]
    assert fill_masks(model, tokenizer, texts[1:], most=3)[0][0][0]["word"] == found[1][0][0]["word"]


@pytest.mark.parametrize(
    ("texts", "message"), [(["no mask"], "has no \\[MASK\\] to fill"), ("a [MASK]", "takes a list")]
)
def test_a_text_without_a_mask_is_refused(masked, texts, message):
    with pytest.raises(AbridgedError, match=message):
        fill_masks(*masked[:2], texts)


def test_a_model_that_writes_fills_no_masks(teacher):
    with pytest.raises(AbridgedError, match="a GPT2LMHeadModel does not fill masks"):
        fill_masks(load_dense(teacher), load_tokenizer(teacher), ["a [MASK]"])


def test_a_new_head_for_masks_is_one(tmp_path):
    folder = write_bert(tmp_path / "bert", TEXT)
    assert type(load_dense(folder, head="MaskedLM")).__name__ == "BertForMaskedLM"
    with pytest.raises(AbridgedError, match="which has no columns"):
        open_data("wikitext-2", ("a",), "mlm")
