"""What passes between a model and the terms of its loss, and the module that puts them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.examples import Examples
from abridged.families.kinds import fills_masks, labels_tokens
from abridged.families.logits import run_body, run_head_on
from abridged.objectives.settings import Objective
from abridged.runtime.weight import PackedWeight
from abridged.storage.view import Logits as LogitsMap


class Head:
    """A model's output layer, for losses that compute logits a chunk at a time.

    Made anew in every forward pass, so that a quantised weight is computed once for all terms that need it.
    """

    def __init__(self, module: nn.Module, bias: Tensor | None = None, logits: LogitsMap | None = None) -> None:
        """`bias` (V,) is the head's where its module holds none; `logits`: its scales and cap."""
        self._module = module
        self._logits = logits or LogitsMap()
        own = getattr(module, "bias", None)
        self._bias = (None if own is None else own * self._logits.scale) if bias is None else bias
        self._weight: Tensor | PackedWeight | None = None

    @property
    def cap(self) -> float | None:
        """What logits are soft-capped at: c * tanh(s / c)."""
        return self._logits.cap

    def weights(self) -> tuple[Tensor | PackedWeight, Tensor | None]:
        """Weight (V, d) and bias (V,) or None; fake-quantised where the head is quantised, packed where it is that."""
        if self._weight is None:
            prepare = getattr(self._module, "prepared_weight", None)
            self._weight = self._module.weight if prepare is None else prepare()  # type: ignore[assignment]
        assert self._weight is not None
        return self._weight, self._bias

    def inputs(self, hidden: Tensor) -> Tensor:
        """`hidden` (..., d) as it enters the matrix product: scaled, and quantised where the head's input is."""
        prepare = getattr(self._module, "prepared_inputs", None)
        if self._logits.input_scale != 1:
            hidden = hidden * self._logits.input_scale
        hidden = hidden if prepare is None else prepare(hidden)
        return hidden if self._logits.scale == 1 else hidden * self._logits.scale


#: transformers' attention implementations that hold the probabilities; the second is that of quantised attention.
_SHOW_PROBABILITIES = ("eager", "abridged")


@dataclass
class Embeddings:
    """Vectors of the B texts of a batch, of length 1.

    Attributes:
        text: (B, d).
    """

    text: Tensor


@dataclass
class VideoEmbeddings(Embeddings):
    """Vectors of the B videos and texts of a batch, all of length 1.

    Attributes:
        video: (B, d).
        frames: (B, T, d).
        captions: (B, T, d) of the frames' own captions, where there are any.
        turned: (B, K, d) of the texts turned around, where they are asked for.
        temperature: what cosines are divided by, ().
        match: of numbers of videos (n,) and of texts (n,), how well they match: (n, 2) logits; texts turned around
            have the numbers B + K i + k. None where a model has no more than vectors.
    """

    video: Tensor
    frames: Tensor
    captions: Tensor | None
    temperature: Tensor
    match: Callable[[Tensor, Tensor], Tensor] | None = None
    turned: Tensor | None = None


@dataclass
class Outputs:
    """What a model made of a batch.

    Attributes:
        last_hidden: (B, T, d), what the head reads.
        head: the output layer.
        hidden_states: layers + 1 tensors (B, T, d), embedding output first, if asked for; of an encoder-decoder the
            encoder's (B, S, d) and then the decoder's.
        attentions: one tensor (B, heads, T, T) of probabilities per layer, if asked for; of an encoder-decoder the
            encoder's (S, S), the decoder's (T, T), and those across (T, S).
        encoder_layers: how many layers the encoder has; 0 where there is none.
        label_logits: (B, C) of a model that labels texts (C = 1: a score), which has no `head`; (B, 2, T) of one that
            finds where answers begin and end; (n, C) of one that labels tokens or fills masks, n = `batch.labelled`.
        feed_forward: (B, T, d) of each layer, what its feed-forward part gives, if asked for; an encoder's come first.
        embeddings: of texts, where the batch says how they are pooled; of videos and texts, where the model reads both
            and has no `head`: hidden states are then the video encoder's (B * T, 1 + P, d), and the text encoder's.
    """

    last_hidden: Tensor
    head: Head | None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    encoder_layers: int = 0
    label_logits: Tensor | None = None
    feed_forward: tuple[Tensor, ...] | None = None
    embeddings: Embeddings | None = None

    @property
    def language_head(self) -> Head:
        """The head of a language model.

        Raises:
            AbridgedError: the model labels texts and has none.
        """
        if self.head is None:
            raise AbridgedError("an objective on tokens was asked of a model that labels texts, or fills masks in them")
        return self.head


