"""Other people's OpenAI-compatible servers over what this project writes, asked by HTTP on the loopback."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.exporters import export
from abridged.models.load import load_dense, load_tokenizer
from abridged.recipe import Recipe

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory, tokenizer = tmp_path_factory.mktemp("served") / "small", load_tokenizer("bundled")
    model = load_dense("bundled")
    ids = tokenizer("The river runs through the town .", return_tensors="pt")["input_ids"]
    for method in Recipe.load("best-ternary-2-2-8").stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(ids))
        attached.finish()
    save_checkpoint(model.eval(), directory, tokenizer, {"recipe": {"name": "t"}, "teacher": "bundled", "seed": 0})
    return directory


@contextmanager
def serving(*command):
    """A server started by `command` and a port; what is given is `ask(question)`, which waits until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(**question):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(240):
            assert server.poll() is None, "the server ended"
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return json.load(response)
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:  # not yet
                time.sleep(0.5)
        raise AssertionError("the server does not answer")

    try:
        yield ask
    finally:
        server.terminate()
        server.wait(30)


def check(answer):
    assert answer["choices"][0]["text"].strip()
    assert answer["usage"]["completion_tokens"] == 8


def test_llama_cpp_serves_the_gguf_file(small, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("sse_starlette")
    export(small, tmp_path / "small.gguf", format="gguf")
    with serving("-m", "llama_cpp.server", "--model", str(tmp_path / "small.gguf")) as ask:
        check(ask(prompt="The river", max_tokens=8, temperature=0))


def test_transformers_serves_the_packed_directory(small):
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")):
        pytest.skip("transformers[serving] is not installed")
    start = "import abridged; from transformers.cli.transformers import main; main()"
    with serving("-c", start, "serve", str(small), "--device", "cpu") as ask:
        check(ask(model=str(small), prompt="The river", max_tokens=8, temperature=0))
