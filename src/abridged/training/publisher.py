"""What a run puts at its output: the student, what was measured of it, and the account of how it came about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from abridged import families
from abridged.checkpoint.adapters import save_adapter
from abridged.checkpoint.files import write_json_files
from abridged.checkpoint.load import load
from abridged.checkpoint.model_card import kind_of
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.hardware import peak_memory
from abridged.core.measurement import Measured, loss_percent
from abridged.core.names import is_local, public_name
from abridged.core.record import RECORD, environment
from abridged.evaluation.probe import against_masks, probe_heads
from abridged.families.kinds import reads_videos
from abridged.report.collect import collect, hidden_states, picture_heads, picture_tokens, picture_weights, token_ids
from abridged.report.page import write_report
from abridged.storage.compressed import compressed_of
from abridged.tasks import Split
from abridged.training.opened import Opened
from abridged.training.optimizer import total_steps
from abridged.training.stages import Stages
from abridged.training.workspace import METRICS

#: Training examples on which a report shows what heads look at, and how many at once.
PROBED, AT_ONCE = 16, 4


class Publisher:
    """Packs where methods have worked; of a packed model writes the adapters, or folds them into it; and else writes a
    stock directory of full precision.

    Made before the stages are run, since of a model that is trained itself nothing is left to measure afterwards.
    """

    def __init__(self, opened: Opened, stages: Stages) -> None:
        self.opened, self.stages = opened, stages
        self.finished = opened.work.finished
        self.packs = opened.recipe.has_methods
        measured = opened.main and not self.packs and not opened.from_scratch
        # adapters that were trained before are part of the student, and what they gained is told beside their base
        start = load(opened.base) if measured and opened.base and opened.has_adapters else stages.student
        self.before = self.measure(start, "validation") if measured else None

    def publish(self) -> dict[str, Any]:
        """Measure what was made as it is stored, and put it, its account and what was logged at the output.

        Returns:
            The account; {} in all processes but the main one.
        """
        if not self.opened.main:
            return {}
        if self.opened.base is not None:
            record = self._folded() if self.opened.job.fold else self._adapters(self.opened.base)
        else:
            record = self._packed() if self.packs else self._dense()
        if (self.opened.work.folder / METRICS).exists():
            shutil.copyfile(self.opened.work.folder / METRICS, self.finished / METRICS)
        self.opened.work.publish()
        return record

    def measure(self, model: Any, split: Split = "test") -> Measured:
        """`model` on a part of the data (see `Task.measure`)."""
        return self.opened.task.measure(model, split, self.opened.recipe.stages[-1].training)

    def _dense(self) -> dict[str, Any]:
        """Write a Hugging Face directory, in the type that weights are stored in."""
        opened, student = self.opened, self.stages.student
        dtype = getattr(torch, opened.job.dtype)
        with torch.no_grad():  # what is measured is what is stored
            for parameter in student.parameters():
                parameter.copy_(parameter.to(dtype))
        after = self.measure(student, "validation")
        record = {
            **self._account(),
            "validation": {"before": self.before, "after": after},
            "test": self.measure(student) if opened.task.has_test else None,
            "curve": [m for m in opened.work.metrics() if m.get("event") == "evaluate"],
        }
        student.config.use_cache = True
        student.to(dtype).save_pretrained(self.finished)
        opened.tokenizer.save_pretrained(self.finished)
        write_json_files(self.finished, opened.task.files(student))
        (self.finished / RECORD).write_text(json.dumps(record, indent=1))
        return record

    def _adapters(self, base: Path) -> dict[str, Any]:
        """Write what was trained beside a packed model, and the tokenizer."""
        opened, student = self.opened, self.stages.student.eval()
        found = save_adapter(student, self.finished, base, opened.work.output, self._with_adapters(student))
        opened.tokenizer.save_pretrained(self.finished)
        write_json_files(self.finished, opened.task.files(student))
        return found

    def _folded(self) -> dict[str, Any]:
        """Write a packed model whose codes are those of the base and its adapters, rounded anew."""
        opened = self.opened
        account = self._with_adapters(self.stages.student.eval())
        folded = self.stages.fold()
        account["validation"]["folded"] = self.measure(folded, "validation")
        account["test"] = self.measure(folded) if opened.task.has_test else None
        record = save_checkpoint(folded, self.finished, opened.tokenizer, account)
        write_json_files(self.finished, opened.task.files(folded))
        return record

    def _with_adapters(self, student: Any) -> dict[str, Any]:
        """The account of a packed model and adapters."""
        opened = self.opened
        return {
            **self._account(),
            "validation": {"before": self.before, "after": self.measure(student, "validation")},
            "test": self.measure(student) if opened.task.has_test and not opened.job.fold else None,
            "curve": [m for m in opened.work.metrics() if m.get("event") == "evaluate"],
        }

    def _packed(self) -> dict[str, Any]:
        """Write a checkpoint and its report."""
        opened, stages = self.opened, self.stages
        matrices = picture_weights(stages.student, families.view(stages.student))
        models = {"teacher": opened.teacher, "untrained": stages.untrained(), "student": stages.student}
        found = {name: model for name, model in models.items() if model is not None}
        room = opened.weights is None  # for a model twice
        models = {name: model if name == "teacher" else pack_model(model, room) for name, model in found.items()}
        metrics = {name: self.measure(model) for name, model in models.items()}
        account = {
            **self._account(),
            "metrics": metrics,
            "loss_percent": loss_percent(metrics["teacher"], metrics["student"]),
        }
        record = save_checkpoint(models["student"], self.finished, opened.tokenizer, account)
        write_json_files(self.finished, opened.task.files(stages.student))
        batch = opened.task.picture()
        states = {name: hidden_states(model, batch) for name, model in models.items()}
        last = opened.recipe.stages[-1].methods.values()
        report = collect(
            recipe=opened.recipe,
            base_model=opened.model_name,
            base_model_note=opened.rounding,
            data=opened.task.name,
            directory=opened.work.output,
            account=record["size"],
            teacher_metrics=metrics["teacher"],
            student_metrics=metrics["student"],
            rounded_metrics=metrics.get("untrained"),
            rounded_name=", ".join([*(method.untrained_name for method in last), "untrained"]),
            metrics=opened.work.metrics(),
            matrices=matrices,
            tokens=picture_tokens(opened.tokenizer, token_ids(batch), states),
            samples=self._samples(models),
            heads=self._heads(),
            videos=opened.task.clips(models),
            sentences=opened.task.sentences(models),
            auto_class=kind_of(record["data"])[0],
            environment=record["environment"],
            seconds=stages.seconds,
            peak_memory={"peak memory": record["peak_memory_bytes"]},
        )
        write_report(self.finished / "report.html", report)
        return record

    def _account(self) -> dict[str, Any]:
        """What abridged.json says of every run."""
        opened, stages = self.opened, self.stages
        told = compressed_of(stages.student).account()
        trained = [(stage.training, opened.examples(number)) for number, stage in enumerate(opened.recipe.stages)]
        return {
            "kind": opened.job.kind,
            "recipe": opened.recipe.model_dump(mode="json"),
            "teacher": {
                "name": opened.model_name,
                "hub": not is_local(opened.job.model),
                "hash": opened.hash,
                **({"description": opened.rounding} if opened.rounding else {}),
            },
            "data": {"name": public_name(opened.task.name), **opened.task.facts()},
            "seed": opened.recipe.stages[0].training.seed,
            "steps": [total_steps(settings, examples) for settings, examples in trained],
            **({"methods": told} if told else {}),
            "seconds": stages.seconds,
            "peak_memory_bytes": peak_memory(),
            "environment": environment(),
        }

    def _samples(self, models: dict[str, Any]) -> Any:
        """What models write; not one that is lent its weights for each token, which would take longer than all else."""
        if self.opened.weights is None:
            return self.opened.task.samples(models)
        by_blocks = self.opened.recipe.stages[0].runner == "blocks"
        return self.opened.task.samples({"student": models["student"]}) if by_blocks else []

    def _heads(self) -> Any:
        """What the teacher's heads look at and which were removed, where a method says so."""
        masks = compressed_of(self.stages.student).heads
        if not masks or reads_videos(self.opened.teacher):  # what heads look at is told by tokens of texts
            return None
        examples = self.opened.examples(len(self.opened.recipe.stages) - 1)
        order, count = examples.order(0, AT_ONCE), min(PROBED, len(examples))
        batches = (examples.batch(order[i : i + AT_ONCE]) for i in range(0, count, AT_ONCE))
        found = probe_heads(self.opened.teacher, batches, self.opened.tokenizer.all_special_ids)
        return picture_heads(against_masks(found, masks))
