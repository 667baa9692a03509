"""A model's labels against those of the data: whose ids are whose, and files that a model is only measured on."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.tokenizer import learn_tokenizer
from abridged.families.kinds import LabelSet
from abridged.tasks import task_for

TEXT = "a dull plot and a bright scene\n" * 20


def model_of(*names):
    """A small BERT with labels of these names; transformers' own LABEL_0, LABEL_1, LABEL_2 where there are none."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=64, num_labels=3)
    for key, value in (LabelSet(names).settings() if names else {}).items():
        setattr(config, key, value)
    return BertForSequenceClassification(config).eval()


def task_of(model, path, content):
    path.write_text("text\tlabel\n" + content)
    return task_for(model, learn_tokenizer(TEXT, 300, 64, encoder=True), open_data(path))


def test_labels_that_nobody_named_are_found_by_their_numbers(tmp_path):
    task = task_of(model_of(), tmp_path / "rows.tsv", "a plot\t2\na scene\t0\n")
    assert task._of("train", 64).labels.tolist() + task._of("validation", 64).labels.tolist() in ([2, 0], [0, 2])
    assert LabelSet(("0", "1", "2")).fit(config_of(model_of()))
    assert not LabelSet(("0", "1")).fit(config_of(model_of()))
    named = task_of(model_of("x", "LABEL_0"), tmp_path / "rows.tsv", "a plot\tLABEL_0\na scene\tx\n")
    assert named.ids == {"x": 0, "LABEL_0": 1}


def config_of(model):
    model.config.architectures = [type(model).__name__]
    return model.config


@pytest.mark.parametrize(
    ("names", "rows"), [((), "a\t3\nb\t0\n"), ((), "a\tgood\nb\tbad\n"), (("0", "2"), "a\t1\nb\t0\n")]
)
def test_other_labels_are_refused_with_where_to_rename_them(names, rows, tmp_path):
    with pytest.raises(
        AbridgedError, match="rename them, in the data or in id2label and label2id of the model's config"
    ):
        task_of(model_of(*names), tmp_path / "rows.tsv", rows)


@pytest.mark.parametrize("names", [("0", "1"), ()])
def test_a_test_file_of_one_class_is_measured_on_and_all_of_it(names, tmp_path):
    task = task_of(model_of(*names), tmp_path / "rows.tsv", "a dull plot\t1\na bright scene\t1\n" * 15)
    found = task.evaluate(model_of(*names), None, None)
    assert found.facts["texts"] == 30
    assert {m.name for m in found.measurements} == {"accuracy", "score"}
    with pytest.raises(AbridgedError, match="fewer than two different labels"):
        task.data.check_to_learn()


@pytest.mark.parametrize(("names", "has_f1"), [((), False), (("0", "1"), True)])
def test_f1_is_of_two_labels_and_not_of_two_among_three(names, has_f1, tmp_path):
    task = task_of(model_of(*names), tmp_path / "rows.tsv", "a dull plot\t1\na bright scene\t0\n" * 15)
    found = task.evaluate(model_of(*names), None, None)
    assert ("f1" in {m.name for m in found.measurements}) == has_f1
