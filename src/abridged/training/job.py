"""What a person asks for, as one value: what `compress`, `finetune` and the commands of those names hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from abridged.core.errors import AbridgedError
from abridged.core.settings import LAST_SEED
from abridged.recipe import PLANNED, Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """The inputs of a run. Making one reads and checks nothing but itself, and imports no torch.

    Attributes:
        kind: `compress` makes a small student of a teacher. `finetune` trains the model itself, which may then be
            described in a .yaml file, keeps its dropout, and is given a head for the labels of the data.
        model: a hub name, a directory, `bundled`, or (to fine-tune) a .yaml file.
        data: a text (`wikitext-2`, a file or folder, or a `datasets` name), pairs of texts (a .jsonl, .csv, .tsv or
            .parquet file, a folder of them, or a `datasets` name), or labelled texts.
        output: the directory to make. While the run lasts, its state is in OUTPUT.partial.
        size: of the weights' file, in bytes or such as "40MB": the bits of each matrix are planned for it, see
            `abridged.planning`; the recipe, or `PLANNED`, says the rest. To compress only.
        recipe: the name of a shipped recipe, a YAML file, its content, or a Recipe; None, to fine-tune: hard labels
            with the task's own settings.
        speed, memory, prune: further limits of that plan, and whether it may prune; see `abridged.pipeline.plan`.
        columns: of rows, which are source and target, or (text, label), or (text, second text, label).
        task: one of GLUE's, whose files `data` has, or squad.
        overrides: `key=value` changes to the recipe, such as `stages.0.steps=500`; without a recipe of
            `TrainingSettings`, such as `epochs=2`.
        resume: go on with an interrupted run of the same settings; the result is that of an uninterrupted one.
        overwrite: replace what is at `output`, where abridged wrote it.
        seed: of every stage, in place of the recipe's, and of what is drawn to make a model.
        teacher_cache: a folder to keep the teacher's answers in, so that training does without the teacher.
        allow_uncompressed: go on with a model of which no method reaches more than 5 % of the weights.
        fold: round the adapters of a packed model into its codes, those that are trained, or those that `model` has, a
            directory of adapters, where there is no recipe. To fine-tune only.
        dtype: what weights that no method has touched are stored in where nothing is packed, float32 or float16.
    """

    model: str | Path
    data: str | Path
    output: str | Path
    kind: Literal["compress", "finetune"] = "compress"
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None
    size: int | str | None = None
    speed: str | float | None = None
    memory: str | int | None = None
    prune: bool = False
    columns: tuple[str, ...] | None = None
    task: str | None = None
    overrides: Sequence[str] = ()
    resume: bool = False
    overwrite: bool = False
    seed: int | None = None
    teacher_cache: str | Path | None = None
    allow_uncompressed: bool = False
    fold: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raises AbridgedError for a dtype that weights are not stored in, a seed that is none, or nothing to do."""
        if self.seed is not None and not 0 <= self.seed <= LAST_SEED:
            raise AbridgedError(f"seed must be between 0 and {LAST_SEED}, not {self.seed}")
        if self.dtype not in ("float32", "float16"):
            raise AbridgedError(f"dtype must be float32 or float16, not {self.dtype}")
        if self.kind == "compress" and self.recipe is None and self.size is None:
            raise AbridgedError("to compress, give a recipe, or a size to plan one for")
        if self.kind != "compress" and self.size is not None:
            raise AbridgedError("a size is for compressing")
        if self.asked_of_plan and self.size is None:
            raise AbridgedError(f"{' and '.join(self.asked_of_plan)}: these are limits of a plan, which needs a size")

    @property
    def asked_of_plan(self) -> dict[str, Any]:
        """What a plan has to heed beside its size, by the fields' names; usually nothing."""
        return {name: value for name in ("speed", "memory", "prune") if (value := getattr(self, name))}

    def loaded_recipe(self) -> Recipe | None:
        """The recipe with overrides and seed, before anything is planned; None where there is none.

        Raises:
            AbridgedError: it cannot be read, a key or value in it is wrong, or it leaves nothing to compress.
        """
        source = PLANNED if self.recipe is None and self.size is not None else self.recipe
        if source is None:
            return None
        recipe = Recipe.load(source, self.overrides)
        if self.kind == "compress" and not recipe.has_methods:
            raise AbridgedError(f"recipe {recipe.name} has no methods: nothing in the model would be compressed")
        for stage in recipe.stages if self.seed is not None else ():
            stage.training.seed = self.seed  # type: ignore[assignment]
        return recipe

    def warnings(self, recipe: Recipe | None) -> list[str]:
        """What a person should know before `recipe`, which this job has loaded, is run; one sentence each."""
        written = None
        with suppress(AbridgedError):  # what is wrong in it may be what the overrides put right
            written = Recipe.load(self.recipe) if self.recipe is not None and self.overrides else None
        return recipe.warnings(written) if recipe else []
