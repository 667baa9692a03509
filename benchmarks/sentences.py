"""all-MiniLM-L6-v2 made small: what vectors lose, bytes and processor time, beside other tools' int8; one row a model.

    python benchmarks/real.py make MODELS
    python benchmarks/sentences.py texts FOLDER --data DATA     # sentences to learn from, and 10,000 to find again
    python benchmarks/sentences.py train FOLDER --data DATA --model MODELS/minilm-l6 --recipe best-embed-2-2-8
        [--name NAME] [--steps N] [--set OVERRIDE] [--seed 0] [--trial] [--keep DIRECTORY]
    pip install onnx onnxscript onnxruntime optimum-quanto                         # those that are missing are left out
    python benchmarks/sentences.py peers FOLDER --data DATA --model MODELS/minilm-l6
    python benchmarks/sentences.py engine FOLDER --student DIRECTORY               # the export in onnxruntime
    python benchmarks/sentences.py speed FOLDER --model MODELS/minilm-l6 --student DIRECTORY

DATA has the folders glue and novels. Sentences are those of SST-2, CoLA, MRPC, RTE, the training part of STS-B, without
its scores, and the novels; no text of STS-B's development and test parts is among them. A trial is measured on 1,000
pairs that are taken out of the training part and on 2,000 sentences; the development part is scored once.
"""

import argparse
import json
import lzma
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from quantizers import shared_out
from results import append

import abridged
from abridged.data.sentences import ScoredPair
from abridged.evaluation.sentences import Encoded, SentenceEncoder, agreement, score_agreement
from abridged.evaluation.speed import in_turns
from abridged.exporters import export
from abridged.models.load import load_model
from abridged.recipe import Recipe

#: Sentences of each source at most, drawn at random; GLUE's sets are small beside the novels.
MOST = {"SST-2": 20_000, "novels": 60_000}
#: What nobody learns from: to validate on, and to find again.
VALIDATION, HELD_OUT, TRIED = 500, 10_000, 2_000
#: Pairs of STS-B's training part by which settings are chosen.
CHOSEN_ON = 1_000
#: Words of a sentence.
FEWEST, LONGEST = 4, 40
_ENDS = re.compile(r"(?<=[.!?])[\"'”’]?\s+(?=[\"'“‘]?[A-Z])")


class Vectors(NamedTuple):
    """What a model makes of all that it is measured by; each (n, 384) of length 1."""

    sentences: np.ndarray
    pairs: dict[str, np.ndarray]  #: of both texts of each pair, one after the other, by part of STS-B


def sources(data: Path) -> dict[str, list[str]]:
    """Sentences by where they are from."""
    glue = data / "glue"

    def columns(path: Path, *numbers: int, header: int = 1) -> list[str]:
        return [text for row in rows_of(path, *numbers, header=header) for text in row]

    with lzma.open(data / "novels" / "train.txt.xz", "rt", encoding="utf-8") as file:
        novels = file.read()
    paragraphs = (" ".join(some.split()) for some in novels.split("\n\n"))
    return {
        "STS-B": columns(glue / "STS-B" / "train.tsv", 7, 8),
        "MRPC": columns(glue / "MRPC" / "msr_paraphrase_train.txt", 3, 4),
        "RTE": columns(glue / "RTE" / "train.tsv", 1, 2),
        "CoLA": columns(glue / "CoLA" / "train.tsv", 3, header=0),
        "SST-2": columns(glue / "SST-2" / "train.tsv", 0),
        "novels": [sentence for paragraph in paragraphs for sentence in _ENDS.split(paragraph)],
    }


