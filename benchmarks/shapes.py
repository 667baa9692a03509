"""Video and text models on shapes: clips made here, a tiny BLIP made here, and one row for each contestant.

    python benchmarks/shapes.py make FOLDER [--train 4000] [--test 1000]    # clips, questions, moments
    python benchmarks/shapes.py blip FOLDER [--steps 4000]                  # a tiny BLIP, from images alone
    python benchmarks/shapes.py run FOLDER [--only PATTERN] [--seeds 0 1 2] [--share 1.0] [--clips 1000]
    python benchmarks/shapes.py examples FOLDER                             # a dozen clips to try a search on
    python benchmarks/shapes.py bundle FOLDER                               # what comes along: such clips, and a model

No image-text weights are needed: the BLIP is trained from nothing on images of shapes. Clips for tests have
combinations of colour, shape and motion that no clip for training has. A contestant whose row is there is not run
again; `--share 0.2` runs a fifth of the steps, to choose what to run in full. `python benchmarks/tables.py` makes the
table of docs/video.md.
"""

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import shapes_world as world
import torch
from results import RESULTS, append, read

import abridged
from abridged.core.progress import progress
from abridged.core.settings import TrainingSettings

ASSETS = Path(abridged.__file__).parent / "assets"
#: The contestant that comes along with the package.
BUNDLED = "ea-vtr-2-2-8"
#: The tiny BLIP: 36 patches an image. Of 16 with 12 pixels, about as many as a shape is wide, kinds are learned later.
WIDTH, LAYERS, HEADS, PATCH, PROJECTED = 128, 4, 4, 8, 64
#: Of random weights: BLIP's own 0.02 is meant for a width of 768. At 128, products by such hardly move what they are
#: added to: attention begins as an average, and matching stays at chance for hundreds of steps.
INITIALIZER_RANGE = round(WIDTH**-0.5, 4)
#: How all contestants are trained, whatever their recipe says for models of real size. What BLIP knows of kinds and of
#: what belongs together is kept better at a lower rate than what is new learns at.
STEPS, TO_COMPRESS, TO_ANSWER, BATCH, FRAMES = 3500, 600, 1500, 16, 4
_EQUAL = {
    "epochs": "null", "batch_size": BATCH, "learning_rate": "3e-4",
    "learning_rates": '{"*temporal*": 1e-3, "*frame_embedding*": 1e-3}', "keep": "last",
    "evaluate_every": 500, "save_every": 250, "evaluate_tokens": 4000,
}  # fmt: skip
EQUAL = [f"stages.*.{name}={value}" for name, value in _EQUAL.items()]
FRAME_BY_FRAME = ("model.temporal=false", "model.features=original")
#: Clips that a run looks at before and after it.
QUICK = 40
WITHIN = 4, 2  #: things in a long clip in which moments are sought, and events of each
QUESTIONS = 4  #: about a clip to train on
EXAMPLES = 3 * world.SIDE  #: pixels of clips that people look at


# ---- data


