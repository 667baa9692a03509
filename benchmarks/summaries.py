"""Encoder-decoders: a small BART made from nothing, and students of it, measured on short summaries.

    python benchmarks/summaries.py teacher --data FOLDER --output NAME [--task titles]
    python benchmarks/summaries.py students --data FOLDER --output NAME [--steps 300] [--minutes 60] [--only PATTERN]

Tasks: `subjects`, from an e-mail to its subject line (AESLC), and `titles`, from a paragraph to the title of its
article (`titles.py`). FOLDER holds aeslc/{train,dev,test}.jsonl (CC BY-NC-SA 4.0: not part of the package),
novels/{train,valid}.txt.xz and wikitext-2/wiki.{train,valid,test}.tokens. The teacher restores text from noise, first
in short windows, where copying is learned sooner, then in long ones; then it learns the task. What it makes are
NAME.short, NAME.long, … and NAME.TASK, and the texts beside them. Each student is a row of
benchmarks/results/summaries.jsonl, and not made again where that is there: the command can be stopped and started.
ROUGE is on the whole test part.
"""

import argparse
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from quantizers import Trial, pending, train_and_measure
from results import append, read
from titles import write_titles

import abridged
from abridged.data.opening import open_data
from abridged.data.pairs import Pair
from abridged.evaluation.summaries import rouge
from abridged.recipe import Recipe

MODEL = "small-bart"
CONFIG = str(files("abridged") / "assets" / "configs" / f"{MODEL}.yaml")
NOVELS = 20_000_000  #: characters of the novels: with all 70 million, e-mails would be a seventh of the text
#: What a teacher of any task learns first: name and settings.
RESTORING: dict[str, list[str]] = {
    "short": ["steps=800", "context=64", "batch_size=128", "learning_rate=1e-3", "warmup=0.1", "schedule=constant"],
    "long": ["steps=300", "context=256", "batch_size=32", "learning_rate=1e-3", "warmup=0.02", "schedule=linear"]
    + ["final_rate=0.2", "weight_decay=0.05", "betas=[0.9,0.98]"],
}
#: And then, of each task; every lesson on titles has other names in its pairs.
TASKS: dict[str, dict[str, list[str]]] = {
    "subjects": {
        "subjects": ["epochs=4", "context=256", "target_context=64", "learning_rate=5e-4", "evaluate_every=225"],
    },
    "titles": {
        "names": ["steps=2000", "context=192", "target_context=32", "learning_rate=7e-4", "evaluate_every=100"],
        "titles": ["steps=1000", "context=192", "target_context=32", "learning_rate=2e-4", "evaluate_every=200"],
    },
}
LEARNING = ["batch_size=32", "warmup=0.05", "schedule=linear", "weight_decay=0.05", "dropout=0.1", "betas=[0.9,0.98]"]
#: How every student is trained, whatever its recipe says for its own field of use.
EQUAL = [
    "batch_size=32",
    "context=192",
    "target_context=32",
    "learning_rate=5e-4",
    "warmup=0.05",
    "evaluate_every=10000",
]
TBT = [f"stages.*.methods.quantize.{part}.quantizer=tbt" for part in ("weights", "embeddings")]
ONE_BIT = [f"stages.*.methods.quantize.{part}.bits=1" for part in ("weights", "embeddings")]
#: name -> recipe and what is changed in it
STUDENTS: dict[str, tuple[str, list[str]]] = {
    "best-2-2-8": ("best-bart-2-2-8", []),
    "quantbart-2-2-8": ("quantbart-2-2-8", []),
    "best-1-1-8": ("best-bart-1-1-8", []),
    "no-contrastive-2-2-8": ("quantbart-2-2-8", ["stages.*.objectives.contrastive=null"]),
    "tbt-2-2-8": ("twn-2-2-8", TBT),
    "lsq-2-2-8": ("lsq-2-2-8", []),
    "twn-2-2-8": ("twn-2-2-8", []),
    "laq-2-2-8": ("laq-2-2-8", []),
    "pact-2-2-8": ("pact-2-2-8", []),
    "minmax-2-2-8": ("minmax-2-2-8", []),
    "tbt-1-1-8": ("twn-2-2-8", [*TBT, *ONE_BIT]),
    "quantbart-1-1-8": ("quantbart-2-2-8", ONE_BIT),
    "quantbart-8-8-8": ("quantbart-8-8-8", []),
}
COMPARED = ("best-2-2-8", "quantbart-2-2-8", "best-1-1-8", "no-contrastive-2-2-8", "tbt-2-2-8", "lsq-2-2-8")
COMMON = (  # words that say little
    "the a an and or of to in for on is are was be i you we it that this with as at have has by from will not your my "
    "our me if they he she can would please any all but so do am been were which there their his her its also just"
)