def plain(text: str) -> str:
    """A text without what tells apart two spellings of it."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def texts(options: argparse.Namespace) -> None:
    """Sentences to learn from and to validate on, as `--data` takes them, and beside them those to find again."""
    folder, data = options.folder, options.data
    rng = np.random.default_rng(0)
    never = [text for pairs in scored(data).values() for text in both(pairs)]
    never += [text for row in rows_of(data / "glue" / "STS-B" / "test.tsv", 7, 8) for text in row]
    seen = {plain(text) for text in never}
    kept: list[dict[str, str]] = []
    for source, found in sources(data).items():
        some: list[dict[str, str]] = []
        for i in rng.permutation(len(found)).tolist():
            if plain(found[i]) not in seen and FEWEST <= len(found[i].split()) <= LONGEST:
                seen.add(plain(found[i]))
                some.append({"sentence": found[i], "source": source})
            if len(some) == MOST.get(source):
                break
        kept += some
        print(source, len(some))
    mixed = [kept[i] for i in rng.permutation(len(kept)).tolist()]
    first = HELD_OUT + VALIDATION
    parts = {
        folder / "held-out.jsonl": mixed[:HELD_OUT],
        folder / "data" / "validation.jsonl": mixed[HELD_OUT:first],
        folder / "data" / "train.jsonl": mixed[first:],
    }
    for path, rows in parts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(path: Path, *columns: int, header: int = 1) -> list[tuple[str, ...]]:
    """Some columns of a file of GLUE; lines that are too short are left out."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")[header:]
    rows = (line.split("\t") for line in lines)
    return [tuple(row[i].strip() for i in columns) for row in rows if len(row) > max(columns)]


def scored(data: Path) -> dict[str, list[ScoredPair]]:
    """Pairs of STS-B, whose texts no training may read: "chosen on", some of the training part, and "test", the
    development part. GLUE's files have no scores of the test part."""
    pairs = {}
    for part in ("train", "dev"):
        rows = rows_of(data / "glue" / "STS-B" / f"{part}.tsv", 7, 8, 9)
        pairs[part] = [ScoredPair(first, second, float(score)) for first, second, score in rows]
    some = np.random.default_rng(0).permutation(len(pairs["train"]))[:CHOSEN_ON]
    return {"chosen on": [pairs["train"][i] for i in some], "test": pairs["dev"]}


def held_out(folder: Path, count: int = HELD_OUT) -> list[str]:
    lines = (folder / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["sentence"] for line in lines]


def both(pairs: Iterable[ScoredPair]) -> list[str]:
    return [text for pair in pairs for text in (pair.first, pair.second)]


class Encodes(Protocol):
    """What makes vectors of texts."""

    def encode(self, texts: list[str]) -> Encoded: ...


def vectors_of(encoder: Encodes, sentences: list[str], pairs: dict[str, list[ScoredPair]]) -> Vectors:
    made = {part: encoder.encode(both(some)).vectors for part, some in pairs.items()}
    return Vectors(encoder.encode(sentences).vectors, made)


def encoder_of(model: Path) -> SentenceEncoder:
    return SentenceEncoder(*load_model(model))


def teachers_vectors(folder: Path, model: Path, data: Path) -> Vectors:
    """Those of the teacher, made once."""
    path = folder / "teacher.npz"
    if not path.exists():
        found = vectors_of(encoder_of(model), held_out(folder), scored(data))
        np.savez(path, sentences=found.sentences, **found.pairs)
    with np.load(path) as file:
        return Vectors(file["sentences"], {part: file[part] for part in ("chosen on", "test")})


def compared(ours: Vectors, theirs: Vectors, pairs: dict[str, list[ScoredPair]]) -> dict[str, Any]:
    """What a model's vectors are worth beside its teacher's: Spearman's correlation by part, and agreement."""
    found: dict[str, Any] = {}
    for part, vectors in ours.pairs.items():
        scores = np.array([pair.score for pair in pairs[part]])
        before, after = (score_agreement(v[::2], v[1::2], scores).value for v in (theirs.pairs[part], vectors))
        found[part] = {"teacher": before, "student": after, "lost": before - after}
    count = len(ours.sentences)
    found |= {one.name: one.value for one in agreement(ours.sentences, theirs.sentences[:count])}
    return found


def measured(encoder: Encodes, options: argparse.Namespace) -> dict[str, Any]:
    """What a model is worth beside the teacher; in a trial, without the pairs of the test and on fewer sentences."""
    theirs, pairs = teachers_vectors(options.folder, options.model, options.data), scored(options.data)
    if options.trial:
        del pairs["test"]
    ours = vectors_of(encoder, held_out(options.folder, TRIED if options.trial else HELD_OUT), pairs)
    return compared(ours, theirs, pairs)


