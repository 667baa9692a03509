"""Frames per second of BLIP-base's image encoder on this CPU, packed, beside torch and onnxruntime, in one run.

    pip install onnx onnxscript onnxruntime      # for the rows of onnxruntime; left out where they are missing
    python benchmarks/frames.py [--threads 2] [--batch 8] [--rounds 5] [--files-only] [--quick]

BLIP-base's true shape for retrieval with random weights, as a video model without temporal attention, which is BLIP
frame by frame, `best-video-2-2-8` without its training; at 224 pixels. Also what the whole model takes on the disk, as
it is and with temporal attention (LiteVL). Both are rows of benchmarks/results/frames.jsonl.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import append, quick_settings, speed_options
from torch import nn
from transformers import BlipConfig, BlipForImageTextRetrieval

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.evaluation.speed import in_turns
from abridged.exporters.dense import dense_model
from abridged.models.video.litevl import LiteVLModel
from abridged.models.video.load import FRAME_BY_FRAME
from abridged.recipe import Recipe
from abridged.runtime.kernels import kernels
from runtime import QUICK

RECIPE, SIDE = "best-video-2-2-8", 224


class Frames(nn.Module):
    """The image encoder alone, on single frames (B, 3, H, W)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = model.vision_model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.vision(pixels).tokens
        return tokens


def build(folder: Path, **settings: Any) -> Path:
    """A packed BLIP-base of random weights, as a video model of these settings."""
    torch.manual_seed(0)
    config = BlipConfig(vision_config={"image_size": SIDE, "initializer_range": 0.02}, image_text_hidden_size=256)
    blip = BlipForImageTextRetrieval(config)
    model = LiteVLModel.from_blip(blip, **settings)
    given = {"pixel_values": torch.randn(1, 1, 3, SIDE, SIDE), "input_ids": torch.full((1, 8), 5)}
    for method in Recipe.load(RECIPE, [*QUICK, "stages.*.methods.quantize.gptq=false"]).stages[-1].methods.values():
        method.build(model, families.view(model), lambda model: model(**given)).finish()
    save_checkpoint(model, folder, None, {"recipe": {"name": RECIPE}, "teacher": "random weights", "seed": 0})
    return folder


def onnx_model(encoder: nn.Module, folder: Path, batch: int, threads: int) -> Callable[[torch.Tensor], Any] | None:
    """onnxruntime in dynamic int8; None where it is not installed."""
    try:
        import onnxruntime
        from onnx_int8 import dynamic_int8
    except ImportError:
        return None
    plain, small = folder / "model.onnx", folder / "int8.onnx"
    torch.onnx.export(encoder, (torch.randn(batch, 3, SIDE, SIDE),), str(plain), input_names=["pixels"], dynamo=True)
    dynamic_int8(plain, small)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(small), options)
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})


def seconds(run: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> float:
    """Seconds in which a contestant reads frames."""
    time.sleep(0.3)  # another's threads go on waiting for work for a while
    begun = time.perf_counter()
    with torch.inference_mode():
        run(pixels)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files-only", action="store_true", help="measure no speed, as on a busy machine")
    options = speed_options(parser, batch=2, rounds=1)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"BLIP": inspect(build(folder / "packed", **FRAME_BY_FRAME))}
        about = {"recipe": RECIPE, "model": "BLIP-base", "settings": quick_settings(options)}
        if not options.quick:
            files["LiteVL"] = inspect(build(folder / "litevl"))
            told_of = {"files": {who: told(account) for who, account in files.items()}}
            append("frames", told_of, options.results, name="files", **about)
        print({who: (round(one["file_bytes"] / 2**20, 2), round(one["ratio"], 2)) for who, one in files.items()})
        if not options.files_only:
            found = measured(folder, options)
            append("frames", found, options.results, name="speed", **about)
            print(found["frames_per_second"])


def told(account: dict[str, Any]) -> dict[str, Any]:
    """What a file weighs."""
    sizes = {"mb": account["file_bytes"] / 2**20, "fp32_mb": account["dense_bytes"] / 2**20}
    return {**sizes, "ratio": account["ratio"], "parts": account["parts"]}


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of each contestant, in turn."""
    packed = load(folder / "packed")
    dense = Frames(dense_model(packed, torch.float32)).eval()
    onnx = None if options.quick else onnx_model(dense, folder, options.batch, options.threads)
    runs: dict[str, Any] = {"packed": Frames(packed).eval(), "torch FP32": dense, "onnxruntime int8": onnx}
    pixels = torch.randn(options.batch, 3, SIDE, SIDE)
    turns = {who: lambda run=run: seconds(run, pixels) for who, run in runs.items() if run is not None}
    compiled = kernels()
    return {
        "threads": options.threads,
        "batch": options.batch,
        "side": SIDE,
        "kernels": compiled.path if compiled else "reference",
        "frames_per_second": {who: options.batch / taken for who, taken in in_turns(turns, options.rounds).items()},
    }


if __name__ == "__main__":
    main()
