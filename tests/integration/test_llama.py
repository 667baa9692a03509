"""A real LLaMA (stories260K) from its published file through compress, the packed directory and the exports."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import abridged
from abridged.checkpoint.load import load
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.dense import dense_model

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets" / "stories260K"
SHORT = [
    "stages.0.steps=30", "stages.0.batch_size=4", "stages.0.context=128", "stages.0.evaluate_tokens=512",
    "stages.0.compile=no", "stages.0.mixed_precision=no", "stages.0.evaluate_every=30",
]  # fmt: skip
RECIPES = {"2-2-8": "quantgpt-2-2-8", "4-4-8": "quantgpt-4-4-8"}


def converter():
    spec = importlib.util.spec_from_file_location("convert_llama2c", ROOT / "examples" / "convert_llama2c.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama") / "stories260K"
    script = converter()
    script.read_model(ASSETS / "stories260K.bin").save_pretrained(directory)
    script.read_tokenizer(ASSETS / "tok512.bin").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(stories, tmp_path_factory):
    """Stories that the model tells."""
    model = AutoModelForCausalLM.from_pretrained(stories)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    torch.manual_seed(0)
    ids = model.generate(
        torch.full((16, 1), tokenizer.bos_token_id), max_new_tokens=400, do_sample=True, top_k=20, pad_token_id=2
    )
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n".join(tokenizer.batch_decode(ids, skip_special_tokens=True)))
    return path


@pytest.fixture(scope="module")
def students(stories, text, tmp_path_factory):
    """Width -> a compressed directory and what compressing said of it."""
    made = {}
    for width, recipe in RECIPES.items():
        directory = tmp_path_factory.mktemp("students") / width
        made[width] = directory, abridged.compress(stories, recipe=recipe, data=text, output=directory, overrides=SHORT)
    return made


def test_the_converted_model_knows_its_language(stories):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories), AutoTokenizer.from_pretrained(stories)
    assert (model.config.hidden_size, model.config.intermediate_size, model.config.num_key_value_heads) == (64, 172, 4)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = tokenizer(story, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == story
    assert tokenizer.decode(tokenizer("Zoë ☃")["input_ids"], skip_special_tokens=True) == "Zoë ☃"
    with torch.no_grad():
        assert torch.exp(model(ids, labels=ids).loss) < 4  # of 512; rotary pairs in a wrong order give far more


@pytest.mark.parametrize("width", RECIPES)
def test_compressed_it_still_tells_stories(width, students, text):
    directory, record = students[width]
    perplexity = {name: measured["perplexity"] for name, measured in record["metrics"].items()}
    # a quarter of a million parameters leave nothing to spare: two bits need longer than a test has
    assert perplexity["student"] < perplexity["teacher"] * {"4-4-8": 1.5, "2-2-8": 20}[width]
    assert perplexity["student"] < perplexity["untrained"]
    assert abridged.evaluate(directory, data=text)["perplexity"] > 1
    inspected = abridged.inspect(directory)
    assert inspected["ratio"] > {"4-4-8": 4.5, "2-2-8": 6}[width]
    model, tokenizer = load(directory), AutoTokenizer.from_pretrained(directory)
    written = "".join(abridged.generate(model, tokenizer, "Once upon a time", max_new_tokens=20, seed=0))
    assert len(written) > 10


@pytest.mark.parametrize("width", RECIPES)
def test_packed_it_answers_as_dense(width, students):
    directory, _ = students[width]
    packed = load(directory)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours, dense = packed(ids).logits, dense_model(packed, torch.float32)(ids).logits
    # activations are rounded in the one and not in the other
    assert torch.nn.functional.cosine_similarity(ours, dense, dim=-1).mean() > 0.95


@pytest.mark.parametrize("width", RECIPES)
def test_compressed_tensors_hold_the_same_values(width, students, tmp_path):
    pytest.importorskip("compressed_tensors")
    directory, _ = students[width]
    account = export(directory, tmp_path / "out", format="compressed-tensors", dtype="float32")
    assert account["types"] == {{"4-4-8": "int4", "2-2-8": "int2"}[width]: 35}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = dense_model(load(directory), torch.float32)(ids).logits
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)


def test_its_gguf_file_is_dense_or_an_error_that_names_the_width(students, tmp_path):
    pytest.importorskip("gguf")
    directory, _ = students["2-2-8"]
    with pytest.raises(AbridgedError, match="width 172 cannot be cut into Q2_0's blocks of 64"):
        export(directory, tmp_path / "small.gguf", format="gguf")
    account = export(directory, tmp_path / "small.gguf", format="gguf", dense_fallback=True)
    assert set(account["types"]) == {"F16", "Q2_0"}


@pytest.mark.engine
def test_llama_cpp_tells_the_same_story(students, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    directory, _ = students["2-2-8"]  # 4-bit blocks, which would fit, end llama.cpp on processors with AMX
    export(directory, tmp_path / "small.gguf", format="gguf", dtype="float16")
    tokenizer, dense = AutoTokenizer.from_pretrained(directory), dense_model(load(directory), torch.float32)
    engine = llama_cpp.Llama(str(tmp_path / "small.gguf"), n_ctx=128, logits_all=True, verbose=False)
    prompt = "Once upon a time, there was a boy named Tim."
    ids = engine.tokenize(prompt.encode(), add_bos=True, special=False)
    assert ids == tokenizer(prompt)["input_ids"]
    engine.eval(ids)
    theirs = torch.tensor(engine.scores[: len(ids)])
    with torch.no_grad():
        ours = dense(torch.tensor([ids])).logits[0]
    assert torch.nn.functional.cosine_similarity(theirs, ours, dim=-1).min() > 0.999
    engine.close()


def test_a_file_of_another_size_is_refused(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes((ASSETS / "stories260K.bin").read_bytes()[:-4])
    with pytest.raises(SystemExit, match="shorter than its header says"):
        converter().read_model(path)
