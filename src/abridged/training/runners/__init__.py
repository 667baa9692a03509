"""Who owns the pass over a model: one file per way of carrying out a stage."""

from abridged.recipe import Stage
from abridged.training.runners.base import Pass, Runner
from abridged.training.runners.blocks import Blocks
from abridged.training.runners.frozen import Frozen
from abridged.training.runners.scales import Scales
from abridged.training.runners.whole import Whole

__all__ = ["Blocks", "Frozen", "Pass", "Runner", "Scales", "Whole", "runner_of"]

_RUNNERS: dict[str, type[Runner]] = {"whole": Whole, "blocks": Blocks, "scales": Scales, "frozen": Frozen}


def runner_of(stage: Stage) -> type[Runner]:
    """The runner that a stage says."""
    return _RUNNERS[stage.runner]
