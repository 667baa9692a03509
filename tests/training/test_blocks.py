"""Block by block: the same student as of the whole model, resumed at any block, of many families."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.errors import AbridgedError
from abridged.models.load import load_dense
from abridged.models.streamed import Weights
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from abridged.training.gates import answers, difference
from abridged.training.job import Job
from abridged.training.opened import Opened
from abridged.training.runners import blocks, runner_of
from abridged.training.runners.block_training import relative_error
from abridged.training.runners.kept import KeptOutputs
from abridged.training.workspace import Workspace
from texts import Texts, pass_of, saved

FOUR = {
    "bits": 4,
    "quantizer": "dynamic",
    "granularity": "per_channel",
    "gamma": "scale",
    "initialization": "least_squares",
    "scale_dtype": "float16",
}
PLAIN = {"weights": FOUR, "embeddings": FOUR, "activations": {"bits": None}, "gptq": True, "unquantized": "float16"}
LEARNED = {**PLAIN, "activations": {"bits": 8}}
DYNAMIC = {**PLAIN, "activations": {"bits": 8, "quantizer": "dynamic"}}
FACTORS = {"factor": 2, "initialization": "inputs", "matrices": ["attention", "ffn"]}


def stage_of(runner, methods, **more):
    settings = {"steps": 0, "batch_size": 4, "mixed_precision": "no", **more.pop("training", {})}
    stage = {"runner": runner, "methods": methods, "objectives": {}, "training": settings, **more}
    return Recipe.load({"name": "t", "stages": [stage]}).stages[0]


def given_of(directory, model, stage, output, resume=False):
    work = Workspace(output, resume=resume)
    weights = Weights(directory) if stage.runner == "blocks" else None
    return pass_of(model, stage, work, validate=lambda student: lambda: None, weights=weights)


def carried_out(directory, model, stage, output, resume=False):
    """The packed student of a stage."""
    given = given_of(directory, model, stage, output, resume)
    student = copy.deepcopy(model if given.weights is None else given.weights.model)
    with given.work:
        return pack_model(runner_of(stage)(given).run(student))


def same(one, other, tolerance=1e-5):
    """Whether two packed models are the same, but for so much of round-off in what is no code."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not torch.allclose(tensor.float(), theirs[name].float(), rtol=tolerance, atol=tolerance):
            return name
    return ""


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("gpt2", {"quantize": PLAIN}),
        ("llama", {"quantize": PLAIN}),
        ("llama-tied", {"quantize": LEARNED}),
        ("qwen3", {"quantize": DYNAMIC}),
        ("gemma2", {"quantize": PLAIN}),
        ("gemma3_text", {"quantize": PLAIN}),
        ("opt", {"quantize": PLAIN}),
        ("t5", {"quantize": PLAIN}),
        ("flan-t5", {"quantize": LEARNED}),
        ("bart", {"quantize": PLAIN}),
        ("bert", {"quantize": PLAIN}),
        ("bert-masked", {"quantize": LEARNED}),
        ("modernbert", {"quantize": PLAIN}),
        ("electra", {"quantize": PLAIN}),
    ],
)
def test_the_student_is_that_of_the_whole_model(tmp_path, name, methods):
    directory, model = saved(name, tmp_path)
    whole = carried_out(directory, model, stage_of("whole", methods), tmp_path / "whole")
    blocks = carried_out(directory, model, stage_of("blocks", methods), tmp_path / "blocks")
    assert same(whole, blocks) == ""


@pytest.mark.parametrize("matrices", [["attention", "ffn"], ["embedding", "ffn"]])
def test_factors_are_those_of_the_whole_model(tmp_path, matrices):
    """But for round-off: there the layers after one read its matrix, here its factors."""
    directory, model = saved("gpt2", tmp_path)
    methods = {"kronecker": {"factor": 2, "initialization": "inputs", "matrices": matrices}}
    whole = carried_out(directory, model, stage_of("whole", methods), tmp_path / "whole")
    blocks = carried_out(directory, model, stage_of("blocks", methods), tmp_path / "blocks")
    inputs = tiny.inputs(model)
    assert difference(answers(blocks, inputs), answers(whole, inputs)) < 1e-3
    assert difference(answers(blocks, inputs), answers(model, inputs)) > 1e-2