@dataclass
class TopLogits:
    """The head of the teacher's next-token distributions, the rest lumped together.

    Attributes:
        log_probabilities: (B, T, k) float.
        indices: (B, T, k) int64, the vocabulary entries they belong to.
        log_rest: (B, T) float, log probability of all other entries together.
        label_log_probability: (B, T) float, log probability of the text's own next token, at temperature 1.
        temperature: what the logits were divided by, for the first three.
    """

    log_probabilities: Tensor
    indices: Tensor
    log_rest: Tensor
    label_log_probability: Tensor
    temperature: float = 1.0


@dataclass
class CachedOutputs:
    """What is known of a teacher that is not in memory; the parts that were not cached are None."""

    top_logits: TopLogits | None = None
    last_hidden: Tensor | None = None


TeacherOutputs = Outputs | CachedOutputs


@dataclass
class ObjectiveContext:
    """The sizes that terms are built for.

    Attributes:
        num_blocks: blocks of the training text, `Batch.index` lies below it.
        context: tokens in a block.
        hidden_units: of a student that was cut narrower, which of the teacher's units it still has, (hidden_size,), or
            combinations of them as columns (teacher_hidden_size, hidden_size).
        model: the student itself, for a term that keeps a slow copy of it.
    """

    hidden_size: int
    teacher_hidden_size: int
    vocab_size: int
    num_blocks: int
    context: int
    layers: int
    device: torch.device | str = "cpu"
    hidden_units: Tensor | None = None
    model: Any = None

    @classmethod
    def of(cls, model: Any, examples: Examples, **changes: Any) -> ObjectiveContext:
        """The sizes of `model` and of what it learns from, for a teacher of its own size; `changes` where it is not."""
        view = families.view(model)
        sizes: dict[str, Any] = {
            "hidden_size": view.hidden_size,
            "teacher_hidden_size": view.hidden_size,
            "vocab_size": model.config.get_text_config().vocab_size,
            "num_blocks": len(examples),
            "context": examples.context,
            "layers": view.layers,
            "model": model,
        }
        return cls(**{**sizes, **changes})


class Term(nn.Module):
    """One term of the training loss.

    Its parameters are trained with the student's weights; its `state_dict` is part of training checkpoints.
    """

    def __init__(self, settings: Any = None, context: ObjectiveContext | None = None) -> None:
        super().__init__()
        self.settings: Any = settings

    def is_for(self, batch: Batch) -> bool:
        """Whether the term has anything to say on a batch of this kind."""
        return True

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        """The term's value, a scalar in FP32, a mean over the tokens that count."""
        raise NotImplementedError

    def after_step(self, accelerator) -> None:
        """Called in every process after each optimiser step."""


def outputs_of(model: nn.Module, batch: Batch, *, hidden_states: bool = False, attentions: bool = False) -> Outputs:
    """Runs a Hugging Face language model or encoder-decoder up to its head; no logits are made.

    Args:
        model: any model with `base_model` and `get_output_embeddings()`.
        batch: see `Batch`.
        hidden_states: also return every layer's output.
        attentions: also return every layer's attention probabilities.
    """
    if attentions and getattr(model.config, "_attn_implementation", None) not in _SHOW_PROBABILITIES:
        model.set_attn_implementation("eager")  # type: ignore[operator]
    if "pixel_values" in batch.inputs and hasattr(model, "video_vectors"):
        return _outputs_of_videos(model, batch, hidden_states)
    if "pixel_values" in batch.inputs and "decoder_input_ids" in batch.inputs:
        return _outputs_of_answers(model, batch, hidden_states)
    if batch.pooling is not None:
        return _outputs_of_texts(model, batch, hidden_states, attentions)
    if labels_tokens(model) or fills_masks(model):
        return _outputs_of_some_tokens(model, batch, hidden_states, attentions)
    if batch.labels_examples:
        return _outputs_of_labeller(model, batch, attentions)
    states = run_body(
        model,
        batch.model_inputs,
        use_cache=False,
        output_hidden_states=hidden_states,
        output_attentions=attentions,
        return_dict=True,
    )
    bias = getattr(model, "final_logits_bias", None)  # BART's: a buffer of the model, usually all zeros
    made = _made_of(model)
    if made.logits is None:
        raise AbridgedError(f"the head of a {type(model).__name__} does not read its last hidden state as it is")
    head = Head(
        model.get_output_embeddings(),  # type: ignore[operator]
        None if bias is None else bias.flatten(),
        made.logits,
    )
    if "decoder_input_ids" not in batch.inputs:
        return Outputs(states.last_hidden_state, head, states.hidden_states, states.attentions)
    return Outputs(
        last_hidden=states.last_hidden_state,
        head=head,
        hidden_states=states.encoder_hidden_states + states.decoder_hidden_states if hidden_states else None,
        attentions=states.encoder_attentions + states.decoder_attentions + states.cross_attentions
        if attentions
        else None,
        encoder_layers=made.encoder_layers,
    )


