"""Killed at any operation on files, a verb done again makes what an undisturbed one makes, and nothing good is gone."""

import json
import shutil

import pytest
import yaml

import isolated
import killed
from embedders import embedder, sentences
from teachers import make_recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory, text, teacher):
    """A folder with a recipe that is over in two steps, a compressed model and one that abridged wrote otherwise."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = make_recipe(objectives={"logits": {}}, steps=2, save_every=1, evaluate_every=2)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    compress = ["compress", teacher, "--recipe", folder / "recipe.yaml", "--data", text]
    ended = isolated.abridged(*compress, "--output", folder / "model", folder=folder / "process")
    assert ended.code == 0, ended.stderr
    shutil.copytree(folder / "model", folder / "old")
    (folder / "old" / "notes.txt").write_text("precious")
    embedder(folder / "embedder")
    (folder / "sentences.txt").write_text("\n".join(sentences(20)) + "\n")
    return folder


VERBS = {
    "compress": ["compress", "TEACHER", "--recipe", "RECIPE", "--data", "TEXT", "--output", "OUT"],
    "finetune": [
        *("finetune", "TEACHER", "--data", "TEXT", "--output", "OUT", "--set", "steps=2", "--set", "save_every=1"),
        *("--set", "context=16", "--set", "compile=no", "--set", "mixed_precision=no"),
    ],
    "trim": ["trim", "TEACHER", "--data", "TEXT", "--output", "OUT", "--min-count", "3", "--also", "TEXT"],
    "embed": ["embed", "EMBEDDER", "--data", "SENTENCES", "--output", "OUT", "--shard-rows", "8", "--workers", "1"],
    "export dense": ["export", "MODEL", "--output", "OUT"],
    "export gguf": ["export", "MODEL", "--format", "gguf", "--dtype", "float16", "--output", "OUT"],
}


SLOW = [pytest.mark.slow, pytest.mark.timeout(3000)]
#: Which verb, whether over what is there, and whether at every operation; compress and finetune share their code.
CASES = [
    *(pytest.param(name, over, False) for name, over in (("finetune", True), ("trim", True))),
    *(pytest.param(name, False, False) for name in VERBS if name.startswith("export")),
    *(pytest.param(name, False, True, marks=SLOW) for name in VERBS),
    *(pytest.param(name, True, True, marks=SLOW) for name in ("compress", "finetune", "trim")),
]


@pytest.mark.parametrize(("name", "over", "every"), CASES)
def test_killed_at_an_operation_on_files(tmp_path, monkeypatch, small, text, teacher, name, over, every):
    places = {
        **{"TEACHER": teacher, "TEXT": text, "RECIPE": small / "recipe.yaml", "MODEL": small / "model"},
        **{"EMBEDDER": small / "embedder", "SENTENCES": small / "sentences.txt", "OUT": tmp_path / "place" / "out"},
    }
    command = [str(places.get(word, word)) for word in VERBS[name]]
    first = [*command, "--overwrite"] if over else command
    resume = [*command, "--resume"] if name in ("compress", "embed", "finetune") else first
    old, report = str(small / "old") if over else None, tmp_path / "report.json"
    monkeypatch.setattr(isolated, "TIMEOUT", 3000)
    asked = (first, resume, str(places["OUT"]), old, every, str(report))
    ended = isolated.call(killed.verb, *asked, folder=tmp_path / "process")
    assert ended.code == 0, ended.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["wrong"] == []
    assert found["tried"] == len(found["operations"]) if every else found["tried"] > 3