def train(options: argparse.Namespace) -> None:
    """One student: a row with what it lost, what it weighs, and what it took."""
    length = [] if options.steps is None else shared_out(options.recipe, options.steps)
    recipe = Recipe.load(options.recipe, [*length, *options.overrides])
    with tempfile.TemporaryDirectory() as temporary:
        output = options.keep or Path(temporary) / "small"
        began, processor = time.perf_counter(), time.process_time()
        account = abridged.compress(
            options.model, recipe, options.folder / "data", output, seed=options.seed, overwrite=True
        )
        took = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}
        found = measured(encoder_of(output), options)
    found |= {**took, "file_bytes": account["size"]["file_bytes"]}
    append(
        of_trial(options),
        found,
        name=options.name or options.recipe,
        recipe=recipe.name,
        overrides=[*length, *options.overrides],
        model=options.model.name,
        seed=options.seed,
        settings={"steps": sum(account["steps"])},
    )
    print(json.dumps(found, indent=1), flush=True)


def dense_of(model: Path) -> Any:
    """The teacher afresh, since most tools change a model in place."""
    return load_model(model)[0]


def torch_int8(model: Path) -> Any:
    """Linear layers in int8, activations by the batch; embeddings stay in FP32."""
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(dense_of(model), {torch.nn.Linear}, dtype=torch.qint8)


def quanto(model: Path, kind: str) -> Any:
    """Linear layers in quanto's integers, activations as they are; embeddings stay in FP32."""
    from optimum import quanto

    found = dense_of(model)
    quanto.quantize(found, weights=getattr(quanto, kind))
    quanto.freeze(found)
    return found


class OnnxEncoder:
    """What `SentenceEncoder` is, of an ONNX file with the output sentence_embedding."""

    def __init__(self, file: Path, encoder: SentenceEncoder, threads: int = 1, exact: bool = False) -> None:
        """exact: products of integers take their inputs as the file has them, not rounded once more."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        if exact:
            settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.encoder, self.session = encoder, onnxruntime.InferenceSession(str(file), settings)

    def run(self, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        given = {put.name: inputs[put.name].numpy() for put in self.session.get_inputs()}
        found: np.ndarray = self.session.run(["sentence_embedding"], given)[0]
        return found

    def encode(self, texts: list[str], batch_size: int = 32) -> Encoded:
        tokens = self.encoder.tokens(texts)
        order = np.argsort([len(ids) for ids in tokens.ids], kind="stable")
        found = np.empty((len(tokens), 0), np.float32)
        for start in range(0, len(tokens), batch_size):
            index = torch.from_numpy(order[start : start + batch_size].copy())
            made = self.run(tokens.batch(index).model_inputs)
            found = np.empty((len(tokens), made.shape[1]), np.float32) if not found.shape[1] else found
            found[index.numpy()] = made
        return Encoded(found, tokens.cut)


def exported(model: Path, folder: Path) -> Path:
    """A model's ONNX file, made once."""
    file = folder / f"{model.name}.onnx"
    if not file.exists():
        export(model, file, format="onnx")
    return file


def onnx_int8(model: Path, folder: Path) -> Path:
    """The teacher as onnxruntime's dynamic int8 has it, products and embedding in integers; made once."""
    small = folder / f"{model.name}-int8.onnx"
    if not small.exists():
        from onnx_int8 import dynamic_int8

        dynamic_int8(exported(model, folder), small)
    return small


def stored(model: Any) -> int:
    """Bytes in which torch stores a model."""
    with tempfile.NamedTemporaryFile() as file:
        torch.save(model.state_dict(), file.name)
        return Path(file.name).stat().st_size


def peers(options: argparse.Namespace) -> None:
    """Other tools' small models of the same teacher, a row each; those that are not installed are left out."""
    teacher = encoder_of(options.model)
    contestants: dict[str, Callable[[], Any]] = {
        "torch int8, dynamic": lambda: torch_int8(options.model),
        "onnxruntime int8, dynamic": lambda: onnx_int8(options.model, options.folder),
        **{f"quanto, {bits} bits": partial(quanto, options.model, f"qint{bits}") for bits in (8, 4, 2)},
    }
    for name, make in contestants.items():
        if not fnmatch(name, options.only):
            continue
        try:
            made = make()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        encoder: Encodes
        if isinstance(made, Path):
            encoder, size = OnnxEncoder(made, teacher), made.stat().st_size
        else:
            encoder, size = SentenceEncoder(made, teacher.tokenizer, teacher.settings), stored(made)
        found = {**measured(encoder, options), "file_bytes": size}
        append(of_trial(options), found, name=name, model=options.model.name)
        print(name, json.dumps(found), flush=True)


