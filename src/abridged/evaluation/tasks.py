"""Tasks of the lm-evaluation-harness, run in this process so that compressed checkpoints load as what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.settings_text import nearest


def evaluate_tasks(
    model: str | Path,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Any]]:
    """What a model scores in `tasks`: {task: {metric: value}}, as lm-evaluation-harness names them.

    Args:
        model: a compressed directory, a dense one, a hub name or `bundled`.
        tasks: names of the harness's tasks, or of those described by YAML files in the folder `include`.
        limit: documents of each task at most.

    Raises:
        AbridgedError: lm-eval is not installed, a task is unknown or cannot be read, or the model cannot be loaded.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise AbridgedError('--tasks needs lm-evaluation-harness: pip install "abridged[tasks]"') from None
    from abridged.models.load import load_model

    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise AbridgedError(f"lm-evaluation-harness has no task {unknown[0]!r}{nearest(unknown[0], manager.all_tasks)}")
    loaded, tokenizer = load_model(model)
    try:
        answers = lm_eval.simple_evaluate(
            model=HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            verbosity="ERROR",
        )
    except Exception as error:  # a task's data may be missing, malformed or out of reach
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AbridgedError(f"cannot evaluate {', '.join(tasks)}: {reason}") from error
    return {  # metrics by their plain names: the harness writes "acc,none"
        name: {key.removesuffix(",none"): value for key, value in row.items() if isinstance(value, (int, float))}
        for name, row in answers["results"].items()
    }
