"""What every method is: settings that a recipe writes, and what they build when a stage attaches them to a model.

The settings never import torch. What they build, an `Attached`, lives as long as its stage and keeps its own state; it
leaves behind a changed model and an entry in the model's record (`abridged.storage.compressed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from pydantic import ConfigDict, model_validator

from abridged.core.errors import AbridgedError
from abridged.core.lazy import load
from abridged.core.settings import Settings
from abridged.storage.compressed import Compressed, compressed_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from abridged.families import View

Needs = Literal["nothing", "inputs", "gradients"]
"""What a method needs beside the weights: no data at all, inputs of blocks, or the gradients of a loss."""

Pass = Literal["few", "many"]
"""What `calibrate` reads: a few small batches, or one batch of many tokens."""


class Calibrate(Protocol):
    """Runs some of the data through a model without gradients."""

    def __call__(self, model: nn.Module, tokens: int | None = None) -> None:
        """In a few small batches, or in one batch of about so many tokens."""


class Method(Settings):
    """A way to make a model smaller, as a recipe writes it: its fields are the recipe's settings.

    A class without a description, a baseline or a class that does the work cannot be defined (TypeError).
    """

    model_config = ConfigDict(frozen=True)

    name: ClassVar[str] = ""
    """What recipes call it."""
    attached: ClassVar[str] = ""
    """The `Attached` that does the work: "module:Class"."""
    untrained_name: ClassVar[str] = ""
    """What `untrained` does, in a few words."""
    #: Whether `finish` gives the model other sizes, by what the training has found.
    reshapes: ClassVar[bool] = False
    #: Whether anything of it is stored, so that a model is smaller for it.
    stores: ClassVar[bool] = True
    #: Whether all that it trains can stand beside a packed model, in a directory of its own.
    adapts: ClassVar[bool] = False
    #: Whether it can be carried out on a part of a model after another, each with a view of that part alone.
    by_parts: ClassVar[bool] = False
    #: Settings by the names that they had before, which recipes may still say.
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        own = vars(cls)
        lacking = [name for name in ("name", "attached", "untrained_name", "untrained") if not own.get(name)]
        lacking += [] if (own.get("__doc__") or "").strip() else ["a docstring"]
        lacking += [f"a description of {name}" for name, field in cls.model_fields.items() if not field.description]
        if lacking:
            raise TypeError(f"the method {cls.__name__} lacks {', '.join(lacking)}")

    @model_validator(mode="before")
    @classmethod
    def _as_renamed(cls, data: Any) -> Any:
        return with_new_names(data, cls.renamed)

    @property
    def needs(self) -> Needs:
        """What a runner must give it."""
        return "nothing"

    @property
    def passes(self) -> frozenset[Pass]:
        """Which passes it may ask of `calibrate`; all, where it needs inputs and does not say."""
        return frozenset() if self.needs == "nothing" else frozenset(get_args(Pass))

    def within(self, view: View) -> Method | None:
        """The method as far as it concerns a part of a model; None where it does not. Of those that go by parts."""
        return self

    def untrained(self) -> Method:
        """The baseline: the same storage by the simplest rule that needs no training. A report compares with it."""
        raise NotImplementedError

    def parameters(self, view: View) -> int:
        """How many numbers it adds to those of a model, and trains."""
        return 0

    def build(self, model: nn.Module, view: View, calibrate: Calibrate) -> Attached:
        """Change `model` in place for a stage, and return what looks after it until the stage is done.

        view: of the model as it is now. calibrate: runs some of the data through a model.
        Raises AbridgedError where the model cannot be changed so.
        """
        attached: Attached = load(self.attached)(self, model, view, calibrate)
        return attached


class Attached:
    """A method at work on one model, from when it is built until its stage is done.

    Its state is its own. Only what the optimiser and training checkpoints must see, parameters and buffers, stands in
    modules of the model.
    """

    def __init__(self, settings: Any, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        self.settings: Any = settings
        self.model: Any = model

    def step(self, progress: float) -> None:
        """Change what follows a schedule; called before each step with `progress` in [0, 1] of the stage."""

    def penalties(self) -> dict[str, Tensor]:
        """Scalars in FP32 to add to the loss, by name, computed in each forward pass while the stage is trained.

        What has no gradient is not added, but logged all the same.
        """
        return {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the parameters that have learning rates of their own; all others are weights."""
        return {}

    def finish(self) -> Compressed:
        """Leave behind what will be stored; called once after the stage. Returns the model's record as it is now."""
        return compressed_of(self.model)


def check_needs(methods: Mapping[str, Method], given: Needs, runner: str) -> None:
    """Refuse methods that need more than a runner gives, before anything starts.

    runner: what a person calls it, such as "a stage that takes no steps".
    Raises AbridgedError, in one sentence.
    """
    order = get_args(Needs)
    what = {"nothing": "the weights alone", "inputs": "inputs of the model's blocks", "gradients": "gradients"}
    for name, method in methods.items():
        if order.index(method.needs) > order.index(given):
            raise AbridgedError(f"methods.{name} needs {what[method.needs]}, and {runner} has {what[given]}")


def check_by_parts(methods: Mapping[str, Method]) -> None:
    """Refuse methods that need the whole model at once. Raises AbridgedError, in one sentence."""
    for name, method in methods.items():
        if not method.by_parts:
            raise AbridgedError(
                f"methods.{name} works on the whole model at once: it has no place in the runner blocks"
            )


def with_new_names(data: Any, renamed: Mapping[str, str]) -> Any:
    """Settings with their names of today; of two names of one setting, the one given last counts."""
    if not isinstance(data, Mapping):
        return data
    new: dict[str, Any] = {}
    for key, value in data.items():
        new.pop(renamed.get(key, key), None)
        new[renamed.get(key, key)] = value
    return new
