import numpy as np
import pytest

from abridged.core.measurement import Measurement
from abridged.evaluation.perplexity import perplexities
from abridged.evaluation.vectors import unit
from abridged.report.data import (
    Confusion,
    HeadPicture,
    ModelRow,
    PartBytes,
    PlanOutcome,
    ReportData,
    SampleGroup,
    SentencePicture,
    Strip,
    VideoPicture,
)
from abridged.report.pictures import matrix_picture, token_picture
from abridged.tasks.sentence_pictures import sentence_picture

WORDS = [
    "the",
    "of",
    "river",
    "and",
    "Paris",
    "was",
    "in",
    "1987",
    "stone",
    ",",
    ".",
    "language",
    "music",
    "at",
    "first",
    "old",
    "bridge",
    "king",
    "north",
]


def ternary(generator: np.random.Generator, rows: int, columns: int, scales: int, spread: float):
    """Master weights with heavy tails, their ternary levels and scales (γ = 1.2)."""
    weight = (generator.standard_t(5, (rows, columns)) * spread).astype(np.float32)
    scale = 1.2 * np.abs(weight.reshape(scales, -1)).mean(1)
    levels = np.round(np.clip(weight.reshape(scales, -1) / scale[:, None], -1, 1)).reshape(rows, columns)
    return weight, levels.astype(np.int8), scale.astype(np.float32)


def persons_of(f1: float):
    """As measured of one kind of entity."""
    return Measurement("f1_PER", f1, part="PER (1,200)")


def perplexities_of(per_token: float, per_word: float):
    """As measured of ten thousand tokens, which made as many words as give that."""
    words = round(10_000 * np.log(per_token) / np.log(per_word))
    return perplexities(10_000 * float(np.log(per_token)), 10_000, words)