def write_texts(data: Path, folder: Path) -> Path:
    """What is to be restored from noise: novels, WikiText-2 and the bodies of e-mails."""
    folder.mkdir(parents=True, exist_ok=True)

    def novels(split: str, count: int) -> str:
        return lzma.decompress((data / "novels" / f"{split}.txt.xz").read_bytes()).decode()[:count]

    def articles(split: str) -> str:
        return (data / "wikitext-2" / f"wiki.{split}.tokens").read_text()

    def mails(split: str) -> str:
        lines = (data / "aeslc" / f"{split}.jsonl").read_text().splitlines()
        return "\n\n".join(json.loads(line)["body"] for line in lines)

    (folder / "train.txt").write_text("\n".join([novels("train", NOVELS), articles("train"), mails("train")]))
    few = [mails("dev")[:400_000], novels("valid", 200_000), articles("valid")[:200_000]]
    (folder / "validation.txt").write_text("\n".join(few))
    return folder


def first_sentence(pair: Pair) -> str:
    return re.split(r"(?<=[.!?])\s+|\n", pair.source)[0]


def frequent_words(pair: Pair) -> str:
    words = [word for word in re.findall(r"[a-z0-9']+", pair.source.lower()) if word not in COMMON.split()]
    return " ".join(word for word, _ in Counter(words).most_common(5))


def first_words(pair: Pair) -> str:
    return " ".join(pair.source.split()[:8])


def frequent_names(pair: Pair) -> str:
    """The two words with a capital that come most often: what a title of a name is likely to be."""
    words = [word for word in re.findall(r"[A-Z][A-Za-z0-9']+", pair.source) if word.lower() not in COMMON.split()]
    return " ".join(word for word, _ in Counter(words).most_common(2))


BASELINES: dict[str, Callable[[Pair], str]] = {
    "first sentence": first_sentence,
    "first eight words": first_words,
    "five most frequent words": frequent_words,
    "two most frequent capitalised words": frequent_names,
}


def pairs_of(options: argparse.Namespace, lesson: int = -1) -> Path:
    """The folder of pairs for a lesson on the task, by default the last one's."""
    data = Path(options.data)
    if options.task == "subjects":
        return data / "aeslc"
    number = range(len(TASKS[options.task]))[lesson]
    return write_titles(data, Path(f"{options.output}.pairs-{number}"), seed=number)


def make_teacher(options: argparse.Namespace) -> None:
    """The lessons, one after another; one whose result is there is not given again."""
    texts = write_texts(Path(options.data), Path(f"{options.output}.texts"))
    lessons = {name: (texts, settings) for name, settings in RESTORING.items()}
    for number, (name, settings) in enumerate(TASKS[options.task].items()):
        lessons[name] = (pairs_of(options, number), settings + LEARNING)
    before: str | Path = CONFIG
    records = {}
    for name, (source, settings) in lessons.items():
        where = Path(f"{options.output}.{name}")
        if not where.exists():
            resume = where.with_name(where.name + ".partial").exists()
            abridged.finetune(before, source, where, overrides=settings, resume=resume)
        record = json.loads((where / "abridged.json").read_text())
        records[name] = {key: record[key] for key in ("recipe", "steps", "validation", "curve") if key in record}
        before = where
    pairs = lessons[options.task][0]
    test = open_data(pairs).as_pairs().test
    result = {
        "pairs": len(test),
        "lessons": records,
        "teacher": abridged.evaluate_summaries(before, pairs),
        "perplexity": abridged.evaluate(before, pairs),
        "baselines": {name: rouge([make(pair) for pair in test], test) for name, make in BASELINES.items()},
    }
    append("summaries teacher", result, model=MODEL, task=options.task)
    for name, scores in {"teacher": result["teacher"], **result["baselines"]}.items():
        print(f"{name}: ROUGE-1 {scores['rouge1']:.2f}, ROUGE-2 {scores['rouge2']:.2f}, ROUGE-L {scores['rougeL']:.2f}")


def plan(equal: list[str], task: str) -> Iterator[Trial]:
    """Every run, in order: one seed of all, then more of what is compared."""
    for seed in (0, 1, 2):
        for name, (recipe, overrides) in STUDENTS.items():
            if seed == 0 or name in COMPARED:
                yield Trial(f"{name}-seed{seed}", name, recipe, [*equal, *overrides], seed, MODEL, task)


def make_students(options: argparse.Namespace) -> None:
    """Every student of the plan whose row is not there yet."""
    equal = [f"stages.*.{setting}" for setting in [f"steps={options.steps}", *EQUAL]]
    teacher, pairs = f"{options.output}.{options.task}", str(pairs_of(options))
    for work, run in pending(plan(equal, options.task), "summaries students", options):
        others = read("summaries students", task=options.task)
        known = [other for other in others if other["overrides"][1 : len(equal)] == equal[1:]]
        recipe = Recipe.load(run.recipe, run.overrides)
        found = train_and_measure(work, recipe, teacher, pairs, run.seed, known=known)
        run.record("summaries students", found)
        lost = found["loss_percent"]
        print(f"{run.label}: ROUGE-1 {-lost['rouge1']:+.1f} %, perplexity {lost['perplexity']:+.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["teacher", "students"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="bart", help="what the teachers' folders begin with")
    parser.add_argument("--task", default="titles", choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose label matches this pattern")
    options = parser.parse_args()
    (make_teacher if options.what == "teacher" else make_students)(options)


if __name__ == "__main__":
    main()