def test_a_method_sees_the_model_as_the_one_before_has_left_it(tmp_path):
    """Factors, then their codes: what is lost is what is lost with the whole model, if not digit by digit."""
    directory, model = saved("llama", tmp_path)
    methods = {"kronecker": {**FACTORS, "layers": "odd"}, "quantize": PLAIN}
    whole = carried_out(directory, model, stage_of("whole", methods), tmp_path / "whole")
    blocks = carried_out(directory, model, stage_of("blocks", methods), tmp_path / "blocks")
    inputs = tiny.inputs(model)
    assert whole.state_dict().keys() == blocks.state_dict().keys()
    lost, lost_there = (difference(answers(one, inputs), answers(model, inputs)) for one in (blocks, whole))
    assert lost == pytest.approx(lost_there, rel=0.1)
    assert set(compressed_of(blocks).errors) == set(compressed_of(whole).errors)


class _Stop(Exception):
    pass


@pytest.mark.parametrize(("at", "when"), [(0, "before"), (1, "after"), (2, "after"), (3, "before")])
def test_a_run_goes_on_after_the_last_block_that_was_written(tmp_path, monkeypatch, at, when):
    directory, model = saved("bart", tmp_path)
    stage = stage_of("blocks", {"quantize": LEARNED})
    wanted = carried_out(directory, model, stage, tmp_path / "at once")
    write = KeptOutputs.write

    def stopping(self, number, part):
        if number == at and when == "before":
            raise _Stop
        write(self, number, part)
        if number == at:
            raise _Stop

    monkeypatch.setattr(KeptOutputs, "write", stopping)
    with pytest.raises(_Stop):
        carried_out(directory, model, stage, tmp_path / "stopped")
    worked = []
    monkeypatch.setattr(
        KeptOutputs, "write", lambda self, number, part: (worked.append(number), write(self, number, part))
    )
    found = carried_out(directory, model, stage, tmp_path / "stopped", resume=True)
    assert worked == list(range(at + (when == "after"), 4))
    assert same(wanted, found, tolerance=0) == ""


def test_the_settings_say_what_a_block_is_given(tmp_path):
    """Three ways, three students; none is far from the model."""
    directory, model = saved("llama", tmp_path)
    inputs, found = tiny.inputs(model), {}
    for how in ("crossed", "quantized", "full"):
        two = {**PLAIN, "weights": {**FOUR, "bits": 2, "levels": "balanced"}}
        stage = stage_of("blocks", {"quantize": two}, blocks={"inputs": how})
        found[how] = difference(
            answers(carried_out(directory, model, stage, tmp_path / how), inputs), answers(model, inputs)
        )
    assert len({round(value, 6) for value in found.values()}) == 3


def test_what_blocks_took_goes_back_to_the_system_after_each(tmp_path, monkeypatch):
    directory, model = saved("llama-tied", tmp_path)
    done: list[int] = []  # blocks written, whenever memory is given back
    write, given_back = KeptOutputs.write, set()
    monkeypatch.setattr(KeptOutputs, "write", lambda self, number, part: (write(self, number, part), done.append(1)))
    monkeypatch.setattr(blocks, "give_back_memory", lambda: given_back.add(len(done)))
    carried_out(directory, model, stage_of("blocks", {"quantize": PLAIN}, blocks={"tokens": 128}), tmp_path / "small")
    assert given_back == set(range(model.config.num_hidden_layers + 1))


@pytest.mark.parametrize("name", ["albert", "gpt2"])
def test_blocks_that_cannot_be_run_alone_are_refused_in_one_sentence(tmp_path, monkeypatch, name):
    """ALBERT's one block is called again and again; and a GPT-2 whose blocks hand on something beside their output."""
    directory, model = saved(name, tmp_path)
    if name == "gpt2":
        own = type(model.transformer.h[0]).forward

        def forward(self, hidden_states, *given, **named):
            found = own(self, hidden_states + getattr(hidden_states, "beside", 0.0), *given, **named)
            found.beside = 0.1 * hidden_states
            return found

        monkeypatch.setattr(type(model.transformer.h[0]), "forward", forward)
    with pytest.raises(AbridgedError, match=r"cannot be run alone \(.*\): use the whole-model runner"):
        carried_out(directory, model, stage_of("blocks", {"quantize": PLAIN}), tmp_path / "out")


