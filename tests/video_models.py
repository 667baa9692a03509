"""Tiny video models, and clips of shapes with captions and questions, made by the generator of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering

from scripts import benchmark

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def blip(answers: bool = False, entries: int = 128) -> Any:
    """A stock BLIP, 32 wide, of 16 by 16 pixels in 16 patches, all its parameters random."""
    ids = {"pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3, "bos_token_id": entries - 2}
    config = BlipConfig(
        vision_config={**_SIZES, "image_size": 16, "patch_size": 4, "initializer_range": 0.02},
        text_config={**_SIZES, **ids, "vocab_size": entries, "max_position_embeddings": 64},
        image_text_hidden_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (BlipForQuestionAnswering if answers else BlipForImageTextRetrieval)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved_blip(where: Path, answers: bool = False) -> Path:
    """The same in a directory, with a tokenizer of the shapes' words."""
    tokenizer = benchmark("shapes").tokenizer()
    blip(answers, len(tokenizer)).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def clips(folder: Path, train: int = 8, test: int = 4, questions: bool = False) -> Path:
    """A folder of clips with train.jsonl and test.jsonl, of captions with those of frames, or of questions."""
    world = benchmark("shapes_world")
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for seed in range(count):
            story = world.story(seed, split == "test")
            world.write_clip(folder / f"{split}-{seed}.mp4", story.frames(8))
            row = {"video": f"{split}-{seed}.mp4"}
            if questions:
                question, answer = story.question(world.np.random.default_rng(seed))
                row |= {"question": question, "answer": answer}
            else:
                row |= {"caption": story.caption, "frame_captions": story.frame_captions()}
            rows.append(row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def inputs(count: int = 2, frames: int = 4, entries: int = 128) -> dict[str, torch.Tensor]:
    """Random clips and texts, the last text padded."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, entries - 2, (count, 7), generator=draw)
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    ids[-1, 5:], mask[-1, 5:] = 0, 0
    pixels = torch.randn(count, frames, 3, 16, 16, generator=draw)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
