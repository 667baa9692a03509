"""Prompt tuning: a packed model learns by vectors before its texts, while it stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from abridged.methods.base import Attached, Method, Needs

if TYPE_CHECKING:
    from torch import nn

    from abridged.families import View
    from abridged.methods.base import Calibrate


class PromptTuning(Method):
    """Prompt tuning (Lester et al., EMNLP 2021, arXiv 2104.08691): vectors before the embeddings of every text.

    A stage has it beside `training.freeze_weights: true`; `training.learning_rates.prompt` is the vectors' rate. They
    begin as embeddings of tokens drawn from the vocabulary (section 3.2). No weight holds them afterwards: the model
    must be packed, and they stay beside it.
    """

    name: ClassVar[str] = "prompt_tuning"
    attached: ClassVar[str] = "abridged.methods.prompt_tuning:LearnedPrompt"
    untrained_name: ClassVar[str] = "without training"
    stores: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    tokens: int = Field(default=20, ge=1, description="vectors before each text; so many positions less are left to it")

    @property
    def needs(self) -> Needs:
        """Gradients: words at random before a text say nothing."""
        return "gradients"

    def untrained(self) -> PromptTuning:
        """Vectors of words at random."""
        return self

    def parameters(self, view: View) -> int:
        """The prompt's numbers."""
        return self.tokens * view.hidden_size


class LearnedPrompt(Attached):
    """See `PromptTuning`. It keeps the vectors."""

    def __init__(self, settings: PromptTuning, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        """Put the vectors before the model's texts. Raises AbridgedError where it has a prompt."""
        import torch

        from abridged.runtime.prompt import attach_prompt

        super().__init__(settings, model, view, calibrate)
        embed = self.model.get_input_embeddings()
        drawn = torch.randint(self.model.config.get_text_config().vocab_size, (settings.tokens,))
        with torch.no_grad():
            vectors = embed(drawn.to(self.model.device)).float().clone()
        self.prompt = attach_prompt(model, vectors)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The vectors, as `prompt`."""
        return {"prompt": [self.prompt]}
