"""transformers' `from_pretrained` of a directory of adapters: of the base that it names, with the adapters applied.

Imported right after transformers' `modeling_utils`, so that the Auto classes and every model's own go this way.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from abridged.checkpoint.adapters import apply_adapter, read_adapter
from abridged.checkpoint.files import is_adapter

_from_pretrained = PreTrainedModel.from_pretrained.__func__


@wraps(_from_pretrained)
def _with_adapters(
    cls: Any, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
) -> Any:
    if pretrained_model_name_or_path is None or not is_adapter(os.fspath(pretrained_model_name_or_path)):
        return _from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs)
    found = read_adapter(os.fspath(pretrained_model_name_or_path))
    loaded = _from_pretrained(cls, found.base, *args, **kwargs)
    if isinstance(loaded, tuple):  # with what was loaded, and what was not
        return apply_adapter(found, loaded[0]), *loaded[1:]
    return apply_adapter(found, loaded)


PreTrainedModel.from_pretrained = classmethod(_with_adapters)
