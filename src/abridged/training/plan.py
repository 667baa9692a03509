"""What a run will take, said before it begins: memory by arithmetic, time by one measured pass."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from abridged.core.errors import AbridgedError
from abridged.core.hardware import free_memory
from abridged.core.progress import duration, seconds_since
from abridged.core.settings import DEFAULT_CONTEXT, TrainingSettings
from abridged.core.text import printable
from abridged.data.batch import Batch
from abridged.data.dataset import Dataset
from abridged.data.examples import Examples
from abridged.families.kinds import context_of, reads_videos
from abridged.methods.pruning.method import Prune
from abridged.training.dry import stored_size
from abridged.training.optimizer import total_steps
from abridged.training.processes import together

if TYPE_CHECKING:
    from abridged.recipe import Recipe, Stage
    from abridged.storage.view import View
    from abridged.training.opened import Opened

GIB = 2**30
#: Bytes of every trained parameter: the weight, its gradient, AdamW's two averages, and the values that a quantiser or
#: a mask puts in its place during a pass.
_TRAINED = 4 + 4 + 8 + 4
#: Copies of what linear layers read and write that a pass keeps for the backward one: fake-quantised inputs beside the
#: inputs, activations of norms and functions.
_COPIES = 2
#: What a step takes, in forward passes: the teacher's, the student's, and twice that backward.
_FORWARD_PASSES = 4
_LONG_ENOUGH = 0.2  #: seconds of a forward pass


@dataclass(frozen=True)
class Work:
    """What one stage reads."""

    steps: int
    tokens: int  #: that a step reads
    at_once: int  #: that are in memory at once: a step's, without those of accumulated passes

    @staticmethod
    def of(settings: TrainingSettings, examples: Examples) -> Work:
        """Of a stage. Padding is not counted: texts of about one length are read together."""
        tokens = settings.batch_size * examples.tokens_in_example
        return Work(total_steps(settings, examples), round(tokens), math.ceil(tokens / settings.gradient_accumulation))


def activation_bytes(view: View, tokens: int, checkpointing: bool = False) -> int:
    """What a training pass over so many tokens keeps in FP32 for its backward pass; logits are made in chunks.

    With gradient checkpointing a block keeps its input, and one block all.
    """
    inner = [(m.rows + m.columns, m.layer) for m in view.whole if m.kind == "linear" and m.layer is not None]
    every = sum(widths for widths, _ in inner)
    if checkpointing and view.layers:
        every = every // view.layers + view.layers * view.hidden_size
    return 4 * _COPIES * tokens * every


def training_bytes(view: View, parameters: int, at_once: int, *, teacher: bool, checkpointing: bool = False) -> int:
    """Memory that a run takes at most, without what Python and its libraries hold.

    Args:
        parameters: of the model.
        at_once: tokens in one pass.
        teacher: whether the full-precision teacher is held beside the student.
    """
    models = _TRAINED * parameters + (4 * parameters if teacher else 0)
    return models + activation_bytes(view, at_once, checkpointing)


def weights_of(view: View) -> tuple[list[int], int]:
    """Weights of the matrices of each block, and of those outside of all."""
    blocks = [sum(m.rows * m.columns for m in view.whole if m.layer == layer) for layer in range(view.layers)]
    return blocks, sum(m.rows * m.columns for m in view.whole if m.layer is None)


def within_memory(most: int, needs: str, less: str) -> int:
    """So many bytes, where there are as many.

    Args:
        needs: how the sentence begins, such as "this needs".
        less: what would take less.

    Raises:
        AbridgedError: there are not.
    """
    free = free_memory()
    if most > free:
        raise AbridgedError(f"{needs} about {gigabytes(most)} of memory, and {gigabytes(free)} are free: {less}")
    return most


def memory_of_stage(view: View, parameters: int, settings: TrainingSettings, work: Work, teacher: bool) -> int:
    """The memory that a stage needs, in bytes.

    Raises:
        AbridgedError: it is more than there is; the sentence names the setting that would fit.
    """

    def needed(passes: int, tokens: float = work.tokens) -> int:
        checkpointing = settings.gradient_checkpointing
        return training_bytes(
            view, parameters, math.ceil(tokens / passes), teacher=teacher, checkpointing=checkpointing
        )

    most, free = needed(settings.gradient_accumulation), free_memory()
    if not work.steps:  # methods alone: weights, and what they look at a few sequences at a time
        most = 8 * parameters
    if most <= free:
        return most
    sentence = f"this needs about {gigabytes(most)} of memory, and {gigabytes(free)} are free"
    if needed(1, 0) > free:
        raise AbridgedError(
            f"{sentence}: {gigabytes(needed(1, 0))} of it are the model, its gradients and the optimiser, whatever a "
            "step reads"
        )
    divisors = [n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0]
    fitting = next((n for n in divisors if n > settings.gradient_accumulation and needed(n) <= free), None)
    if fitting is not None:
        raise AbridgedError(f"{sentence}: gradient_accumulation={fitting} would fit, and read the same")
    share = (free - needed(1, 0)) / max(1, needed(settings.batch_size) - needed(1, 0))
    context = max(2, int(share * work.tokens / settings.batch_size))
    raise AbridgedError(f"{sentence}: context={context} with gradient_accumulation={settings.batch_size} would fit")


def memory_of_blocks(view: View, stage: Stage, examples: Examples) -> int:
    """The memory that a stage needs which goes block by block, in bytes: embeddings, a block as it was and as it
    becomes, and what GPTQ's arithmetic makes of the widest matrix or training of every weight.

    Raises:
        AbridgedError: it is more than there is.
    """
    blocks, loose = weights_of(view)
    widest = max(m.columns for m in view.whole if m.kind == "linear")
    reads = "many" in {one for method in stage.methods.values() for one in method.passes}
    tokens = stage.blocks.tokens if reads else 0
    inner = max(max(m.rows, m.columns) for m in view.whole if m.layer is not None)
    most = 4 * (2 * loose + 3 * max(blocks, default=0))
    most += (5 * 4 * widest**2 if reads else 0) + 4 * _COPIES * tokens * (inner + 2 * view.hidden_size)
    if stage.trains:
        at_once = math.ceil(stage.training.batch_size * examples.tokens_in_example)
        trained = _TRAINED * max(blocks, default=0) + activation_bytes(view, at_once) // max(view.layers, 1)
        most = max(most, 8 * loose + 2 * trained)
    less = "fewer blocks.tokens, or a smaller training.batch_size, take less"
    return within_memory(most, "block by block this needs", less)


def memory_of_scales(view: View, stage: Stage, examples: Examples, packed: int) -> int:
    """The memory that training the scales of a packed model of so many bytes needs, in bytes: three times the packed
    model (a scale of two bytes is five numbers of FP32), what is computed with as it is, with its gradient (embeddings
    and head, a block), the teacher's, and activations.

    Raises:
        AbridgedError: it is more than there is.
    """
    blocks, loose = weights_of(view)
    settings = stage.training
    at_once = math.ceil(settings.batch_size * examples.tokens_in_example / settings.gradient_accumulation)
    dense = max(blocks, default=0) if settings.gradient_checkpointing else sum(blocks)
    most = 3 * packed + 4 * (3 * loose + 2 * dense + max(blocks, default=0))
    most += activation_bytes(view, at_once, settings.gradient_checkpointing)
    less = "gradient_checkpointing=true and gradient_accumulation take less, and steps=0 leaves scales as they are"
    return within_memory(most, "to train scales, this needs", less)


def memory_of_adapters(view: View, stage: Stage, held: int, at_once: int) -> int:
    """The memory that training adapters beside a packed model of so many bytes needs, in bytes: that, four FP32 numbers
    for each of theirs, and activations.

    Raises:
        AbridgedError: it is more than there is.
    """
    count = sum(method.parameters(view) for method in stage.methods.values())
    most = held + 16 * count + activation_bytes(view, at_once, stage.training.gradient_checkpointing)
    less = "gradient_accumulation or gradient_checkpointing=true take less"
    return within_memory(most, "to train adapters, this needs", less)


def check_whole(parameters: int) -> None:
    """Refuse a model that does not fit twice, as teacher and as student, before any weight is read.

    Raises:
        AbridgedError: the sentence says what memory that would take, and which runners do with less.
    """
    free = free_memory()
    if 8 * parameters > free:
        raise AbridgedError(
            f"teacher and student take {gigabytes(8 * parameters)} in FP32, and {gigabytes(free)} are free: with "
            "weights on disk, --set 'stages.*.runner=frozen' prunes, and runner=blocks quantises"
        )


def check_frozen(recipe: Recipe, parameters: int) -> None:
    """Refuse what the runner frozen does not do, before any weight is read.

    Raises:
        AbridgedError: the first stage does not prune, a method is none that it serves, or a stage trains all weights;
            the sentence says what memory that would take.
    """
    if not isinstance(recipe.stages[0].methods.get("prune"), Prune):
        raise AbridgedError("the runner frozen prunes in its first stage (methods.prune)")
    left = share_left(recipe)
    for number, stage in enumerate(recipe.stages):
        for name in stage.methods.keys() - {"prune", "lora"}:
            raise AbridgedError(f"methods.{name} has no place in the runner frozen: it has prune and lora")
        if stage.trains and not stage.training.freeze_weights:
            needed, free = gigabytes(_TRAINED * left * parameters + 4 * parameters), gigabytes(free_memory())
            raise AbridgedError(
                f"stage {number + 1} trains all weights, which takes about {needed} of memory, and {free} are free: "
                f"with the runner frozen train adapters (--set stages.{number}.methods.lora.rank=8 "
                f"--set stages.{number}.freeze_weights=true --set stages.{number}.learning_rates.adapter=2e-3), or "
                f"leave it out (--set stages.{number}.steps=0)"
            )


def share_left(recipe: Recipe) -> float:
    """The share of a model that its first stage's budget leaves; 1 where that says nothing of its size."""
    budget = recipe.stages[0].methods["prune"].budget
    return budget.value if budget.is_share and budget.measure in ("parameters", "bytes") else 1.0