TRAINED = {"steps": 24, "learning_rate": 1e-3, "learning_rates": {"scale": 1e-3}}
TWO_BITS = {**PLAIN, "gptq": False, "weights": {**FOUR, "bits": 2, "levels": "balanced"}}
AFFINE = {"bits": 2, "quantizer": "lsq", "symmetric": False, "granularity": "per_channel", "initialization": "weighted"}
ROUNDED = {**TWO_BITS, "weights": {**AFFINE, "rounding": "learned"}}
RATES = {"learning_rates": {"scale": 5e-3, "rounding": 4e-2}}


def logged(folder):
    return [line for line in Workspace(folder, resume=True).metrics() if line["event"] == "block"]


@pytest.mark.parametrize(
    ("how", "methods"), [("crossed", TWO_BITS), ("quantized", TWO_BITS), ("full", TWO_BITS), ("crossed", ROUNDED)]
)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_blocks_learn_to_put_out_what_the_teachers_do(tmp_path, monkeypatch, name, how, methods):
    directory, model = saved(name, tmp_path)
    lines = []
    monkeypatch.setattr(Workspace, "log", lambda self, line: lines.append(line))
    inputs, lost = tiny.inputs(model), {}
    for steps in (0, 24):
        training = {**TRAINED, **(RATES if methods is ROUNDED else {}), "steps": steps}
        stage = stage_of("blocks", {"quantize": methods}, training=training, blocks={"inputs": how})
        student = carried_out(directory, model, stage, tmp_path / str(steps))
        found, wanted = (one(**inputs).logits for one in (student, model))
        lost[steps] = float((found - wanted).detach().square().mean())
    assert len(lines) == len(families.view(model).blocks)
    assert all(line["error"] < 0.9 * line["error_at_first"] for line in lines)
    assert lost[24] < lost[0]  # of the whole model by how much depends on how a processor rounds


def test_a_block_is_trained_for_what_comes_into_it(tmp_path, monkeypatch):
    """`crossed`: the second block makes up for what the first has done; `full` knows nothing of it."""
    directory, model = saved("llama", tmp_path)
    reached = {}
    for how in ("crossed", "full"):
        stage = stage_of("blocks", {"quantize": TWO_BITS}, training=TRAINED, blocks={"inputs": how})
        student = carried_out(directory, model, stage, tmp_path / how)
        batch = Texts(model).batch(torch.arange(12)).inputs
        states = [one.model(**batch).last_hidden_state[batch["attention_mask"].bool()] for one in (student, model)]
        reached[how] = float((states[0] - states[1]).square().mean())
    assert reached["crossed"] < reached["full"]


def test_padding_teaches_nothing():
    found, wanted = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    counts = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    error = relative_error(found, wanted, counts)
    found[1, 2:] = 1e3
    assert torch.equal(relative_error(found, wanted, counts), error)
    assert float(relative_error(found, wanted, None)) > 2 * float(error)


def test_a_token_of_massive_activations_counts_as_much_as_another():
    found, wanted = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    error = relative_error(found, wanted, None)
    found[0, 0] *= 1e3
    wanted[0, 0] *= 1e3
    torch.testing.assert_close(relative_error(found, wanted, None), error)


@pytest.mark.parametrize("methods", [TWO_BITS, ROUNDED])
def test_a_trained_run_goes_on_to_the_bit(tmp_path, monkeypatch, methods):
    directory, model = saved("llama", tmp_path)
    stage = stage_of("blocks", {"quantize": methods}, training=TRAINED)
    wanted = carried_out(directory, model, stage, tmp_path / "at once")
    train = blocks.train_block

    def stopping(*given, seed, **named):
        if seed % 1_000_003 == 1:
            raise _Stop
        return train(*given, seed=seed, **named)

    monkeypatch.setattr(blocks, "train_block", stopping)
    with pytest.raises(_Stop):
        carried_out(directory, model, stage, tmp_path / "stopped")
    assert [line["step"] for line in logged(tmp_path / "stopped")] == [1]
    monkeypatch.setattr(blocks, "train_block", train)
    found = carried_out(directory, model, stage, tmp_path / "stopped", resume=True)
    assert same(wanted, found, tolerance=0) == ""


