"""What a model is trained for: its data, how it is validated and measured, and what a report shows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, Literal

from abridged.data.batch import Batch
from abridged.data.examples import Examples
from abridged.errors import AbridgedError
from abridged.models import labels_texts
from abridged.report.data import SampleGroup
from abridged.training.settings import TrainingSettings

Split = Literal["validation", "test"]


class Task(ABC):
    """Data and metrics of one kind of work.

    Attributes:
        name: of the data, as the person named them.
        notes: what a person should know of the data before training begins, one sentence each; usually nothing.
        has_test: whether the test part is another than the validation part.
    """

    #: Settings of `TrainingSettings` that fine-tuning starts from.
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 3, "learning_rate": 3e-4, "schedule": "cosine", "weight_decay": 0.1, "keep": "best",
    }  # fmt: skip
    name: str
    notes: list[str]
    has_test: bool

    @abstractmethod
    def examples(self, settings: TrainingSettings) -> Examples:
        """The training data, tokenised."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What abridged.json says of the data, such as how many tokens there are to train on."""

    @abstractmethod
    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], dict[str, float]]:
        """A function that measures `model` on some of the validation part; its first number is the one to watch."""

    @abstractmethod
    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> dict[str, Any]:
        """Measure `model` on all of a part: `perplexity` and `word_perplexity`, or `score` and what it is made of."""

    @abstractmethod
    def evaluate(self, model: Any, context: int | None, stride: int | None) -> dict[str, Any]:
        """Perplexity of a finished `model` on the test part, or on all of what came without parts.

        Args:
            context: tokens that are read at once; all that the positions allow when None.
            stride: tokens between windows of a text that a model goes on with.

        Raises:
            AbridgedError: they do not fit the model.
        """

    @abstractmethod
    def picture(self) -> Batch:
        """A text of the test part, whose tokens the report draws as the models see them."""

    @abstractmethod
    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        """What "teacher", "untrained" and "student" make of the same prompts, for the report."""


def refuse_stride(stride: int | None) -> None:
    """Raise AbridgedError where a stride is asked of an encoder-decoder."""
    if stride is not None:
        raise AbridgedError("a stride is for a text that a model goes on with, not for an encoder-decoder")


def refuse_augmentation(settings: TrainingSettings) -> None:
    """Raise AbridgedError where augmentation is asked for of what is no labelled text."""
    if settings.augmentation is not None:
        raise AbridgedError("training.augmentation is for labelled texts, which these data are not")


def refuse_unlabelled(settings: TrainingSettings, objectives: Container[str], model: Any) -> None:
    """Raise AbridgedError where a model that labels texts is to learn labels from texts that have none."""
    if settings.texts is not None and "labels" in objectives and labels_texts(model):
        raise AbridgedError(
            f"'{settings.texts}' has no labels: leave the objective labels out of a stage that reads it"
        )


def refuse_texts(settings: TrainingSettings) -> None:
    """Raise AbridgedError where a stage asks for texts of its own that the task cannot read."""
    if settings.texts is not None:
        raise AbridgedError("training.texts is for models that go on with texts, or label them, which this is not")
