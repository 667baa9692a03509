"""A model of sentences: compressed, read by sentence-transformers, asked for vectors and measured, by the command."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from abridged.evaluation.sentences import agreement, found_passages
from abridged.evaluation.vectors import shortened, unit
from abridged.models.load import load_model
from abridged.tasks.embeddings import embed
from embedders import embedder, sentences
from isolated import Stop

LINES = sentences(60)
STEPS = ["--set", "stages.0.training.epochs=null", "--set", "stages.0.training.steps=4"]
STEPS += ["--set", "stages.0.training.save_every=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("embed")
    embedder(where / "teacher", max_length=10, query="old man ")
    (where / "a.txt").write_text("\n".join(LINES) + "\n")
    rows = "".join(f"{LINES[i]}\t{LINES[i + 1]}\t{i % 5}\n" for i in range(30))
    (where / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    return where


@pytest.fixture(scope="module")
def small(command, folder):
    ended = command(*compress(folder, "small"))
    assert ended.code == 0, ended.stderr
    return folder / "small", ended


def compress(folder, output):
    files = [folder / "teacher", "--recipe", "best-embed-2-2-8", "--data", folder / "a.txt"]
    return ["compress", *files, "--output", folder / output, *STEPS]


def test_it_is_small_says_what_was_cut_and_what_was_lost(small):
    where, ended = small
    assert "of 57 texts are longer than 10 tokens and lose their ends" in ended.stderr
    assert "top-1 agreement" in ended.stdout
    account = json.loads((where / "abridged.json").read_text())
    assert set(account["metrics"]) == {"teacher", "untrained", "student"}
    assert account["metrics"]["teacher"]["cosine"] == pytest.approx(100)
    assert account["metrics"]["student"]["cosine"] < 100
    assert account["data"]["pooling"] == "mean"
    with safe_open(where / "model.safetensors", "pt") as file:
        assert file.get_tensor("embeddings.word_embeddings.weight").numel() == 300 * 32 // 4  # bytes of 2 bits each
    assert "Nearest to" in (where / "report.html").read_text()
    assert 'SentenceTransformer("small").encode' in (where / "README.md").read_text()


def test_the_files_of_sentence_transformers_are_the_teachers(small, folder):
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert json.loads((small[0] / name).read_text()) == json.loads((folder / "teacher" / name).read_text())


def test_sentence_transformers_gives_the_same_vectors(small):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(small[0]), device="cpu")
    assert type(model[0].auto_model.encoder.layer[0].output.dense).__module__.startswith("abridged")
    found = model.encode(LINES[:9])
    own = embed(*load_model(small[0]), LINES[:9]).vectors
    np.testing.assert_allclose(found, own, atol=1e-5)
    asked = model.encode(LINES[:2], prompt_name="query")
    np.testing.assert_allclose(asked, embed(*load_model(small[0]), LINES[:2], "query").vectors, atol=1e-5)


def test_vectors_of_a_file_are_those_of_its_texts(command, small, folder):
    ended = command("embed", small[0], "--file", folder / "a.txt", "--output", folder / "v.npy")
    assert ended.code == 0, ended.stderr
    assert "60 vectors of 32 numbers" in ended.stdout
    assert "longer than 10 tokens and lost their ends" in ended.stderr
    own = embed(*load_model(small[0]), LINES).vectors
    np.testing.assert_allclose(np.load(folder / "v.npy"), own, atol=1e-6)
    one = command("embed", small[0], LINES[0], "--json")
    np.testing.assert_allclose(json.loads(one.stdout)["vector"], own[0], atol=1e-5)
    lines = command("embed", small[0], "--file", folder / "pairs.tsv", "--column", "sentence2", "--json")
    told = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [one["text"] for one in told] == LINES[1:31]
    np.testing.assert_allclose([one["vector"] for one in told], own[1:31], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dtype", "width"), [("float16", "float16", 16), ("int8", "int8", 16), ("binary", "uint8", 2)]
)
def test_vectors_are_rounded_and_cut_as_is_asked(command, small, folder, kind, dtype, width):
    asked = ["--vectors", kind, "--dimensions", "16"]
    ended = command("embed", small[0], "--file", folder / "a.txt", "--output", folder / "v.npy", *asked, "--json")
    assert ended.code == 0, ended.stderr
    assert "do not say that it was trained for vectors that are cut" in ended.stderr
    told = json.loads(ended.stdout)
    assert (told["texts"], told["width"]) == (60, 16)
    rescored = told.get("rescored", 1.0)
    # of 16 bits, 40 of 60 texts scored again are about as good; by chance they would be a sixth
    assert 0.2 < told["recall"] <= min(1.0, rescored + (0.05 if kind == "binary" else 0.0))
    assert rescored <= 1
    own = shortened(embed(*load_model(small[0]), LINES).vectors, 16)
    found = np.load(folder / "v.npy")
    assert (found.dtype, found.shape) == (dtype, (60, width))
    if kind == "binary":
        assert (np.unpackbits(found, axis=1) != (own > 0)).mean() < 0.01
    else:
        np.testing.assert_allclose(unit(found.astype(np.float32)), own, atol=2e-2)
    one = json.loads(command("embed", small[0], LINES[0], *asked, "--json").stdout)
    np.testing.assert_allclose(one["vector"], found[0].tolist(), atol=1.01 if kind == "int8" else 1e-2)


def test_neighbours_are_measured_against_another_model(command, small, folder):
    ended = command("evaluate", small[0], "--data", folder / "a.txt", "--teacher", folder / "teacher", "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    own, theirs = (embed(*load_model(one), LINES).vectors for one in (small[0], folder / "teacher"))
    assert found == pytest.approx({m.name: m.value for m in agreement(own, theirs)} | {"sentences": 60}, abs=0.1)
    ended = command("evaluate", folder / "teacher", "--data", folder / "a.txt", "--teacher", folder / "teacher")
    assert "100.000" in ended.stdout


def test_passages_that_were_judged_are_measured(command, folder):
    rows = "".join(f"old man {LINES[i]}\t{LINES[i]}\t1\n{LINES[i]}\t{LINES[i + 1]}\t0\n" for i in range(20))
    (folder / "judged.tsv").write_text(f"query\tpassage\trelevance\n{rows}\t{LINES[40]}\t0\n")
    ended = command("evaluate", folder / "teacher", "--task", "retrieval", "--data", folder / "judged.tsv", "--json")
    assert ended.code == 0, ended.stderr
    assert "20 queries, 20 answers among 22 passages" in ended.stderr
    found = json.loads(ended.stdout)
    assert (found["queries"], found["passages"]) == (20, 22)
    model = load_model(folder / "teacher")
    asked = embed(*model, [f"old man {line}" for line in LINES[:20]], "query").vectors
    given = embed(*model, [*LINES[:21], LINES[40]]).vectors
    own = found_passages(asked, given, [{i: 1.0} for i in range(20)])
    assert {m.name: found[m.name] for m in own} == pytest.approx({m.name: m.value for m in own})


def test_scores_are_measured(command, small, folder):
    ended = command("evaluate", small[0], "--task", "stsb", "--data", folder / "pairs.tsv", "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert -100 <= found["spearman"] <= 100
    assert found["pairs"] == 30


def test_stopped_and_resumed_it_is_the_same(command, small, folder):
    assert command(*compress(folder, "again"), stop=Stop("abridged.training.loop:Trainer.step", 3)).code == -9
    ended = command(*compress(folder, "again"), "--resume")
    assert ended.code == 0, ended.stderr
    assert (folder / "again/model.safetensors").read_bytes() == (small[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{teacher}", " "], "a text is empty"),
        (["embed", "{teacher}", "--file", "{gap}"], "line 2 of"),
        (["embed", "{teacher}", "--file", "{pairs}"], "say which holds the sentences"),
        (["embed", "{teacher}", "--file", "{pairs}", "--column", "body"], "has no column 'body'"),
        (["embed", "{teacher}", "red", "--prompt", "passage"], "no prompt called 'passage': it has query"),
        (["embed", "bundled", "red"], "without modules.json makes no vectors"),
        (["evaluate", "{teacher}", "--data", "{gap}"], "has no pairs with scores"),
        (["evaluate", "{teacher}", "--task", "retrieval", "--data", "{gap}"], "cannot read rows from"),
        (["evaluate", "{teacher}", "--task", "retrieval", "--data", "{pairs}", "--columns", "a,b"], "no column 'a'"),
        (["evaluate", "{teacher}", "--data", "{gap}", "--teacher", "bundled"], "makes no vectors of texts"),
        (["embed", "{teacher}", "red", "--dimensions", "33"], "vectors of 32 numbers cannot be cut to 33"),
    ],
)
def test_bad_input_ends_in_one_sentence(command, folder, arguments, message):
    (folder / "gap.txt").write_text("red sea\n\nold man\n")
    paths = {"teacher": folder / "teacher", "gap": folder / "gap.txt", "pairs": folder / "pairs.tsv"}
    ended = command(*[argument.format(**paths) for argument in arguments])
    assert ended.code == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_sentence_has_none_to_be_set_against(command, folder):
    (folder / "one.txt").write_text("red sea\n")
    files = ["--recipe", "best-embed-2-2-8", "--data", folder / "one.txt", "--output", folder / "none"]
    ended = command("compress", folder / "teacher", *files)
    assert ended.code == 1
    assert "has one sentence to learn from: give 4 or more" in ended.stderr
    assert len(ended.said) == 1


def test_a_model_that_is_cut_first_has_narrower_vectors_and_its_files_say_so(command, folder):
    steps = [word for i in range(3) for word in ("--set", f"stages.{i}.steps=10")]
    files = [folder / "teacher", "--recipe", "best-embed-vtrans-2-2-8", "--data", folder / "a.txt"]
    ended = command("compress", *files, "--output", folder / "half", *steps)
    assert ended.code == 0, ended.stderr
    vectors = embed(*load_model(folder / "half"), LINES[:9]).vectors
    said = json.loads((folder / "half/1_Pooling/config.json").read_text())
    assert said["word_embedding_dimension"] == vectors.shape[1] < 32
    metrics = json.loads((folder / "half/abridged.json").read_text())["metrics"]
    assert metrics["teacher"]["cosine"] == pytest.approx(100)
    assert metrics["student"]["cosine"] > 50
    asked = ["--data", folder / "a.txt", "--teacher", folder / "teacher", "--json"]
    told = json.loads(command("evaluate", folder / "half", *asked).stdout)
    assert "cosine" not in told
    assert told["neighbours"] > 20