def make(folder: Path, train: int, test: int) -> None:
    """Write videos/ and rows about them: learn/ to train on, and the same kinds to measure on, of which validation/
    has combinations that were trained on, and test/ none."""
    counts = {"train": train, "validation": test // 5, "test": test}
    for split, count in counts.items():
        rows, asked, pairs, told = [], [], [], split == "test"
        with progress(f"{split} clips", count) as show:
            for seed in range(count):
                story = world.story(seed + (10**6 if split == "validation" else 0), told)
                name = f"../../videos/{split}-{seed:05}.mp4"
                write_clip(folder / "videos" / Path(name).name, story.frames())
                rows.append({"video": name, "caption": story.caption, "frame_captions": story.frame_captions()})
                if len(story.events) > 1:
                    pairs.append({"video": name, "caption": story.caption})
                asked += [
                    {"video": name, **one} for one in questions(story, seed, QUESTIONS if split == "train" else 1)
                ]
                show(seed + 1)
        if split != "test":
            some = None if split == "train" else QUICK
            write_rows(folder / "learn" / "clips" / f"{split}.jsonl", rows[:some])
            write_rows(folder / "learn" / "questions" / f"{split}.jsonl", asked[:some])
        if split != "train":
            for kind, some in (("clips", rows), ("questions", asked), ("pairs", pairs)):
                write_rows(folder / split / kind / "test.jsonl", some)
            moments(folder / split / "moments", count // 10, first=0 if told else 10**6)


def questions(story: world.Story, seed: int, count: int) -> list[dict[str, str]]:
    """Up to `count` different questions about a clip, with their answers."""
    drawn = (story.question(np.random.default_rng((seed, 7 + i))) for i in range(count))
    return [{"question": question, "answer": answer} for question, answer in dict(drawn).items()]


def moments(folder: Path, count: int, first: int) -> None:
    """Long videos, and for each event the moment of it: one row an event, in QVHighlights' layout."""
    rows = []
    for seed in range(first, first + count):
        story, name = world.long_story(seed, *WITHIN), f"long-{seed:03}"
        seconds = len(story.events) * world.FRAMES / world.RATE
        write_clip(folder / f"{name}.mp4", story.frames(round(seconds * world.RATE)))
        for number in range(0, len(story.events), 2):  # half of them is enough
            window = [seconds * edge for edge in story.span(number)]
            row = {"qid": len(rows), "query": story.events[number].caption, "vid": name, "relevant_windows": [window]}
            rows.append(row)
    write_rows(folder / "test.jsonl", rows)


def examples(folder: Path) -> None:
    """Write clips to search in, six seconds each."""
    for number, story in enumerate(world.examples(), 1):
        count = len(story.events) * world.FRAMES
        write_clip(folder / f"{number:02}.mp4", story.frames(count, EXAMPLES), "30")


def bundle(folder: Path, assets: Path = ASSETS) -> None:
    """Put examples and the small model that was trained in `folder` where the package has what comes along."""
    examples(assets / "clips")
    model = folder / "models" / stem(BUNDLED, 0, 1.0)
    (assets / "video").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, assets / "video" / name)
    (assets / "video" / "README.md").write_text(
        f"`bundled-video`: the contestant `{BUNDLED}` of benchmarks/shapes.py (docs/video.md), trained on clips made\n"
        "there; `bundled-clips`, beside it: clips of the same shapes. Written by `python benchmarks/shapes.py bundle\n"
        "FOLDER`.\n"
    )


def write_clip(path: Path, frames: np.ndarray, quality: str = "16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    world.write_clip(path, frames, quality)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tokenizer() -> Any:
    """Words as they are, with BERT's special tokens, and BLIP's [DEC] and [ENC] at the end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *world.words(), "[DEC]", "[ENC]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **special)


# ---- a tiny BLIP


def new_blip(words: Any) -> Any:
    """BLIP for retrieval with random weights, of transformers' own class."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "initializer_range": INITIALIZER_RANGE,
    }
    ids = {"pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3, "bos_token_id": len(words) - 2}
    config = BlipConfig(
        vision_config={**sizes, "image_size": world.SIDE, "patch_size": PATCH},
        text_config={**sizes, **ids, "vocab_size": len(words), "max_position_embeddings": 64},
        image_text_hidden_size=PROJECTED,
        initializer_range=INITIALIZER_RANGE,
    )
    torch.manual_seed(0)
    blip = BlipForImageTextRetrieval(config)
    torch.nn.init.normal_(blip.vision_model.embeddings.position_embedding)
    return blip


def train_blip(output: Path, steps: int, batch: int = 32, seed: int = 0) -> None:
    """A stock BLIP as BLIP is trained, by contrast, captions and, in each fourth step, matching (Li et al., ICML 2022,
    arXiv:2201.12086, section 3.2), on images that are drawn anew for every step. What writes captions is not kept."""
    from abridged.models.video.litevl import LiteVLModel
    from abridged.objectives.base import ObjectiveContext, StudentForward
    from abridged.objectives.video_settings import VideoTextContrast, VideoTextMatching
    from abridged.training.processes import attention_for, autocast

    words = tokenizer()
    blip = new_blip(words)
    torch.manual_seed(seed)
    model = LiteVLModel.from_blip(blip, temporal=False, features="original").train()
    captioner = captioner_of(model)
    seen: list[Any] = []  # by the contrast, and by what writes: images are encoded once
    model.vision_model.register_forward_hook(lambda vision, given, states: seen.append(states))
    contrast = {"contrast": VideoTextContrast(momentum=None)}
    context = ObjectiveContext(WIDTH, WIDTH, len(words), 1, 64, LAYERS, model=model)
    systems = [StudentForward(model, contrast, context)] * 3
    systems.append(StudentForward(model, {**contrast, "matching": VideoTextMatching()}, context))
    rate = 1e-3
    trained = list(torch.nn.ModuleList([model, captioner]).parameters())
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05)
    draw = np.random.default_rng(seed)
    with progress("tiny BLIP", steps) as show:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
            shown = image_batch(words, draw, batch, model)
            with autocast(TrainingSettings()), attention_for(shown):
                loss, terms = systems[step % 4](shown)
                loss = loss + caption_loss(captioner, seen.pop(), shown)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            show(step + 1, float(terms["contrast"]))
    model.give_back(blip)
    blip.save_pretrained(output)
    words.save_pretrained(output)


def captioner_of(model: Any) -> Any:
    """What writes captions: all but self-attention is the text encoder's, as in BLIP."""
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    captioner: Any = BlipTextLMHeadModel._from_config(model.config.text_config, attn_implementation="eager")
    read = model.text_encoder
    captioner.bert.embeddings = read.embeddings
    for own, theirs in zip(captioner.bert.encoder.layer, read.encoder.layer, strict=True):
        own.crossattention, own.intermediate, own.output = theirs.crossattention, theirs.intermediate, theirs.output
    captioner.tie_weights()
    return captioner.train()


def caption_loss(captioner: Any, seen: Any, shown: Any) -> torch.Tensor:
    """Cross-entropy of captions of the images that were `seen`, in nats a caption: a word of a shape is one of many."""
    ids, mask = shown.inputs["input_ids"].clone(), shown.inputs["attention_mask"]
    ids[:, 0] = captioner.config.bos_token_id
    labels = ids.masked_fill(mask == 0, -100)
    tokens = seen.tokens.flatten(1, 2)
    each: torch.Tensor = captioner(ids, mask, encoder_hidden_states=tokens, labels=labels, reduction="none").loss
    return each.mean()


def image_batch(words: Any, draw: np.random.Generator, count: int, model: Any) -> Any:
    """Images as clips of one frame, with their captions; equal captions have one label."""
    from abridged.data.batch import Batch
    from abridged.tasks.video_text import Pictures

    shown, said = zip(*world.images(draw, count), strict=True)
    pixels = Pictures(model)(np.stack(shown)).unsqueeze(1)
    read = words(list(said), padding=True, return_tensors="pt")
    labels = torch.tensor([said.index(one) for one in said])
    inputs = {"pixel_values": pixels, "input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
    return Batch(inputs, labels, torch.arange(count))


# ---- contestants


@dataclass(frozen=True)
class Contestant:
    """What is trained, on what, from which model; None as a recipe trains nothing."""

    recipe: str | None
    changes: tuple[str, ...] = ()
    start: str = "blip"  #: blip, random, or the contestant whose model it begins with
    data: str = "clips"
    compress: bool = False
    steps: int = STEPS


def asked(*changes: str, start: str = "blip") -> Contestant:
    """What learns to answer: four questions about each of a step's clips."""
    more = f"stages.*.batch_size={QUESTIONS * BATCH}", "stages.*.learning_rate=5e-4"
    return Contestant("litevl-qa", (*more, *changes), start, data="questions", steps=TO_ANSWER)


def compressed(recipe: str, start: str) -> Contestant:
    """What a recipe makes of a contestant."""
    return Contestant(recipe, start=start, compress=True, steps=TO_COMPRESS)


LITEVL, EVENTS = "litevl", "ea-vtr"
#: Batches hold captions that differ in details; matching, as dear as all else, takes each fourth step.
ALIKE = ("stages.0.events.alike=4", "stages.0.objectives.video_text_matching.every=4")
#: For runs so short a slow copy is too slow.
SHORT = ("stages.0.objectives.video_text_contrast.momentum=null", *ALIKE)
WITHOUT_ETL = ("stages.0.events.joined=0", "stages.0.objectives.event_order=null")
WITHOUT_ECL = ("stages.0.events.frame_captions=false", "stages.0.objectives.frame_contrast=null")
CONTESTANTS = {
    "image": Contestant(None),
    "blip-tuned": Contestant(LITEVL, (*SHORT, *FRAME_BY_FRAME)),
    "litevl": Contestant(LITEVL, SHORT),
    "litevl-constant": Contestant(LITEVL, (*SHORT, "model.scale=constant")),
    "litevl-scalar": Contestant(LITEVL, (*SHORT, "model.scale=scalar")),
    "litevl-gated": Contestant(LITEVL, (*SHORT, "model.scale=gated")),
    "litevl-original": Contestant(LITEVL, (*SHORT, "model.features=original")),
    "litevl-skip": Contestant(LITEVL, (*SHORT, "model.temporal_cls=skip")),
    "litevl-random": Contestant(LITEVL, SHORT, start="random"),
    "ea-vtr": Contestant(EVENTS, (*ALIKE, "stages.0.events.joined=0.5"), "litevl"),
    "ea-vtr-quarter": Contestant(EVENTS, ALIKE, "litevl"),
    "ea-vtr-blip": Contestant(EVENTS, ALIKE),
    "ea-vtr-without-etl": Contestant(EVENTS, (*ALIKE, *WITHOUT_ETL), "litevl"),
    "ea-vtr-without-ecl": Contestant(EVENTS, (*ALIKE, *WITHOUT_ECL), "litevl"),
    "questions-image": asked("model.temporal=false", "model.num_frames=1"),
    "questions-frames": asked(*FRAME_BY_FRAME),
    "questions": asked(),
    "questions-litevl": asked(f"model.num_frames={FRAMES}", start="litevl"),
    "litevl-2-2-8": compressed("best-video-2-2-8", "litevl"),
    "ea-vtr-2-2-8": compressed("best-video-2-2-8", "ea-vtr"),
    "ea-vtr-quarter-2-2-8": compressed("best-video-2-2-8", "ea-vtr-quarter"),
    "ea-vtr-blip-2-2-8": compressed("best-video-2-2-8", "ea-vtr-blip"),
    "litevl-1-1-8": compressed("best-video-1-1-8", "litevl"),
    "litevl-vtrans-2-2-8": compressed("best-video-vtrans-2-2-8", "litevl"),
}


def run(folder: Path, name: str, seed: int, share: float, results: Path, clips: int | None = None) -> dict[str, Any]:
    """Train one contestant, measure it on clips, on pairs of events and on moments, and append its row.

    With less than the whole `share` of the steps the clips are those of validation/, to choose by. `clips` are measured
    on at most.
    """
    who, test = CONTESTANTS[name], folder / ("test" if share == 1 else "validation")
    steps = steps_of(name, share)
    about = {"name": name, "recipe": who.recipe, "task": who.data, "seed": seed}
    settings = {"share": share, "steps": steps, "patch": PATCH}
    if who.start in CONTESTANTS:  # a row is of a longer start, too
        settings["steps_before"] = steps_of(who.start, share)
    if known := read("shapes", results, **about, **settings):
        return known[-1]
    model = start_of(folder, who, seed, share, results, clips)
    changes: list[str] = []
    began = time.perf_counter(), time.process_time()
    if who.recipe is not None:
        output = folder / "models" / stem(name, seed, share)
        frames = [] if who.start in CONTESTANTS else [f"model.num_frames={FRAMES}"]
        changes = [*EQUAL, f"stages.*.steps={steps}", *frames, *who.changes]
        begun = output.with_name(f"{output.name}.partial").exists()  # a run that was interrupted goes on
        options = {"overrides": changes, "overwrite": not begun, "resume": begun, "seed": seed}
        if who.compress:
            changes = options["overrides"] = [one for one in changes if "learning_rate" not in one]
            abridged.compress(model, who.recipe, folder / "learn" / who.data, output, **options)
        else:
            abridged.finetune(model, folder / "learn" / who.data, output, recipe=who.recipe, **options)
        model = output
    found = {
        "seconds": time.perf_counter() - began[0],
        "processor_seconds": time.process_time() - began[1],
        **measured(model, who, test, clips),
    }
    append("shapes", found, results, **about, overrides=changes, settings=settings)
    return found


def steps_of(name: str, share: float) -> int:
    """Steps that a contestant is trained for."""
    who = CONTESTANTS[name]
    return 0 if who.recipe is None else max(2, round(who.steps * share))


def measured(model: Path, who: Contestant, test: Path, clips: int | None) -> dict[str, Any]:
    """What a model comes to on clips, on pairs of events and on moments, or on questions, and its size."""
    found: dict[str, Any] = {"bytes": sum(file.stat().st_size for file in model.glob("*.safetensors"))}
    kinds = ("clips", "pairs", "moments") if who.data == "clips" else ("questions",)
    for kind in kinds:
        found["clips" if kind == who.data else kind] = dict(abridged.evaluate(model, test / kind, limit=clips))
    if who.data == "clips":
        found["aligned"] = aligned_order(model, test / "pairs")
        found["attributes"] = attributes(model, test / "clips", clips)
    return found


def stem(name: str, seed: int, share: float) -> str:
    """What a contestant's model is called."""
    return f"{name}-{seed}" if share == 1 else f"{name}-{seed}-{share:g}"


def start_of(folder: Path, who: Contestant, seed: int, share: float, results: Path, clips: int | None) -> Path:
    """The directory of the model that a contestant begins with, which is made first where it is another's."""
    if who.start == "blip":
        return folder / "blip"
    if who.start == "random":
        where = folder / "models" / "random"
        if not where.exists():
            words = tokenizer()
            new_blip(words).save_pretrained(where)
            words.save_pretrained(where)
        return where
    run(folder, who.start, seed, share, results, clips)
    return folder / "models" / stem(who.start, seed, share)


def opened(model: Path, data: Path) -> tuple[Any, Any, Any]:
    """A model of videos and texts, its task and the data."""
    from abridged.data.opening import open_data
    from abridged.models.load import load_tokenizer
    from abridged.models.video.load import load_video_model
    from abridged.tasks.video_text import VideoText

    found: Any = open_data(data)
    loaded = load_video_model(model, None, answers=False)
    return loaded, VideoText(loaded, load_tokenizer(model), found), found


def aligned_order(model: Path, pairs: Path) -> float:
    """Per cent of two sentences told in the right order by aligning frames' scores, without a vector of the video."""
    from abridged.data.video.events import other_order
    from abridged.evaluation.retrieval import aligned, preferred
    from abridged.evaluation.video_vectors import clip_vectors

    loaded, task, data = opened(model, pairs)
    clips = [clip for clip in data.to_evaluate if other_order(clip.captions[0])]
    frames = clip_vectors(loaded, partial(task.pictures.of, clips), len(clips)).frames
    events = [clip.captions[0].split(", then ") for clip in clips]
    vectors = [task.vectors(loaded, [pair[i] for pair in events]) for i in (0, 1)]
    scores = [np.einsum("ntd,nd->nt", frames, one) for one in vectors]
    true = np.array([aligned(a, b) for a, b in zip(*scores, strict=True)])
    false = np.array([aligned(b, a) for a, b in zip(*scores, strict=True)])
    return preferred(true, false)


def attributes(model: Path, clips: Path, limit: int | None) -> dict[str, float]:
    """Per cent of clips of one event nearer to their caption than to all with another colour, kind or motion."""
    from abridged.evaluation.video_vectors import clip_vectors

    loaded, task, data = opened(model, clips)
    shown = [clip for clip in data.to_evaluate[:limit] if "," not in clip.captions[0]]
    vectors = clip_vectors(loaded, partial(task.pictures.of, shown), len(shown)).videos
    all_of_them = list(product(world.COLOURS, world.KINDS, world.MOTIONS))
    number = {world.said(*one): i for i, one in enumerate(all_of_them)}
    scores = vectors @ task.vectors(loaded, list(number)).T
    scores = scores.reshape(len(shown), len(world.COLOURS), len(world.KINDS), len(world.MOTIONS))
    true = np.unravel_index([number[clip.captions[0]] for clip in shown], scores.shape[1:])
    found = {}
    for axis, name in enumerate(("colour", "kind", "motion")):
        rest = [places for i, places in enumerate(true) if i != axis]
        others = np.moveaxis(scores, axis + 1, -1)[(np.arange(len(shown)), *rest)]
        found[name] = 100 * float((others.argmax(1) == true[axis]).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "blip", "run", "examples", "bundle"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("shapes"))
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--only", default="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--clips", type=int, help="to measure on at most (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.what == "make":
        make(given.folder, given.train, given.test)
    elif given.what == "examples":
        examples(given.folder)
    elif given.what == "bundle":
        bundle(given.folder)
    elif given.what == "blip":
        train_blip(given.folder / "blip", given.steps)
    else:
        for name in (name for name in CONTESTANTS if fnmatch(name, given.only)):
            for seed in given.seeds:
                print(json.dumps(run(given.folder, name, seed, given.share, given.results, given.clips)), flush=True)


if __name__ == "__main__":
    main()