def memory_of_frozen(view: View, recipe: Recipe, parameters: int, work: Work, bytes_each: int) -> int:
    """The memory that a stage of the runner frozen needs, in bytes: what stands outside of the blocks, of the teacher,
    the student and one that is cut; what the cut leaves, in `bytes_each`; two blocks in FP32; and the larger of what a
    step keeps and of what the fit makes of the widest matrix.

    Raises:
        AbridgedError: it is more than there is.
    """
    blocks, loose = weights_of(view)
    widest = max(m.columns for m in view.whole if m.kind == "linear")
    inner, prune = max(max(m.rows, m.columns) for m in view.whole), recipe.stages[0].methods["prune"]
    tokens = prune.fit_tokens if prune.reconstruct else 0
    step = activation_bytes(view, work.at_once, checkpointing=True)
    fit = 5 * 8 * widest**2 + 4 * 2 * _COPIES * tokens * (inner + view.hidden_size)
    left = share_left(recipe)
    most = 4 * round((2 + left) * loose) + round(bytes_each * left * parameters) + 8 * max(blocks) + max(step, fit)
    less = "more gradient_accumulation, a shorter context, or fewer methods.prune.fit_tokens take less"
    return within_memory(most, "with weights on disk this needs", less)


def seconds_per_token(model: Any, examples: Examples, settings: TrainingSettings) -> float:
    """Of training, from forward passes over more and more examples, until one takes long enough to tell, or has as many
    as a step reads at once: of a small model one example takes nearly as long as many do."""
    count, most = 1, min(settings.batch_size // settings.gradient_accumulation, len(examples))
    while True:
        batch = examples.batch(torch.arange(count)).to(model.device)
        best = min(_seconds_of_pass(model, batch) for _ in range(2))
        if best > _LONG_ENOUGH or count >= most:
            read = count * examples.tokens_in_example if "pixel_values" in batch.inputs else batch.input_ids.numel()
            return _FORWARD_PASSES * best / read
        count = min(4 * count, most)


@torch.no_grad()
def _seconds_of_pass(model: Any, batch: Batch) -> float:
    began = time.perf_counter()
    model(**batch.model_inputs, use_cache=False)
    return seconds_since(began)


def announce(opened: Opened) -> None:
    """Say in three lines, on standard error, what a run will do and what it will take.

    Raises:
        AbridgedError: it would take more memory than there is.
    """
    streamed, view = opened.weights, opened.view
    model = opened.teacher if streamed is None else streamed.model
    stages = [(stage, opened.examples(number)) for number, stage in enumerate(opened.recipe.stages)]
    works = [Work.of(stage.training, examples) for stage, examples in stages]
    parameters, held = sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())
    memory = 0
    with together():
        for (stage, examples), work in zip(stages, works, strict=True):
            if streamed is not None and stage.runner == "frozen":
                each = streamed.main_dtype.itemsize
                memory = max(memory, memory_of_frozen(view, opened.recipe, parameters, work, each))
                continue
            if stage.runner == "blocks":
                memory = max(memory, memory_of_blocks(view, stage, examples))
                continue
            if stage.runner == "scales":
                if work.steps:
                    packed = stored_size(type(model), model.config, opened.recipe)["file_bytes"]
                    memory = max(memory, memory_of_scales(view, stage, examples, packed))
                continue
            if opened.base is not None:
                memory = max(memory, memory_of_adapters(view, stage, held, work.at_once))
                continue
            learns = stage.trains and any(objective.needs_teacher for objective in stage.objectives.values())
            teacher = learns and opened.job.teacher_cache is None
            memory = max(memory, memory_of_stage(view, parameters, stage.training, work, teacher))
    if opened.main:
        trains = streamed is None and any(work.steps for work in works)
        per_token = seconds_per_token(model, stages[0][1], stages[0][0].training) if trains else 0.0
        packed = None if opened.base is None else held
        data = opened.task.data.describe()
        lines = describe(opened.model_name, model.config, parameters, data, works, memory, per_token, packed)
        print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def describe(
    name: str,
    config: Any,
    parameters: int,
    data: str,
    works: Sequence[Work],
    memory: int,
    per_token: float,
    packed: int | None = None,
) -> list[str]:
    """Three lines: the model, of which `packed` bytes are held where it is packed; the data as understood; and the work
    with what it will take."""
    steps, tokens = sum(work.steps for work in works), sum(work.steps * work.tokens for work in works)
    each = " and ".join(f"{count:,}" for count in dict.fromkeys(work.tokens for work in works))
    work = f"{steps:,} steps of {each} tokens" if steps else "no training"
    seconds = f" and {duration(per_token * tokens)} of training on this machine" if steps and per_token else ""
    size = f"{parameters / 1e6:,.1f}M parameters, {4 * parameters / 2**20:,.0f} MB in FP32"
    size = size if packed is None else f"packed, {packed / 2**20:,.1f} MB"
    return [
        f"model: {name}, {config.model_type}, {size}",
        f"data: {data}",
        f"work: {work}, about {gigabytes(memory)} of memory{seconds}",
    ]


@torch.no_grad()
def announce_reading(model: Any, name: str, data: Dataset, context: int | None) -> None:
    """Say in three lines, on standard error, what is to be measured, and how fast one window of it was read."""
    config = model.config
    if reads_videos(model):
        print(f"model: {printable(name)}, {config.model_type}", file=sys.stderr)
        data.announce(measured=True)
        return
    window = min(context or DEFAULT_CONTEXT, context_of(config))
    ids = torch.randint(config.get_text_config().vocab_size, (1, window), device=model.device)
    given = {"input_ids": ids, **({"decoder_input_ids": ids[:, :1]} if config.is_encoder_decoder else {})}
    began = time.perf_counter()
    model(**given)
    speed = window / seconds_since(began)
    print(f"model: {printable(name)}, {config.model_type}", file=sys.stderr)
    data.announce(measured=True)
    print(f"work: read in windows of {window:,} tokens, about {speed:,.0f} tokens/s", file=sys.stderr, flush=True)


def gigabytes(count: float) -> str:
    """Bytes as GB of 2^30."""
    return f"{count / GIB:,.1f} GB"
