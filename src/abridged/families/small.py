"""A small random model of a class and a config, whole and runnable, on which methods are tried before a real one.

Depth, vocabulary and widths shrink; heads, their ratios, the kinds of layers and everything else stay. Where a class
refuses a config that was shrunk so, less of it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from abridged.core.errors import AbridgedError
from abridged.families import quirks
from abridged.families.standin import configs_within, inputs_of, plain_config

_KINDS = ("layer_types", "attention_layers")
#: Parameters that are tried in seconds.
_LARGEST = 100_000_000
#: What is left of it: layers, unless they are of more kinds, entries of the vocabulary, columns of a head.
_LAYERS, _ENTRIES, _COLUMNS = 2, 160, 16


def small_model(kind: type, config: Any, seed: int = 0) -> Any:
    """A model of `kind` in evaluation mode on the CPU, all its parameters random: no bias is 0 and no norm 1.

    Raises AbridgedError where no model of the class can be made and run.
    """
    stock = plain_config(config)
    smaller: list[Callable[[Any], None]] = [_fewer_layers, _fewer_entries, _narrower]
    faults: list[Exception] = []
    for used in (smaller, smaller[:2], smaller[:1], []):
        shrunk = copy.deepcopy(stock)
        try:
            for part in configs_within(shrunk):
                for shrink in used:
                    shrink(part)
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(copy.deepcopy(shrunk)).parameters())
            if size > _LARGEST:
                raise AbridgedError(f"it has {size:,} parameters at its smallest")
            with torch.random.fork_rng(), torch.device("cpu"):
                torch.manual_seed(seed)
                model = kind(shrunk).float().eval()
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.requires_grad:  # a table of sines is what it is
                            parameter.add_(0.05 * torch.randn_like(parameter))
                    model(**inputs_of(model))
            return model
        except Exception as error:  # whatever a config makes a class stumble over
            faults.append(error)
    raise AbridgedError(f"no small model of a {kind.__name__} can be tried: {str(faults[0]).splitlines()[0]}")


def _fewer_layers(config: Any) -> None:
    kept = _LAYERS
    for name in _KINDS:
        kinds = getattr(config, name, None)
        if kinds:
            kept = max(kept, 1 + max(kinds.index(one) for one in set(kinds)))
    for name in _KINDS:
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:kept])
    for name in quirks.DEPTH_NAMES:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(kept, getattr(config, name)))


def _fewer_entries(config: Any) -> None:
    if not isinstance(getattr(config, "vocab_size", None), int):
        return
    config.vocab_size = min(config.vocab_size, _ENTRIES)
    for number, name in enumerate(("pad", "bos", "eos", "decoder_start", "cls", "sep", "forced_eos", "forced_bos")):
        given = getattr(config, f"{name}_token_id", None)
        if given is not None and (not isinstance(given, int) or given >= config.vocab_size):
            setattr(config, f"{name}_token_id", number)


def _narrower(config: Any) -> None:
    heads, width = (quirks.first_of(config, names) for names in (quirks.HEAD_NAMES, quirks.WIDTH_NAMES))
    if heads is None or width is None:
        return
    new = heads * _COLUMNS
    if new >= width:
        return
    for name in (*quirks.WIDTH_NAMES, *quirks.INNER_NAMES):
        given = getattr(config, name, None)
        if isinstance(given, int):
            setattr(config, name, max(_COLUMNS, given * new // width // 8 * 8))
    for name in ("head_dim", "d_kv"):
        given = getattr(config, name, None)
        if isinstance(given, int):
            setattr(config, name, _COLUMNS)
    given = getattr(config, "rotary_dim", None)
    if isinstance(given, int):
        config.rotary_dim = min(given, _COLUMNS // 2)
