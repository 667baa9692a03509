"""The pictures of docs/video.md: what a search finds in clips of shapes, and what LiteVL's scale gives to each frame.

    python benchmarks/video_pictures.py bundled-video bundled-clips     # or of `benchmarks/shapes.py examples FOLDER`

It writes docs/video-hits.png and docs/video-scale.svg, and the scales to benchmarks/results/video_pictures.jsonl.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import shapes_world as world
import torch
from matplotlib.figure import Figure
from rendering import DOCS
from results import append

from abridged.core.names import public_name
from abridged.data.video.decode import sample
from abridged.data.video.pixels import Squares
from abridged.index.build import build
from abridged.index.search import Searcher
from abridged.models.load import load_any

#: What is searched for, with what is to come after it.
QUERIES = (
    ("a red circle moves left", ()),
    ("a blue square grows", ()),
    ("an orange diamond moves up", ("a green star moves right",)),
    ("a green star moves right", ("an orange diamond moves up",)),
)
SHOWN, FRAMES = 3, 6
#: Kinds of events, by how what happens in them begins.
KINDS = {"moves": "moves", "grows": "grows", "appears": "appears", "disappears": "disappears"}


def hits(model: str, folder: Path) -> None:
    """docs/video-hits.png: the best of each search as a strip of frames, with file, from and to, and score."""
    with tempfile.TemporaryDirectory() as where:
        index = Path(where) / "index.sqlite"
        build(model, folder, index)
        searcher = Searcher(model, folder, index)
        found = [(text, then, searcher.text(text, then, SHOWN, rerank=32)) for text, then in QUERIES]
    figure = Figure(figsize=(9.2, 1.02 * SHOWN * len(found) / 2 + 1.2), layout="constrained")
    parts = figure.subfigures(-(-len(found) // 2), 2).ravel()
    for part, (text, then, some) in zip(parts, found, strict=False):
        part.suptitle("\n→ then ".join([f"“{text}”", *(f"“{one}”" for one in then)]), fontsize=9, x=0.01, ha="left")
        for axes, hit in zip(part.subplots(SHOWN, 1), some, strict=False):
            strip = sample(searcher.folder / hit.path, FRAMES, hit.start, hit.end, 96)
            axes.imshow(np.concatenate(list(strip), 1))
            told = f"{hit.path}  {hit.start:.1f}–{hit.end:.1f} s  {hit.score:.2f}"
            axes.set_title(told, fontsize=7, loc="left", pad=2)
            axes.axis("off")
    figure.savefig(DOCS / "video-hits.png", dpi=110)


def scales(model: Any, count: int = 60) -> dict[str, np.ndarray]:
    """By kind of event: (clips, blocks, frames), what temporal attention is multiplied by in clips of one event."""
    config = model.config
    pixels = Squares(config.image_size, config.image_mean, config.image_std)
    blocks: list[Any] = [block.temporal.scale for block in model.vision_model.encoder.layers]
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda module, given, found: seen.append(found)) for block in blocks]
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    seed = 0
    while min(map(len, found.values())) < count:
        story, seed = world.story(seed, True), seed + 1
        kind = next((k for k, begins in KINDS.items() if story.events[0].motion.startswith(begins)), None)
        if len(story.events) > 1 or kind is None or len(found[kind]) == count:
            continue
        frames = story.frames(config.num_frames)
        seen.clear()
        with torch.inference_mode():
            model.encode_video(pixels(frames)[None])
        found[kind].append(np.stack([one.flatten().numpy() for one in seen]))
    for hook in hooks:
        hook.remove()
    return {kind: np.stack(some) for kind, some in found.items()}


def draw(found: dict[str, np.ndarray]) -> None:
    """docs/video-scale.svg: the scale over frames, a panel for each block, a line for each kind of event."""
    blocks = next(iter(found.values())).shape[1]
    figure = Figure(figsize=(2.3 * blocks, 2.3), layout="constrained")
    every = figure.subplots(1, blocks, sharey=True)
    for number, axes in enumerate(np.atleast_1d(every)):
        for kind, values in found.items():
            mean, spread = values[:, number].mean(0), values[:, number].std(0)
            places = np.arange(1, len(mean) + 1)
            axes.plot(places, mean, marker="o", markersize=3, label=kind)
            axes.fill_between(places, mean - spread, mean + spread, alpha=0.12)
        axes.axhline(1, color="0.6", linewidth=0.6)
        axes.set_title(f"block {number + 1}", fontsize=8)
        axes.set_xticks(places)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("frame", fontsize=8)
    np.atleast_1d(every)[0].set_ylabel("α", fontsize=9)
    np.atleast_1d(every)[0].legend(fontsize=6.5, frameon=False)
    figure.savefig(DOCS / "video-scale.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    hits(given.model, given.folder)
    found = scales(load_any(given.model))
    draw(found)
    told = {kind: values.mean(0).round(4).tolist() for kind, values in found.items()}
    append("video_pictures", {"alpha": told}, model=public_name(given.model))


if __name__ == "__main__":
    main()
