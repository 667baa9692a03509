"""How the files of sentence-transformers say that a model's texts become vectors, and those files beside another model.

`modules.json` lists what a text goes through: the model, how its tokens' states are pooled, whether the vector is given
length 1. A model without these files whose class has no head is taken for one that is pooled by the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from abridged.checkpoint.files import safe_file
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.core.text import parse_json, read_text
from abridged.data.sentences import Pooling
from abridged.families.kinds import is_bare_encoder

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
#: What says how long a text may be; old models are named by their type.
_LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: What 1_Pooling/config.json calls a vector's width, before sentence-transformers 5 and from then on.
_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
#: Settings of 1_Pooling/config.json before sentence-transformers 5.
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceSettings:
    """What a text goes through on its way to a vector.

    Attributes:
        pooling, normalize: how the last hidden states become a vector, and whether it is given length 1.
        max_length: tokens that are read of a text; None: as many as tokenizer and positions allow.
        lower: whether texts are read in lower case.
        prompts, default_prompt: what can be put before a text, by name, and the name of what always is.
        pool_prompt: whether the prompt's own tokens are pooled, too.
        assumed: whether the model came without a word on any of this.
        files: the settings files by their path in the model's directory; what is in them is JSON.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pool_prompt: bool = True
    assumed: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, name: str | None = None) -> str:
        """The prompt of that name, or what is put before every text.

        Raises:
            AbridgedError: there is none of that name.
        """
        if name is not None and name not in self.prompts:
            there = ", ".join(self.prompts) or "none"
            raise AbridgedError(f"the model has no prompt called '{name}': it has {there}")
        name = name or self.default_prompt
        return "" if name is None else self.prompts[name]

    def files_of(self, width: int) -> dict[str, Any]:
        """`files` beside a model whose vectors are so wide."""
        named = {
            path: {key: width if key in _WIDTHS else value for key, value in found.items()}
            for path, found in self.files.items()
            if isinstance(found, dict)
        }
        return {**self.files, **named}


def sentence_settings_of(model: Any) -> SentenceSettings | None:
    """What is known of how a loaded model's texts become vectors; None where it makes none.

    Raises:
        AbridgedError: see `read_sentence_settings`.
    """
    found = read_sentence_settings(str(model.name_or_path))
    if found is None and is_bare_encoder(model):
        return assumed(int(model.config.hidden_size))
    return found


def assumed(width: int) -> SentenceSettings:
    """Of a model that came without these files: the mean of its tokens, given length 1.

    Args:
        width: of its last hidden state.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    return SentenceSettings(assumed=True, files={MODULES: modules, "1_Pooling/config.json": pooling})


def read_sentence_settings(name: str) -> SentenceSettings | None:
    """Read what the files of a model's directory, or of the hub's, say; None where there is no modules.json.

    Raises:
        AbridgedError: they ask for what is not made here: pooling by the largest value or in several ways, layers
            behind it, code of their own.
    """
    modules = _json(name, "", MODULES)
    if modules is None:
        return None
    kinds = {}
    for module in modules if isinstance(modules, list) else [None]:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise AbridgedError(f"{MODULES} of {name} does not list modules with a type and a path")
        kind = module["type"].rpartition(".")[2]
        known = kind in ("Transformer", "Pooling", "Normalize") and module["type"].startswith("sentence_transformers.")
        if not known:
            raise AbridgedError(f"{name} has a module {module['type']}, of which nothing is known here")
        kinds[kind] = module["path"]
    if list(kinds)[:2] != ["Transformer", "Pooling"] or kinds["Transformer"]:
        raise AbridgedError(f"{MODULES} of {name} does not list a model in the directory itself and its pooling")
    files: dict[str, Any] = {MODULES: modules}
    pooling = _object(name, kinds["Pooling"], "config.json", files)
    prompts = _object(name, "", PROMPTS, files)
    lengths = next((found for file in _LENGTHS if (found := _object(name, "", file, files))), {})
    said = {str(key): str(text) for key, text in (prompts.get("prompts") or {}).items()}
    default = prompts.get("default_prompt_name")
    if default is not None and default not in said:
        raise AbridgedError(f"{PROMPTS} of {name} names the prompt '{default}', which is not there")
    longest = lengths.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise AbridgedError(f"max_seq_length of {name} is no number of tokens")
    return SentenceSettings(
        pooling=_pooling(name, pooling),
        normalize="Normalize" in kinds,
        max_length=longest,
        lower=bool(lengths.get("do_lower_case", False)),
        prompts=said,
        default_prompt=default,
        pool_prompt=bool(pooling.get("include_prompt", True)),
        files=files,
    )


def trained_for_cuts(name: str) -> bool:
    """Whether a model's files say that the first numbers of its vectors do for all of them (Matryoshka): in a setting
    that such models have, or by that name in the README."""
    name = resolve(name)
    settings = [found for file in ("config.json", PROMPTS) if isinstance(found := _json(name, "", file), dict)]
    if any(one.get(key) for one in settings for key in ("matryoshka_dimensions", "matryoshka_dims", "truncate_dim")):
        return True
    readme = _file(name, "", "README.md")
    return readme is not None and "matryoshka" in readme.read_text(encoding="utf-8", errors="replace").lower()


def _pooling(name: str, settings: Mapping[str, Any]) -> Pooling:
    given = settings.get("pooling_mode")
    modes = [given] if isinstance(given, str) else list(given or [])
    modes = modes or [mode for key, mode in _POOLINGS.items() if settings.get(key)] or ["mean"]
    if len(modes) > 1 or modes[0] not in get_args(Pooling):
        raise AbridgedError(
            f"{name} pools by {' and '.join(map(str, modes))}: one of {', '.join(get_args(Pooling))} can be done here"
        )
    return cast(Pooling, modes[0])


def _object(name: str, folder: str, file: str, files: dict[str, Any]) -> dict[str, Any]:
    """An object in a file, {} where there is none; put among `files`."""
    found = _json(name, folder, file)
    if found is None:
        return {}
    path = f"{folder}/{file}" if folder else file
    if not isinstance(found, dict):
        raise AbridgedError(f"{path} of {name} is not a JSON object")
    files[path] = found
    return found


def _json(name: str, folder: str, file: str) -> Any:
    """What is in a JSON file of a model; None where there is no such file."""
    path = _file(name, folder, file)
    return None if path is None else _parsed(path)


def _file(name: str, folder: str, file: str) -> Path | None:
    """A file of a model, by directory or of the hub; None where there is none of that name."""
    where = Path(name)
    if not name:
        return None
    if where.is_dir():
        inner = where / folder
        if folder and (Path(folder).name != folder or inner.is_symlink()):
            raise AbridgedError(f"{MODULES} of {name} names a folder that is not in it: {folder}")
        if not (inner / file).exists() and not (inner / file).is_symlink():
            return None
        return safe_file(inner, file)
    from transformers.utils import cached_file

    try:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(name, file, subfolder=folder, **quiet)
    except Exception:  # no name of the hub: loading the model has said so
        return None
    return None if found is None else Path(found)


def _parsed(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise AbridgedError(f"{path} is not valid JSON: {error}") from None