def make_report(layers: int = 4) -> ReportData:
    generator = np.random.default_rng(3)
    weight, levels, scale = ternary(generator, 256, 64, 256, 0.1)
    matrices = [matrix_picture("transformer.wte", weight, levels, scale, (-1, 0, 1), part="embedding")]
    for layer in range(layers):
        for kind, part, rows, columns in (
            ("attn.c_attn", "attention", 192, 64),
            ("attn.c_proj", "attention", 64, 64),
            ("mlp.c_fc", "ffn", 256, 64),
            ("mlp.c_proj", "ffn", 64, 256),
        ):
            blocks = ("Q", "K", "V") if rows == 192 else ("",)
            for block in blocks:
                weight, levels, scale = ternary(generator, rows // len(blocks), columns, 1, 0.02 * (1 + layer))
                matrices.append(
                    matrix_picture(
                        f"transformer.h.{layer}.{kind}",
                        weight,
                        levels,
                        scale,
                        (-1, 0, 1),
                        part=part,
                        layer=layer,
                        block=block,
                        gamma=1 + 0.1 * layer + 0.05 * len(matrices) % 0.7,
                    )  # fmt: skip
                )
    states = generator.normal(size=(120, 32)) * np.linspace(3, 0.3, 32)
    common = states.mean(0) + 4.0
    labels = [WORDS[i] for i in generator.integers(0, len(WORDS), 120)]
    picture = token_picture(
        labels,
        {
            "teacher": ("teacher", states),
            "round to nearest, 2 bits": ("rounded", 0.3 * states + common),
            "student": ("student", states + 0.5 * generator.normal(size=states.shape)),
        },
    )
    metrics: list[dict] = []
    for stage, steps in ((0, 400), (1, 600)):
        for step in range(20, steps + 1, 20):
            loss = 1.5 + 3 * np.exp(-(step + 400 * stage) / 150) + 0.02 * generator.normal()
            metrics.append(
                {"event": "train", "stage": stage, "step": step, "lr": 5e-4 * (1 - step / steps), "loss": loss,
                 "logits": loss - 0.25, "contrastive": 2.5 * np.exp(-step / 300), "gradient_norm": 1.0,
                 "tokens_per_second": 5400.0}
            )  # fmt: skip
            if step % 100 == 0:
                metrics.append({"event": "evaluate", "stage": stage, "step": step, "perplexity": np.exp(loss + 1.5)})
    modules = [
        {"name": m.name, "shape": list(m.shape), "stored": "ternary, 2 bits", "scales": m.granularity, "bytes": 4096}
        for m in matrices
    ]  # fmt: skip
    modules[-2]["error"] = 0.4  # of the nearest Kronecker product
    modules.append({"name": "transformer.ln_f", "shape": [64], "stored": "F32", "bytes": 256})
    return ReportData(
        title="quantgpt-2-2-8 of the bundled teacher",
        recipe="quantgpt-2-2-8",
        recipe_description="Weights and embeddings in two bits, activations in eight, trained against the teacher.",
        paper="Tao et al., ACL 2022, arXiv:2203.10705",
        base_model="bundled",
        data="wikitext-2",
        date="2026-01-02",
        evaluation={"context": 256, "stride": 128, "tokens": 301_234, "words": 245_569},
        summary=[
            ModelRow("teacher", "teacher", [*perplexities_of(44.21, 96.4), persons_of(91.25)], 18_400_000, 1.0, 32.0),
            ModelRow(
                "round to nearest, 2 bits",
                "rounded",
                [*perplexities_of(18_344.2, 91_000.3), persons_of(3.5)],
                1_310_000,
                14.0,
                2.28,
            ),
            ModelRow(
                "student, quantgpt-2-2-8",
                "student",
                [*perplexities_of(50.12, 112.7), persons_of(88.75)],
                1_310_000,
                14.0,
                2.28,
            ),
        ],
        plan=PlanOutcome(
            1_310_720, 0.12, 1_310_000, 0.1255, True, "interpolated", 512, [(990_000, 0.9), (2_000_000, 0.1)]
        ),
        metrics=metrics,
        stages=["weights to four bits", "weights and embeddings to two bits"],
        parts=[
            PartBytes("embedding", 8_388_608, 557_056),
            PartBytes("attention", 4_194_304, 262_144),
            PartBytes("ffn", 8_388_608, 524_288),
            PartBytes("positions", 262_144, 262_144),
            PartBytes("norms", 53_248, 53_248),
        ],
        matrices=matrices,
        tokens=picture,
        samples=[
            SampleGroup.of(
                "The river",
                {
                    "teacher": " is fed by three streams that rise north of the town .\n It was",
                    "student": " was the first of the three to be crossed by a bridge , built in 1987 .",
                },
            )
        ],
        heads=HeadPicture(
            modules=[f"transformer.h.{layer}.attn" for layer in range(3)],
            values=generator.random((3, 4)),
            removed=generator.random((3, 4)) < 0.3,
            correlation=-0.4,
            each={"attention on the current token": -0.3, "entropy": None},
        ),
        videos=clips(generator),
        sentences=sentences(generator),
        modules=modules,
        directory="small-gpt2",
        machine={"machine": "x86_64, 2 cores", "torch": "2.13.0"},
        costs={"training": "6 min 12 s", "peak memory": "1,234 MB"},
    )


def clips(generator: np.random.Generator) -> VideoPicture:
    """Four clips as three models see them: the student nearly as the teacher."""
    teacher = generator.uniform(-1, 1, (4, 4))
    names = {"teacher": teacher, "untrained": teacher[::-1], "student": 0.9 * teacher}
    strips = [
        Strip(f"a {colour} circle moves left", [b"a", b"b"], {name: one[i, :2] for name, one in names.items()})
        for i, colour in enumerate(("red", "blue"))
    ]
    mistaken = {"teacher": 0.02, "untrained": 0.5, "student": 0.04}
    return VideoPicture(strips, names, np.eye(4, dtype=bool), [Confusion("left", "right", 20, mistaken)])


def sentences(generator: np.random.Generator) -> SentencePicture:
    """Forty sentences as three models see them: the student nearly as the teacher."""
    teacher = unit(generator.normal(size=(40, 16)))
    models = {"teacher": teacher, "untrained": teacher[::-1].copy(), "student": unit(teacher + 0.01 * teacher[::-1])}
    found = sentence_picture([f"sentence {n} of a text" for n in range(40)], models)
    assert found is not None
    return found


@pytest.fixture(name="make_report")
def fixture_make_report():
    return make_report


@pytest.fixture
def report() -> ReportData:
    return make_report()
