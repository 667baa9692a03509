"""Text from a GGUF file by llama.cpp, under the same settings as `generation.generate`."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.evaluation.generation import Pieces, check_settings


class EngineGeneration(Pieces):
    """What llama.cpp writes; the engine is closed at the end."""

    def __init__(self, model: Any, prompt: list[int], settings: dict[str, Any], room: int | None = None) -> None:
        super().__init__(self._write(model, prompt, settings), room)

    def _write(self, model: Any, prompt: list[int], settings: dict[str, Any]) -> Generator[str, None, None]:
        try:
            begun = time.perf_counter()
            for part in model.create_completion(prompt, stream=True, **settings):
                self.seconds += time.perf_counter() - begun
                self.tokens += 1
                yield part["choices"][0]["text"]
                begun = time.perf_counter()
        finally:  # also where the reader stops early
            model.close()


def generate(
    path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int | None = None,
    threads: int | None = None,
) -> EngineGeneration:
    """Continue `prompt` with the GGUF file at `path`; iterate over the result to get the text as it is written.

    Raises AbridgedError: a setting is out of range, llama-cpp-python is not installed, the file is none that llama.cpp
    reads, or the prompt is empty or longer than the model's context.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    try:
        from llama_cpp import Llama
    except ImportError:
        raise AbridgedError('--engine llama.cpp needs llama-cpp-python: pip install "abridged[llama-cpp]"') from None
    if not Path(path).is_file():
        raise AbridgedError(f"{path} is no GGUF file: make one with `abridged export DIR --format gguf --output FILE`")
    try:
        model = Llama(str(path), n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False)
    except (ValueError, RuntimeError) as error:
        raise AbridgedError(f"llama.cpp cannot load {path}: {error}") from None
    ids = model.tokenize(prompt.encode())
    if not ids or len(ids) >= model.n_ctx():
        model.close()
        raise AbridgedError(
            "the prompt is empty: give some words"
            if not ids
            else f"the prompt has {len(ids)} tokens, and the model can continue at most {model.n_ctx() - 1}"
        )
    room = model.n_ctx() - len(ids)
    settings: dict[str, Any] = {
        "max_tokens": min(max_new_tokens, room),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }
    if seed is not None:
        settings["seed"] = seed
    return EngineGeneration(model, ids, settings, room if room < max_new_tokens else None)