@pytest.mark.parametrize(("fault", "told"), [("changed", "was changed while the run read it"), ("gone", "cannot read")])
def test_a_teacher_that_does_not_stay_as_it_is(tmp_path, monkeypatch, fault, told):
    """Its next block would be another model's."""
    directory, model = saved("llama", tmp_path)
    file = directory / "model.safetensors"
    write = KeptOutputs.write

    def meddling(self, number, part):
        write(self, number, part)
        if fault == "changed":
            file.write_bytes(file.read_bytes()[:-4] + bytes(4))
        else:
            file.unlink()

    monkeypatch.setattr(KeptOutputs, "write", meddling)
    with pytest.raises(AbridgedError, match=told):
        carried_out(directory, model, stage_of("blocks", {"quantize": PLAIN}), tmp_path / "out")


def test_weights_that_are_not_all_there(tmp_path):
    directory, _ = saved("llama", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    weights = Weights(directory)
    with pytest.raises(AbridgedError, match=r"not finite, in model\.norm\.weight"):
        weights.fill(copy.deepcopy(weights.model), ["model.norm.weight"])
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AbridgedError, match=r"lacks the weights of model\.norm\.weight"):
        Weights(directory)
    with pytest.raises(AbridgedError, match="use the whole-model runner"):
        Weights("somebody/some-model")


def test_a_model_whose_weights_are_fetched_answers_as_one_that_is_held(tmp_path):
    for name in ("gpt2", "t5", "llama-tied"):
        directory, model = saved(name, tmp_path)
        weights = Weights(directory)
        fetched = weights.on_demand(copy.deepcopy(weights.model), families.view(model).blocks)
        for _ in range(2):
            assert difference(answers(fetched, tiny.inputs(model)), answers(model, tiny.inputs(model))) == 0
        inner = [p for path in families.view(model).blocks for p in fetched.get_submodule(path).parameters()]
        assert all(parameter.is_meta == (parameter.dim() > 1) for parameter in inner)


def test_weights_in_half_precision_are_read_as_what_they_are(tmp_path):
    directory, model = saved("llama", tmp_path)
    model.to(torch.bfloat16).save_pretrained(directory)
    model = load_dense(directory)  # tables of rotary angles are not in the file, nor in its precision
    stage = stage_of("blocks", {"quantize": PLAIN})
    blocks = carried_out(directory, model, stage, tmp_path / "blocks")
    whole = carried_out(directory, model, stage_of("whole", {"quantize": PLAIN}), tmp_path / "whole")
    assert same(whole, blocks) == ""


def test_a_short_text_is_read_whole_and_that_is_said(tmp_path, capsys):
    directory, model = saved("llama", tmp_path)
    for tokens, said in ((121, True), (120, False)):
        stage = stage_of("blocks", {"quantize": PLAIN}, blocks={"tokens": tokens})
        carried_out(directory, model, stage, tmp_path / str(tokens))
        assert ("note: the data have 120 tokens to look at" in capsys.readouterr().err) == said
    stage = stage_of("blocks", {"quantize": TWO_BITS}, training={**TRAINED, "batch_size": 13})
    with pytest.raises(AbridgedError, match="the data have 12 examples, and a step of training reads 13"):
        carried_out(directory, model, stage, tmp_path / "more")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": {"prune": {"budget": {"parameters": 0.5}}}}, "methods.prune needs gradients, and the runner"),
        ({"methods": {"drop_layers": {}}}, "methods.drop_layers works on the whole model at once"),
        ({"objectives": {"logits": {}}}, "it has no objectives"),
    ],
)
def test_what_has_no_place_in_the_runner_is_refused_before_anything_is_read(tmp_path, changes, told):
    stage = {"runner": "blocks", "methods": {"quantize": {}}, "objectives": {}, "training": {"steps": 0}, **changes}
    recipe = {"name": "t", "stages": [stage]}
    with pytest.raises(AbridgedError, match=told):
        Opened(Job(model="nobody/nothing", data="nowhere", output=tmp_path / "o", recipe=recipe))


def test_a_stage_block_by_block_stands_alone():
    stage = {"runner": "blocks", "methods": {"quantize": {}}, "objectives": {}, "training": {"steps": 0}}
    with pytest.raises(AbridgedError, match="must be the only one"):
        Recipe.load({"name": "t", "stages": [stage, stage]})


def test_a_shard_that_is_not_there(tmp_path):
    directory, model = saved("llama", tmp_path)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    Weights(directory)
    shards[1].unlink()
    with pytest.raises(AbridgedError, match=f"{shards[1].name} is missing"):
        Weights(directory)
