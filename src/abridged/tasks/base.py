"""What a model is trained for: its data, how it is validated and measured, and what a report shows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.dataset import Dataset
from abridged.data.examples import Examples
from abridged.families.kinds import context_of, labels_texts
from abridged.report.data import SampleGroup, SentencePicture, VideoPicture

Made = TypeVar("Made")
Split = Literal["validation", "test"]


#: Settings that an encoder is fine-tuned with to label texts, or words of them.
LABELLING: dict[str, Any] = {
    "epochs": 4, "learning_rate": 5e-5, "batch_size": 32, "warmup": 0.1, "weight_decay": 0.01, "keep": "best",
    "evaluate_every": 100,
}  # fmt: skip


class Task(ABC):
    """Data and metrics of one kind of work.

    Attributes:
        data: what it reads.
        name: of the data, as the person named them.
        notes: what a person should know of the data before training begins, one sentence each; usually nothing.
        has_test: whether the test part is another than the validation part.
        tokenizer, limit: of the model, `limit` the tokens that its positions allow.
    """

    #: Settings of `TrainingSettings` that fine-tuning starts from.
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 3, "learning_rate": 3e-4, "schedule": "cosine", "weight_decay": 0.1, "keep": "best",
    }  # fmt: skip

    #: Tokens that are read at once where nobody says how many; None: as many as the model reads, see `DEFAULT_CONTEXT`.
    context: ClassVar[int | None] = None
    #: What it can be asked for beside its own data: "texts" or "augmentation" of a stage, a "stride" between windows.
    takes: ClassVar[frozenset[str]] = frozenset()
    #: Whether it compares with the model that it was made for, which then stays as it is while others learn from it.
    compares: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, data: Dataset) -> None:
        self.data, self.name, self.has_test = data, data.name, data.has_test
        self.tokenizer, self.limit = tokenizer, context_of(model.config)
        self.notes: list[str] = []
        self._encoded: dict[Any, Any] = {}

    def _note(self, note: str) -> None:
        """Add one to the notes, once."""
        if note not in self.notes:
            self.notes.append(note)

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        """What is made of the data for a key, made once."""
        if key not in self._encoded:
            self._encoded[key] = make()
        made: Made = self._encoded[key]
        return made

    def examples(self, settings: TrainingSettings) -> Examples:
        """The training data, tokenised.

        Raises:
            AbridgedError: a stage asks for texts or augmentation that the task does not read.
        """
        if settings.augmentation is not None and "augmentation" not in self.takes:
            raise AbridgedError("training.augmentation is for labelled texts, which these data are not")
        if settings.texts is not None and "texts" not in self.takes:
            raise AbridgedError("training.texts is for models that go on with texts, or label them, which this is not")
        return self._examples(settings)

    @abstractmethod
    def _examples(self, settings: TrainingSettings) -> Examples:
        """`examples` of settings that fit."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What abridged.json says of the data, such as how many tokens there are to train on."""

    @abstractmethod
    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        """A function that measures `model` on some of the validation part; its headline is what to watch."""

    @abstractmethod
    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        """Measure `model` on all of a part."""

    def evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None = None) -> Measured:
        """Measure a finished `model` on the test part, or on all of what came without parts.

        Args:
            context: tokens that are read at once; what the positions allow, at most `DEFAULT_CONTEXT`, when None.
            stride: tokens between windows of a text that a model goes on with.
            limit: the most to read: tokens of a text, else pairs, texts or questions.

        Raises:
            AbridgedError: they do not fit the model, or a stride is given where the task has none.
        """
        if stride is not None and "stride" not in self.takes:
            raise AbridgedError("a stride is for a text that a model goes on with, not for an encoder-decoder")
        return self._evaluate(model, context, stride, limit)

    @abstractmethod
    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        """`evaluate` of what fits."""

    @abstractmethod
    def picture(self) -> Batch:
        """A text of the test part, whose tokens the report draws as the models see them."""

    def files(self, model: Any) -> dict[str, Any]:
        """What other tools read beside `model`, which learned the task: JSON by its path in the model's directory."""
        return {}

    def clips(self, models: Mapping[str, Any]) -> VideoPicture | None:
        """Videos of the test part as "teacher", "untrained" and "student" see them; None where they read none."""
        return None

    def sentences(self, models: Mapping[str, Any]) -> SentencePicture | None:
        """Sentences of the test part as these models see them; None where they make no vectors of such."""
        return None

    @abstractmethod
    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        """What "teacher", "untrained" and "student", those that there are, make of the same prompts, for the report."""


def refuse_unlabelled(settings: TrainingSettings, objectives: Mapping[str, Any], model: Any) -> None:
    """Raise AbridgedError where a model that labels texts is to learn labels from texts that have none."""
    learned = [name for name, objective in objectives.items() if objective.needs_labels]
    if settings.texts is not None and learned and labels_texts(model):
        raise AbridgedError(
            f"'{settings.texts}' has no labels: leave the objective {learned[0]} out of a stage that reads it"
        )
