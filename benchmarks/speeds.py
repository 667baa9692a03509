"""The headline numbers of every benchmark of speed, and which of two processors is nearer to a third."""

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
Headline = tuple[str, str, float]  #: what, unit, number; more is better but for seconds and milliseconds


def spoken(number: float) -> str:
    """A number in three digits, or in all before its point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _runtime(row: Row) -> Iterator[Headline]:
    for key, what in (("prompt_tokens_per_second", "prompt"), ("decode_tokens_per_second", "writing")):
        for who in ("packed", "packed, abridged generate", "torch FP32", "llama.cpp TQ2_0"):
            if who in row[key]:
                yield f"GPT-2 124M, {what}, {who}", "tokens/s", row[key][who]


def _encoders(row: Row) -> Iterator[Headline]:
    for size, speeds in row["sentences_per_second"].items():
        for who in ("packed", "torch FP32", "onnxruntime int8"):
            if who in speeds:
                yield f"BERT-base, batch {size}, {who}", "sentences/s", speeds[who]


def _encoder_decoder(row: Row) -> Iterator[Headline]:
    for key, what in (("source_tokens_per_second", "reading"), ("written_tokens_per_second", "four beams")):
        for who in ("packed", "torch FP32"):
            yield f"BART-base, {what}, {who}", "tokens/s", row[key][who]


def _frames(row: Row) -> Iterator[Headline]:
    for who, speed in row.get("frames_per_second", {}).items():  # a row of files has none
        yield f"BLIP-base, images, {who}", "frames/s", speed


def _index(row: Row) -> Iterator[Headline]:
    for kind, found in row["rows"].items():
        yield f"search in {row['windows']:,} windows, {kind}", "ms", found["processor_ms"]


def _training(row: Row) -> Iterator[Headline]:
    for who in ("bare torch loop", "finetune", "distillation", "quantgpt-2-2-8"):
        yield f"training {row['model']}, {who}", "tokens/s", row["contestants"][who]["tokens_per_second"]


def _loading(row: Row) -> Iterator[Headline]:
    for case, found in row["cases"].items():
        yield f"loading, {case}", "s", found["this"]


SPEEDS: dict[str, Callable[[Row], Iterator[Headline]]] = {
    "runtime": _runtime,
    "encoders": _encoders,
    "encoder_decoder": _encoder_decoder,
    "frames": _frames,
    "index": _index,
    "training_cost": _training,
    "loading": _loading,
}
"""Of each script its headlines in a row; in the order of the table."""


def nearness(row: Row, to: Row) -> tuple[bool, ...]:
    """How near the processor of one row is to that of another, to be compared: the same, its family, its vendor and
    kernels, its vendor."""
    one, other = row["processor"], to["processor"]
    vendor = one["cpu"].split("(")[0].split()[0] == other["cpu"].split("(")[0].split()[0]
    known = None not in (one.get("family"), other.get("family"))
    family = vendor and known and one["family"] == other["family"]
    kernels = one["amx"] == other["amx"] and row.get("kernels") == to.get("kernels")
    return family and one["model"] == other["model"], family, vendor and kernels, vendor, kernels
