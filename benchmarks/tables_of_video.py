"""Tables of docs/video.md: contestants on clips of shapes, and frames a second of BLIP-base's image encoder."""

from collections.abc import Callable

from rendering import markdown, rates, spread
from results import Row, latest, read

#: What `benchmarks/shapes.py` calls its contestants, in order.
TITLES = {
    "image": "the image model, frames averaged, untrained",
    "blip-tuned": "BLIP, trained without temporal attention",
    "litevl": "LiteVL",
    "litevl-constant": "… constant scale",
    "litevl-scalar": "… one learned scale a block",
    "litevl-gated": "… gated scale",
    "litevl-original": "… no text-dependent pooling",
    "litevl-skip": "… [CLS] of frames left out of temporal attention",
    "litevl-random": "… from random weights",
    "ea-vtr-quarter": "EA-VTR, from that LiteVL",
    "ea-vtr": "… half of the steps of joined clips, not a quarter",
    "ea-vtr-blip": "… from BLIP at once",
    "ea-vtr-without-etl": "… without joined clips, and without their order",
    "ea-vtr-without-ecl": "… without captions of frames",
    "litevl-2-2-8": "LiteVL, 2-2-8",
    "litevl-1-1-8": "LiteVL, 1-1-8",
    "litevl-vtrans-2-2-8": "LiteVL, pruned to half, then 2-2-8",
    "ea-vtr-quarter-2-2-8": "EA-VTR, 2-2-8",
    "ea-vtr-2-2-8": "… of half of the steps, 2-2-8",
    "ea-vtr-blip-2-2-8": "EA-VTR from BLIP at once, 2-2-8",
    "questions-image": "answers, of one frame",
    "questions-frames": "answers, of frames without temporal attention",
    "questions": "answers, LiteVL",
    "questions-litevl": "answers, from that LiteVL",
}
COLUMNS: dict[str, Callable[[Row], float | None]] = {
    "R@1": lambda r: r["clips"].get("recall_at_1"),
    "matched": lambda r: r["clips"].get("matched", {}).get("matched_recall_at_1"),
    "kind": lambda r: r.get("attributes", {}).get("kind"),
    "motion": lambda r: r.get("attributes", {}).get("motion"),
    "direction": lambda r: r["clips"].get("time", {}).get("direction_accuracy"),
    "order": lambda r: r["clips"].get("time", {}).get("order_accuracy"),
    "order, aligned": lambda r: r.get("aligned"),
    "R@1 of two events": lambda r: r.get("pairs", {}).get("recall_at_1"),
    "moments, IoU": lambda r: r.get("moments", {}).get("moment_overlap"),
    "by frames": lambda r: r.get("moments", {}).get("frames_moment_overlap"),
    "answers": lambda r: r["clips"].get("accuracy"),
    "MB": lambda r: r["bytes"] / 2**20,
}


#: What rows of one contestant agree in.
_SAME = ("steps", "steps_before", "initializer_range", "patch")


def shapes() -> str:
    """Contestants on clips of shapes: means over seeds, their spread, and which of them began with an earlier BLIP."""
    found: dict[str, list[Row]] = {}
    for row in read("shapes", share=1):
        now = latest("shapes", share=1, name=row["name"])
        if all(row.get(kind) == now.get(kind) for kind in _SAME):  # not of an earlier length or BLIP
            found.setdefault(row["name"], []).append(row)
    blip = latest("shapes", share=1).get("patch")
    rows = []
    for name in (name for name in TITLES if name in found):
        cells = [[v for v in map(value, found[name]) if v is not None] for value in COLUMNS.values()]
        start = "" if found[name][0].get("patch") == blip else "earlier"
        rows.append([TITLES[name], *(spread(values) if values else "" for values in cells), start])
    return markdown(["", *COLUMNS, "BLIP"], rows)


def frames() -> str:
    """Frames a second of BLIP-base's image encoder."""
    found = latest("frames", name="speed")
    head = f"frames a second, {found['batch']} at once, {found['threads']} threads"
    return rates([head], [found["frames_per_second"]], "torch FP32", 2)


def video_size() -> str:
    """What BLIP-base's shape takes on the disk."""
    names = {"BLIP": "BLIP-base for retrieval, frame by frame", "LiteVL": "with temporal attention (LiteVL)"}
    files = latest("frames", name="files")["files"]
    rows = [
        [title, f"{files[who]['fp32_mb']:.1f}", f"{files[who]['mb']:.1f}", f"{files[who]['ratio']:.1f}×"]
        for who, title in names.items()
    ]
    return markdown(["2-2-8, MB on disk", "FP32", "packed", "ratio"], rows)


TABLES: dict[str, Callable[[], str]] = {"shapes": shapes, "video_size": video_size, "frames": frames}
