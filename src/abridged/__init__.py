"""abridged makes a pre-trained transformer 10-30 times smaller and keeps what it can do.

    import abridged

    abridged.compress("gpt2", recipe="quantgpt-2-2-8", data="wikitext-2", output="small")
    model = abridged.load("small")          # or AutoModelForCausalLM.from_pretrained("small")

Importing this package is instant: torch and transformers are imported when something first needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abridged.core.after_import import after_import as _after_import
from abridged.core.errors import AbridgedError

if TYPE_CHECKING:
    from abridged.checkpoint.inspect import inspect as inspect
    from abridged.checkpoint.load import load as load
    from abridged.evaluation.generation import generate as generate
    from abridged.evaluation.summaries import summarize as summarize
    from abridged.exporters import export as export
    from abridged.pipeline import compress as compress
    from abridged.pipeline import evaluate as evaluate
    from abridged.pipeline import evaluate_summaries as evaluate_summaries
    from abridged.pipeline import finetune as finetune
    from abridged.pipeline import plan as plan
    from abridged.recipe import Recipe as Recipe
    from abridged.tasks.classification import classify as classify
    from abridged.tasks.embeddings import embed as embed
    from abridged.vocabulary import trim as trim

__version__ = "0.1.0"

__all__ = [
    "AbridgedError",
    "Recipe",
    "classify",
    "compress",
    "embed",
    "evaluate",
    "evaluate_summaries",
    "export",
    "finetune",
    "generate",
    "inspect",
    "load",
    "plan",
    "summarize",
    "trim",
]

# A public name may not also be the name of a submodule: importing that would put the module in its place.
_HOMES = {
    "Recipe": "abridged.recipe",
    "classify": "abridged.tasks.classification",
    "compress": "abridged.pipeline",
    "embed": "abridged.tasks.embeddings",
    "evaluate": "abridged.pipeline",
    "evaluate_summaries": "abridged.pipeline",
    "export": "abridged.exporters",
    "finetune": "abridged.pipeline",
    "generate": "abridged.evaluation.generation",
    "inspect": "abridged.checkpoint.inspect",
    "load": "abridged.checkpoint.load",
    "plan": "abridged.pipeline",
    "summarize": "abridged.evaluation.summaries",
    "trim": "abridged.vocabulary",
}

# Transformers learns the "abridged" format and our types of models once it is imported, whichever comes first.
_after_import("transformers.quantizers.auto", "abridged.checkpoint.hf")
_after_import("transformers.modeling_utils", "abridged.checkpoint.pretrained")
_after_import(
    "transformers.models.auto.configuration_auto",
    "abridged.models.video.config",
    needs=("transformers.models.auto.modeling_auto", "transformers.models.blip.configuration_blip"),
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