def _outputs_of_texts(model: Any, batch: Batch, hidden_states: bool, attentions: bool) -> Outputs:
    """Of texts that are to become vectors: whatever head the model has is left out."""
    found = run_body(
        model, batch.model_inputs, output_hidden_states=hidden_states, output_attentions=attentions, return_dict=True
    )
    return Outputs(
        last_hidden=found.last_hidden_state,
        head=None,
        hidden_states=found.get("hidden_states"),
        attentions=found.get("attentions"),
        embeddings=Embeddings(normalize(batch.pooled(found.last_hidden_state), dim=-1)),
    )


def _outputs_of_videos(model: Any, batch: Batch, hidden_states: bool) -> Outputs:
    """Of a model that gives vectors of videos and texts: pairs are matched when a term asks for it."""
    found, match = model(**batch.model_inputs, output_hidden_states=hidden_states, match_later=True)
    return Outputs(
        last_hidden=found.last_hidden_state,
        head=None,
        hidden_states=found.hidden_states,
        encoder_layers=_made_of(model).encoder_layers if hidden_states else 0,
        embeddings=VideoEmbeddings(
            found.text_embeds,
            found.video_embeds,
            found.frame_embeds,
            found.frame_text_embeds,
            model.temperature.clamp(*model.temperatures),
            match,
            found.turned_embeds,
        ),
    )


def _outputs_of_answers(model: Any, batch: Batch, hidden_states: bool) -> Outputs:
    """Of a model that answers questions about videos: what its head for tokens reads."""
    found = model(**batch.model_inputs, output_hidden_states=hidden_states)
    return Outputs(
        last_hidden=found.last_hidden_state,
        head=Head(model.get_output_embeddings()),
        hidden_states=found.hidden_states,
        encoder_layers=_made_of(model).encoder_layers if hidden_states else 0,
    )


class _Made(NamedTuple):
    """What the view of a model says that every pass needs."""

    logits: LogitsMap | None
    encoder_layers: int


_MADE: WeakKeyDictionary[nn.Module, _Made] = WeakKeyDictionary()


def _made_of(model: nn.Module) -> _Made:
    if model not in _MADE:
        view = families.view(model)
        _MADE[model] = _Made(view.logits, view.streams[0].blocks if len(view.streams) > 1 else 0)
    return _MADE[model]


def _outputs_of_labeller(model: nn.Module, batch: Batch, attentions: bool) -> Outputs:
    found = model(**batch.model_inputs, output_hidden_states=True, output_attentions=attentions, return_dict=True)
    encoder = found.get("encoder_hidden_states") or ()  # an encoder-decoder's, whose decoder reads the text again
    states = encoder + (found["decoder_hidden_states"] if encoder else found.hidden_states)
    probabilities = found.get("attentions")
    if attentions and encoder:
        probabilities = found.encoder_attentions + found.decoder_attentions + found.cross_attentions
    return Outputs(
        last_hidden=states[-1],
        head=None,
        hidden_states=states,
        attentions=probabilities,
        encoder_layers=len(encoder) - 1 if encoder else 0,
        label_logits=_label_logits(found, batch),
    )


def _outputs_of_some_tokens(model: Any, batch: Batch, hidden_states: bool, attentions: bool) -> Outputs:
    """Of a model whose head works on each token: what it says of those that have labels."""
    asked = {"output_hidden_states": hidden_states, "output_attentions": attentions}
    logits, last, found = run_head_on(model, batch.model_inputs, batch.labelled, **asked)
    return Outputs(
        last_hidden=last,
        head=None,
        hidden_states=found.get("hidden_states"),
        attentions=found.get("attentions"),
        label_logits=logits,
    )


def _label_logits(found: Any, batch: Batch) -> Tensor:
    if "start_logits" not in found:
        logits: Tensor = found.logits
        return logits
    # Models give padding logits too; nothing begins or ends there.
    both = torch.stack([found.start_logits, found.end_logits], 1).float()
    return both.masked_fill(~batch.counted.unsqueeze(1), -1e4)


