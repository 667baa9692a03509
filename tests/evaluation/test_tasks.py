"""Tasks of lm-evaluation-harness on a compressed model, with a task described by files on this disk."""

import json

import pytest
from typer.testing import CliRunner

from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.cli.app import app
from abridged.core.errors import AbridgedError
from abridged.evaluation.tasks import evaluate_tasks
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense, load_tokenizer

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.engine
TASK = """
task: which_goes_on
dataset_path: json
dataset_kwargs:
  data_files:
    test: {documents}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["{{{{right}}}}", "{{{{wrong}}}}"]
doc_to_target: 0
metric_list:
  - metric: acc
"""
DOCUMENTS = [
    {"text": "He was born in the United", "right": " States", "wrong": " towards"},
    {"text": "In the second half of the", "right": " season", "wrong": " slowly"},
    {"text": "The film was released in", "right": " the", "wrong": " went"},
    {"text": "It is one of the", "right": " most", "wrong": " were"},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks") / "small"
    model, tokenizer = load_dense("bundled"), load_tokenizer("bundled")
    method = Quantize.model_validate({"weights": {"bits": 8}, "embeddings": {"bits": 8}, "activations": {"bits": None}})
    attached = method.build(model, families.view(model), lambda model: None)
    attached.finish()
    save_checkpoint(model, directory, tokenizer, {"recipe": {"name": "test"}, "teacher": "bundled", "seed": 0})
    return directory


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "which.yaml").write_text(TASK.format(documents=documents))
    return tmp_path / "tasks"


def test_a_task_from_local_files(small, folder):
    scores = evaluate_tasks(small, ["which_goes_on"], include=folder)
    assert scores["which_goes_on"]["acc"] == 1.0


def test_the_command_prints_the_scores(small, folder):
    command = ["evaluate", str(small), "--tasks", "which_goes_on", "--tasks-folder", str(folder), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["which_goes_on"]["acc"] == 1.0


def test_an_unknown_task_is_named(small, folder):
    with pytest.raises(AbridgedError, match="no task 'which_goes_of'"):
        evaluate_tasks(small, ["which_goes_of"], include=folder)
