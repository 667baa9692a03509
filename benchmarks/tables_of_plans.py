"""Tables of plans: what each way of finding sensitivity knows, and plans against one form for all matrices."""

from collections.abc import Callable
from math import exp

from rendering import DOCS, markdown
from results import read

from abridged.report.figure import standalone
from abridged.report.plots import front


def plan_ways() -> str:
    """Rank correlation of expected and measured loss; draws docs/plan.svg of the bundled model."""
    rows = []
    for found in read("plan"):
        against = found["against_uniform"]
        if found["model"] == "bundled":
            planned = min(against, key=lambda row: abs(row["planned_bytes"] - found["dense_bytes"] / 12))
            points = [(size, loss) for size, loss in found["front"] if loss > 0]
            chosen = planned["planned_bytes"], planned["planned_expected"]
            (DOCS / "plan.svg").write_text(
                standalone(front(points, chosen, (planned["planned_bytes"], planned["planned_loss"])))
            )
        for way, correlation in found["rank_correlation"].items():
            rows.append(
                [
                    f"{found['model']}, {way}",
                    f"{correlation:.3f}",
                    f"{len(found['mixed'])}",
                    f"{found['tokens']:,}",
                ]
            )
    return markdown(["model and way", "rank correlation", "mixed choices", "tokens"], rows)


def plan_uniform() -> str:
    """Plans against the same form for all matrices, at no more bytes."""
    rows = [
        [
            f"{found['model']}: {row['uniform']}",
            f"{row['uniform_bytes'] / 2**20:.2f}",
            _loss(row["uniform_loss"]),
            f"{row['planned_bytes'] / 2**20:.2f}",
            _loss(row["planned_loss"]),
            f"{row['planned_expected']:.3f}",
        ]
        for found in read("plan")
        for row in sorted(found["against_uniform"], key=lambda row: row["uniform_bytes"])
    ]
    return markdown(["one form for all", "MB", "loss", "plan, MB", "loss", "expected"], rows)


def _loss(nats: float) -> str:
    return f"{nats:.3f} (×{exp(nats):.2f})"


TABLES: dict[str, Callable[[], str]] = {"plan_ways": plan_ways, "plan_uniform": plan_uniform}