class Recorder:
    """Keeps the outputs of the layers' feed-forward parts of one forward pass after another.

    transformers gives hidden states and attention, but not these. Its own recorder finds modules by their class, and
    these have a stock layer's class before a method swaps them and the method's after. So the last feed-forward matrix
    of each layer, which the view names, gets one hook that puts its output at a fixed place of a list. The hooks are
    there before a block is compiled, so that they are traced as a part of it, and they run inside the module that data
    parallelism wraps; `remove` takes them away after the stage.
    """

    def __init__(self, model: Any) -> None:
        paths = families.view(model).feed_forward
        self._outputs: list[Tensor | None] = [None] * len(paths)
        self._hooks = [model.get_submodule(path).register_forward_hook(self._keep(i)) for i, path in enumerate(paths)]

    def _keep(self, index: int) -> Any:
        outputs = self._outputs

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[index] = output

        return hook

    def take(self) -> tuple[Tensor, ...]:
        """The outputs (B, T, d) of the last pass, in the order of the layers; they are not kept any longer."""
        found = tuple(output for output in self._outputs if output is not None)
        self._outputs[:] = [None] * len(self._outputs)
        return found

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


class StudentForward(nn.Module):
    """From a batch to the total loss, in one module.

    Data-parallel wrappers see gradients only of what ran inside their own `forward`; this is the module that they
    wrap, so that backbone, head, and the terms' parameters all take part.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, Objective],
        context: ObjectiveContext,
        penalties: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """`penalties` gives further scalars of the loss, of the model alone; those without gradients are logged."""
        super().__init__()
        self.model = model
        self.penalties = penalties
        self.terms = nn.ModuleDict({name: objective.build(context) for name, objective in objectives.items()})
        self.terms.to(context.device)
        self.weights = {name: objective.weight for name, objective in objectives.items()}
        self.needs_teacher = any(objective.needs_teacher for objective in objectives.values())
        self.hidden_states = any(objective.needs_hidden_states for objective in objectives.values())
        self.attentions = any(objective.needs_attentions for objective in objectives.values())
        self.feed_forward = any(objective.needs_feed_forward for objective in objectives.values())
        self._before: dict[int, tuple[Any, str]] = {}  # what attention computed by before this stage
        self._recorders: dict[int, tuple[nn.Module, Recorder]] = {}
        if self.feed_forward:
            self._recorder(model)

    @torch.no_grad()
    def teach(self, teacher: nn.Module, batch: Batch) -> Outputs:
        """What `teacher` has to say on `batch`, as far as the objectives ask for it."""
        return self._outputs_of(teacher, batch)

    def forward(self, batch: Batch, teacher: TeacherOutputs | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss (scalar, FP32) and the own value of each term that is for such a batch, detached and unweighted.

        Raises:
            AbridgedError: a term needs a teacher, and none was given; or no term is for such a batch.
        """
        if self.needs_teacher and teacher is None:
            raise AbridgedError("this objective distils from a teacher, and none was given")
        terms = {name: term for name, term in self.terms.items() if term.is_for(batch)}  # type: ignore[operator]
        if not terms:
            kind = "clips joined in two orders" if batch.twins else "clips that are not joined"
            raise AbridgedError(f"there are {kind} to learn from, and none of {', '.join(self.terms)} does")
        student = self._outputs_of(self.model, batch)
        values = {name: term(student, teacher, batch) for name, term in terms.items()}
        weighted = [self.weights[name] * value for name, value in values.items()]
        if self.training:
            values |= self.penalties()
            weighted += [value for name, value in values.items() if name not in self.terms and value.requires_grad]
        total = torch.stack(weighted).sum()
        return total, {name: value.detach() for name, value in values.items()}

    def _outputs_of(self, model: nn.Module, batch: Batch) -> Outputs:
        self._before.setdefault(id(model), (model, getattr(model.config, "_attn_implementation", "")))
        recorder = self._recorder(model) if self.feed_forward else None
        outputs = outputs_of(model, batch, hidden_states=self.hidden_states, attentions=self.attentions)
        if recorder is not None:
            outputs.feed_forward = recorder.take()
        return outputs

    def _recorder(self, model: nn.Module) -> Recorder:
        """The recorder of the student, or of the teacher, which comes with its first batch."""
        if id(model) not in self._recorders:
            self._recorders[id(model)] = model, Recorder(model)
        return self._recorders[id(model)][1]

    def close(self) -> None:
        """Leave student and teacher as they were: a stage must not depend on whether the one before was run here."""
        for model, implementation in self._before.values():
            if getattr(model.config, "_attn_implementation", "") != implementation:
                model.set_attn_implementation(implementation)
        self._before.clear()
        for _, recorder in self._recorders.values():
            recorder.remove()
        self._recorders.clear()

    def after_step(self, accelerator) -> None:
        """To be called on the unwrapped module in every process after each optimiser step."""
        for term in self.terms.values():
            term.after_step(accelerator)  # type: ignore[operator]
