"""Tables of models of sentences: what they lose, and how fast they are."""

from typing import Any

from rendering import markdown
from results import NotMeasured, latest, processor_of, read


def sentences() -> str:
    """Our small models and other tools', by size."""
    rows = sorted(read("sentences"), key=lambda row: -row["file_bytes"])
    head = ["", "MB", "Spearman lost, points", "top-10 agreement, %", "cosine to the teacher's, %", "processor minutes"]
    return markdown(head, [_quality(row) for row in rows])


def _quality(row: dict[str, Any]) -> list[str]:
    minutes = row.get("processor_seconds")
    return [
        f"**{row['name']}**" if row["recipe"] else row["name"],
        f"{row['file_bytes'] / 2**20:.1f}",
        f"{row['test']['lost']:.2f}",
        f"{row['neighbours']:.1f}",
        f"{row['cosine']:.1f}" if "cosine" in row else "–",
        f"{minutes / 60:.0f}" if minutes else "–",
    ]


def sentences_speed() -> str:
    """Sentences a second by batch and length."""
    rows = read("sentences speed")
    if not rows:
        raise NotMeasured("sentences speed has not been measured")
    names = [*rows[0]["sentences_per_second"]]
    head = ["batch", "tokens each", *names]
    body = [
        [str(row["batch"]), str(row["length"]), *(f"{row['sentences_per_second'][name]:,.1f}" for name in names)]
        for row in rows
    ]
    return f"{markdown(head, body)}\n\nOn {rows[0]['threads']} threads of an {processor_of(rows[0])}."


def sentences_engine() -> str:
    """The export in onnxruntime beside the packed model."""
    head = ["", "cosine of the vectors, mean", "the least", "top-10 agreement, %", "MB", "sentences"]
    body = []
    for name in ("onnxruntime", "onnxruntime, inputs rounded once more"):
        row = latest("sentences engine", name=name)
        cells = [f"{row['cosine_mean']:.5f}", f"{row['cosine_least']:.5f}", f"{row['neighbours']:.1f}"]
        body.append([name, *cells, f"{row['file_bytes'] / 2**20:.1f}", f"{row['sentences']:,}"])
    return markdown(head, body)


TABLES = {
    "sentences": sentences,
    "sentences_speed": sentences_speed,
    "sentences_engine": sentences_engine,
}