def of_trial(options: argparse.Namespace) -> str:
    """The benchmark that a row is of."""
    return "sentences trial" if options.trial else "sentences"


def engine(options: argparse.Namespace) -> None:
    """The student's export in onnxruntime beside the packed student: how far vectors are apart."""
    encoder, texts, file = (
        encoder_of(options.student),
        held_out(options.folder, TRIED),
        exported(options.student, options.folder),
    )
    ours = encoder.encode(texts).vectors
    for name, exact in (("onnxruntime", True), ("onnxruntime, inputs rounded once more", False)):
        theirs = OnnxEncoder(file, encoder, exact=exact).encode(texts).vectors
        cosines = (ours * theirs).sum(1)
        same = {one.name: one.value for one in agreement(theirs, ours)}
        found = {
            "cosine_mean": float(cosines.mean()),
            "cosine_least": float(cosines.min()),
            "neighbours": same["neighbours"],
        }
        found |= {"file_bytes": file.stat().st_size, "sentences": len(texts)}
        append("sentences engine", found, name=name, model=options.student.name)
        print(name, json.dumps(found, indent=1))


def speed(options: argparse.Namespace) -> None:
    """Sentences a second of the packed student beside its teacher in torch and onnxruntime, by length and batch."""
    torch.set_num_threads(options.threads)
    packed, teacher = encoder_of(options.student), encoder_of(options.model)
    files = {
        "onnxruntime FP32": exported(options.model, options.folder),
        "onnxruntime int8": onnx_int8(options.model, options.folder),
        "onnxruntime on our export": exported(options.student, options.folder),
    }
    sessions = {name: OnnxEncoder(file, teacher, options.threads) for name, file in files.items()}
    for batch, length in product(options.batches, options.lengths):
        ids = torch.randint(1000, 30_000, (batch, length), generator=torch.Generator().manual_seed(0))
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        runs: dict[str, Callable[[], Any]] = {
            "packed": partial(packed.model, **whole),
            "torch FP32": partial(teacher.model, **whole),
            **{name: partial(session.run, whole) for name, session in sessions.items()},
        }
        taken = in_turns({name: partial(seconds, run) for name, run in runs.items()}, options.rounds)
        found = {name: batch / value for name, value in taken.items()}
        about = {"threads": options.threads, "batch": batch, "length": length}
        append("sentences speed", {"sentences_per_second": found}, model=options.model.name, settings=about)
        print(batch, length, {name: round(value, 1) for name, value in found.items()}, flush=True)


def seconds(run: Callable[[], Any]) -> float:
    """Seconds of a run."""
    begun = time.perf_counter()
    with torch.inference_mode():
        run()
    taken = time.perf_counter() - begun
    time.sleep(0.05)  # onnxruntime's threads go on waiting for work, and would take it from whoever is next
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        added = verbs.add_parser(verb)
        added.add_argument("folder", type=Path)
        if verb in ("texts", "train", "peers"):
            added.add_argument("--data", type=Path, required=True)
        if verb in ("train", "peers", "speed"):
            added.add_argument("--model", type=Path, required=True)
        if verb in ("engine", "speed"):
            added.add_argument("--student", type=Path, required=True)
        if verb in ("train", "peers"):
            added.add_argument("--trial", action="store_true")
        if verb == "train":
            added.add_argument("--recipe", required=True)
            added.add_argument("--name")
            added.add_argument("--steps", type=int)
            added.add_argument("--set", action="append", default=[], dest="overrides")
            added.add_argument("--seed", type=int, default=0)
            added.add_argument("--keep", type=Path)
        if verb == "peers":
            added.add_argument("--only", default="*", help="those whose name matches this pattern")
        if verb == "speed":
            added.add_argument("--threads", type=int, default=2)
            added.add_argument("--rounds", type=int, default=5)
            added.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256])
            added.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    VERBS[options.verb](options)


VERBS = {"texts": texts, "train": train, "peers": peers, "engine": engine, "speed": speed}

if __name__ == "__main__":
    main()
