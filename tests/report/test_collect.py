import json
import math

import numpy as np
import pytest
import torch

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.save import save_checkpoint
from abridged.core.measurement import Measured
from abridged.data.batch import Batch
from abridged.data.tokenizer import learn_tokenizer
from abridged.evaluation.perplexity import perplexities
from abridged.recipe import Recipe
from abridged.report.collect import collect, hidden_states, picture_tokens, picture_weights, read_metrics
from abridged.report.data import SampleGroup
from abridged.report.page import write_report
from abridged.storage.compressed import record
from students import IDS, quantized_student

TERNARY = {"weights": {"bits": 2}, "embeddings": {"bits": 2}}


def batch_of(ids):
    tokens = torch.tensor([ids])
    return Batch.of(tokens, tokens, torch.zeros(1, dtype=torch.int64))


def by_name(student):
    return {f"{p.name} {p.block}".strip(): p for p in picture_weights(student, families.view(student))}


def test_every_matrix_is_pictured_and_fused_ones_by_block():
    pictures = by_name(quantized_student(**TERNARY))
    assert len(pictures) == 1 + 2 * (3 + 3)
    assert pictures["transformer.wte"].granularity == "one scale a row"
    assert pictures["transformer.h.1.attn.c_attn K"].shape == (32, 32)
    assert pictures["transformer.h.0.mlp.c_fc"].shape == (128, 32)
    assert pictures["transformer.h.0.mlp.c_fc"].levels == [-1, 0, 1]


def test_gamma_is_the_learned_one():
    student = quantized_student(**TERNARY)
    source = student.get_submodule("transformer.h.0.attn.c_attn").source
    with torch.no_grad():
        source.quantizer.gamma.copy_(torch.tensor([0.8, 1.3, 1.9]))
    pictures = by_name(student)
    for block, gamma in zip("QKV", (0.8, 1.3, 1.9), strict=True):
        assert pictures[f"transformer.h.0.attn.c_attn {block}"].gamma == pytest.approx(gamma, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "levels"),
    [
        ({"bits": 1, "quantizer": "binary"}, [-1, 1]),
        ({"bits": 2, "quantizer": "paretoq", "granularity": "per_channel"}, [-0.75, -0.25, 0.25, 0.75]),
        ({"bits": 4, "quantizer": "lsq", "granularity": "per_group", "group_size": 16}, [i / 7 for i in range(-7, 8)]),
        ({"bits": 2, "quantizer": "twn"}, [-1, 0, 1]),
    ],
    ids=["binary", "paretoq", "lsq", "twn"],
)
def test_levels_are_those_of_the_stored_weight(weights, levels):
    student = quantized_student(weights=weights, embeddings={"bits": 2})
    picture = by_name(student)["transformer.h.0.attn.c_proj"]
    assert picture.levels == pytest.approx(levels)
    source = student.get_submodule("transformer.h.0.attn.c_proj").source
    # with one scale, level times α is what the student computes with
    if picture.scales == 1:
        values = {round(level * picture.alpha[1], 6) for level in picture.levels}
        assert {round(value, 6) for value in source().flatten().tolist()} <= values


def test_full_precision_modules_have_no_picture():
    student = quantized_student(weights={"bits": None}, embeddings={"bits": 2})
    assert list(by_name(student)) == ["transformer.wte"]


def test_hidden_states_are_those_the_head_reads():
    student = quantized_student(**TERNARY)
    states = hidden_states(student, batch_of(IDS[0].tolist()))
    with torch.no_grad():
        expected = student(IDS[:1], output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(states, expected.numpy(), atol=1e-6)
    assert not student.training


def test_hidden_states_of_a_narrower_student_are_in_the_units_of_its_teacher():
    student, batch = quantized_student(**TERNARY), batch_of(IDS[0].tolist())
    own, width = hidden_states(student, batch), 40
    student.config.hidden_size = width
    record(student, hidden_units=torch.arange(4, 4 + own.shape[1]))
    picked = hidden_states(student, batch)
    np.testing.assert_array_equal(picked[:, 4 : 4 + own.shape[1]], own)
    assert picked.shape == (len(own), width)
    assert not picked[:, :4].any()
    mixed = torch.randn(width, own.shape[1])  # combinations
    record(student, hidden_units=mixed)
    wanted = torch.from_numpy(own) @ mixed.T
    np.testing.assert_allclose(hidden_states(student, batch), wanted, rtol=1e-5)


def test_a_cut_off_last_line_of_the_metrics_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "tra')
    assert read_metrics(path) == [{"event": "train", "step": 1}]


def test_from_a_student_to_a_page(tmp_path):
    student = quantized_student(**TERNARY)
    text = "The river runs north . The old bridge was built of stone in 1987 .\n" * 8
    tokenizer = learn_tokenizer(text, 280, 32)
    ids = [token % 128 for token in tokenizer(text)["input_ids"]][:32]
    teacher = hidden_states(quantized_student(weights={"bits": 8}, embeddings={"bits": 8}), batch_of(ids))
    directory = tmp_path / "small"
    save_checkpoint(student, directory, tokenizer, {})
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"event": "train", "stage": 0, "step": 1, "loss": 2.0, "lr": 1e-3}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def measured(perplexity):
        counts = {"tokens": 1000, "words": 700, "context": 32, "stride": 16}
        return Measured(perplexities(1000 * math.log(perplexity), 1000, 700), **counts)

    data = collect(
        recipe=Recipe.load("quantgpt-2-2-8"),
        base_model=str(tmp_path / "my-teacher"),
        data="wikitext-2",
        directory=directory,
        account=inspect(directory),
        teacher_metrics=measured(30.0),
        student_metrics=measured(36.0),
        rounded_metrics=measured(900.0),
        metrics=metrics,
        matrices=picture_weights(student, families.view(student)),
        tokens=picture_tokens(tokenizer, ids, {"teacher": teacher, "student": hidden_states(student, batch_of(ids))}),
        samples=[SampleGroup.of("The river", {"teacher": " runs", "student": " runs"})],
        environment={"versions": {"torch": "2"}, "hardware": {"cores": 2}},
        seconds={"training": 12.5},
        peak_memory={"peak memory": 2**30},
    )
    assert [row.measurements[0].value for row in data.summary] == pytest.approx([30.0, 900.0, 36.0])
    assert sum(part.file_bytes for part in data.parts) == data.summary[-1].file_bytes
    assert data.costs == {"training": "12 s", "peak memory": "1,024.0 MB"}
    page = write_report(directory / "report.html", data).read_text()
    assert "20.0\u202f%" in page
    assert "transformer.h.1.mlp.c_fc" in page
    assert str(tmp_path) not in page
