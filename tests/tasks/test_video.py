"""Videos and texts through whole runs: BLIP made into LiteVL, taught events, made small, and measured."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers

import abridged
from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.evaluation.video_vectors import Found, clip_vectors, matched, text_vectors
from abridged.models.load import load_tokenizer
from abridged.models.video.load import load_video_model
from abridged.tasks.video_text import VideoText
from video_models import blip, clips, saved_blip

_FEW = ("epochs=null", "steps=2", "batch_size=4", "evaluate_every=2", "save_every=2", "keep=last")
QUICK = [f"stages.*.{one}" for one in _FEW]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABRIDGED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return clips(tmp_path_factory.mktemp("shapes"), 10, 6)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return saved_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def video(stock, shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "video"
    abridged.finetune(stock, shapes, output, recipe="litevl", overrides=[*QUICK, "model.num_frames=4"])
    return output


def test_a_blip_becomes_a_video_model_that_opens_by_itself(video, stock, shapes):
    model = transformers.AutoModel.from_pretrained(video)
    assert type(model).__name__ == "LiteVLModel"
    start = load_video_model(stock, {"num_frames": 4}, answers=False)
    name = "vision_model.encoder.layers.0.temporal.attn.qkv.weight"
    assert not torch.equal(model.state_dict()[name], start.state_dict()[name])
    found = abridged.evaluate(video, shapes)
    names = {m.name for m in found.measurements}
    assert {"recall_at_1", "video_recall_at_10", "median_rank", "matched_recall_at_1"} <= names
    assert {"direction_accuracy", "order_accuracy"} <= names
    assert found["clips"] == 6


def test_events_are_learned_in_turns_from_the_same_clips(video, shapes, tmp_path):
    changes = [*QUICK, "stages.0.events.joined=0.5"]
    record = abridged.finetune(video, shapes, tmp_path / "events", recipe="ea-vtr", overrides=changes)
    model = transformers.AutoModel.from_pretrained(tmp_path / "events")
    assert model.config.vision_config.video_cls
    assert record["data"]["train_captions"] == 9
    lines = [json.loads(line) for line in (tmp_path / "events" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["event"] == "train"]
    for name in ("video_text_contrast", "frame_contrast", "event_order"):
        assert any(line.get(name, 0) > 0 for line in trained)
    content, joined = trained[0], trained[1]  # each tells of what it was for alone
    assert content["frame_contrast"] > 0
    assert "event_order" not in content
    assert joined["event_order"] > 0
    assert not {"video_text_contrast", "frame_contrast"} & set(joined)


def test_temporal_attention_and_heads_alone_are_trained(stock, shapes, tmp_path):
    only = 'stages.0.only=["*temporal*", "*_proj.*"]'
    recipe = [*QUICK, "model.num_frames=4", only, "stages.0.objectives.video_text_contrast.momentum=null"]
    abridged.finetune(stock, shapes, tmp_path / "some", recipe="litevl", overrides=recipe)
    after = transformers.AutoModel.from_pretrained(tmp_path / "some").state_dict()
    before = load_video_model(stock, {"num_frames": 4}, answers=False).state_dict()
    changed = {
        name for name in after if not torch.equal(after[name], before[name]) and "temporal.scale.reduce" not in name
    }
    assert changed
    assert all("temporal" in name or "_proj." in name for name in changed)
    recipe[-2] = 'stages.0.only=["*nothing*"]'
    with pytest.raises(AbridgedError, match=r"no parameter of the model is called \*nothing\*"):
        abridged.finetune(stock, shapes, tmp_path / "none", recipe="litevl", overrides=recipe)


def test_what_is_new_has_a_rate_of_its_own(stock, shapes, tmp_path):
    rates = 'stages.0.learning_rates={"*temporal*": 0.0, "*frame_embedding*": 0.5}'
    recipe = [*QUICK, "model.num_frames=4", rates]
    abridged.finetune(stock, shapes, tmp_path / "some", recipe="litevl", overrides=recipe)
    after = transformers.AutoModel.from_pretrained(tmp_path / "some").state_dict()
    before = load_video_model(stock, {"num_frames": 4}, answers=False).state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
    assert all(moved[name] == 0 for name in moved if "temporal.attn" in name)
    assert moved["vision_model.embeddings.frame_embedding.weight"] > 0.1 > moved["vision_proj.weight"] > 0
    recipe[-1] = 'stages.0.learning_rates={"*nothing*": 1e-3}'
    with pytest.raises(AbridgedError, match=r"no parameter of the model is called \*nothing\*"):
        abridged.finetune(stock, shapes, tmp_path / "none", recipe="litevl", overrides=recipe)


def test_adapters_are_added_up_and_nothing_is_packed(stock, shapes, tmp_path):
    changes = [*QUICK, "model.num_frames=4"]
    record = abridged.finetune(stock, shapes, tmp_path / "lora", recipe="litevl-lora", overrides=changes)
    assert "size" not in record
    after = transformers.AutoModel.from_pretrained(tmp_path / "lora").state_dict()
    before = load_video_model(stock, {"num_frames": 4}, answers=False).state_dict()
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "text_encoder.encoder.layer.0.output.dense.weight" in changed
    assert "text_encoder.embeddings.word_embeddings.weight" not in changed


def test_questions_are_answered_by_writing(tmp_path):
    asked = clips(tmp_path / "asked", 8, 4, questions=True)
    start = saved_blip(tmp_path / "vqa", answers=True)
    changes = [*QUICK, "model.num_frames=4"]
    record = abridged.finetune(start, asked, tmp_path / "answers", recipe="litevl-qa", overrides=changes)
    assert record["test"]["questions"] == 4
    found = abridged.evaluate(tmp_path / "answers", asked)
    assert 0 <= found["accuracy"] <= 100
    again = transformers.AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "answers")
    assert type(again).__name__ == "LiteVLForVideoQuestions"


def test_a_model_that_finds_videos_goes_on_to_answer(video, tmp_path):
    start = load_video_model(video, {"num_frames": 4}, answers=True)
    found = transformers.AutoModel.from_pretrained(video).state_dict()
    begun = start.state_dict()
    assert all(torch.equal(begun[name], found[name]) for name in found if name in begun)
    read = "encoder.layer.0.output.dense.weight"
    assert torch.equal(begun[f"text_decoder.bert.{read}"], found[f"text_encoder.{read}"])
    asked = clips(tmp_path / "asked", 8, 4, questions=True)
    changes = [*QUICK, "model.num_frames=4"]
    record = abridged.finetune(video, asked, tmp_path / "answers", recipe="litevl-qa", overrides=changes)
    assert record["test"]["questions"] == 4


def test_vectors_and_matches_do_not_depend_on_the_batch(video, shapes):
    model = load_video_model(video, None, answers=False)
    task = VideoText(model, load_tokenizer(video, model), open_data(shapes))
    some, texts = task.data.test, [clip.captions[0] for clip in task.data.test]
    of = partial(task.pictures.of, some)
    together, alone = clip_vectors(model, of, 6), clip_vectors(model, of, 6, batch_size=1)
    np.testing.assert_allclose(together.videos, alone.videos, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.frames, axis=-1), 1.0, atol=1e-5)
    said = text_vectors(model, task.tokenize, texts)
    np.testing.assert_allclose(said, text_vectors(model, task.tokenize, texts, batch_size=1), atol=1e-5)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    found = matched(model, of, task.tokenize, texts, pairs)
    for place, (text, clip) in enumerate(pairs):
        ids, mask = task.tokenize([texts[text]])
        logits = model(of(clip).unsqueeze(0), ids, mask).logits[0]
        assert found[place] == pytest.approx(float((logits[1] - logits[0]).detach()), abs=1e-4)


def test_frames_one_by_one_tell_no_direction(stock, shapes):
    """A clip and the same clip backwards have one vector: chance on direction, whatever was trained."""
    model = load_video_model(stock, None, answers=False)
    task = VideoText(model, load_tokenizer(stock, model), open_data(shapes))
    of = partial(task.pictures.of, task.data.test)
    forward = clip_vectors(model, of, 6).videos
    backward = clip_vectors(model, lambda i: of(i).flip(0), 6).videos
    np.testing.assert_allclose(forward, backward, atol=1e-5)


@pytest.mark.parametrize("by", ["frames", "videos"])
def test_moments_are_found_in_longer_files(stock, shapes, monkeypatch, by):
    model = load_video_model(stock, {"num_frames": 4}, answers=False)
    task = VideoText(model, load_tokenizer(stock, model), open_data(shapes))
    clip = task.data.test[0]
    moment = type(clip)(clip.path, clip.captions, moments=((0.5, 0.75),))
    text = task.vectors(model, clip.captions)[0]

    def numbered(clip, count, side):
        return np.stack([np.full((side, side, 3), i, dtype=np.uint8) for i in range(count)])

    def seen(model, pictures, count, batch_size=16):  # 64 frames of one second: those from 0.5 to 0.75 s match
        mean, std = task.pictures.mean[0, 0], task.pictures.std[0, 0]
        shown = [((pictures(i)[:, 0, 0, 0] * std[0, 0] + mean[0, 0]) * 255).round() for i in range(count)]
        fits = np.array([[1.0 if 32 <= i < 48 else -1.0 for i in one] for one in shown])
        frames = fits[:, :, None] * text
        whole = frames.mean(1) * np.array([[1 + 0.1 * float(one[-1] - one[0])] for one in shown])  # longer is better
        return Found(0 * whole, frames) if by == "frames" else Found(whole, 0 * frames)

    monkeypatch.setattr(task.pictures.cache, "sample", numbered)
    monkeypatch.setattr("abridged.tasks.video_text.clip_vectors", seen)
    monkeypatch.setattr("abridged.tasks.video_text.duration", lambda path: 1.0)
    found = {m.name: m.value for m in task._moments(model, [moment])}
    if by == "frames":
        assert found["frames_moment_overlap"] == pytest.approx(100.0)
        assert found["moment_overlap"] >= 25.0  # all within are as good
    else:
        assert found["moment_overlap"] >= 80.0


def test_stock_clip_and_siglip_start_as_they_are(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    text = {
        **sizes,
        "vocab_size": 128,
        "max_position_embeddings": 16,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    for kind in ("Clip", "Siglip"):
        prefix = "CLIP" if kind == "Clip" else kind
        config = getattr(transformers, f"{prefix}Config")(vision_config=vision, text_config=text, projection_dim=32)
        torch.manual_seed(0)
        own = getattr(transformers, f"{prefix}Model")(config).eval()
        own.save_pretrained(tmp_path / kind)
        model = load_video_model(tmp_path / kind, {"num_frames": 4, "video_cls": True}, answers=False)
        pixels, ids = torch.randn(2, 4, 3, 16, 16), torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3]])
        with torch.no_grad():
            found = model(pixels, ids)
            image = own.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output
            wanted = torch.nn.functional.normalize(image, dim=-1).view(2, 4, -1)
            torch.testing.assert_close(found.frame_embeds, wanted, atol=1e-5, rtol=0)
            mean = torch.nn.functional.normalize(wanted.mean(1), dim=-1)
            torch.testing.assert_close(found.video_embeds, mean, atol=1e-5, rtol=0)
            said = torch.nn.functional.normalize(own.get_text_features(input_ids=ids).pooler_output, dim=-1)
            torch.testing.assert_close(found.text_embeds, said, atol=1e-5, rtol=0)
            model.video_proj.weight.normal_()
            model.pooling.frame_embedding.weight.normal_()
            assert not torch.allclose(
                model(pixels.flip(1), ids).video_embeds, model(pixels, ids).video_embeds, atol=1e-3
            )
            model.save_pretrained(tmp_path / f"{kind}-video")
            again = transformers.AutoModel.from_pretrained(tmp_path / f"{kind}-video").eval()
            assert torch.equal(again(pixels, ids).video_embeds, model(pixels, ids).video_embeds)


def test_another_model_is_refused_in_a_sentence(tmp_path, shapes):
    blip().vision_model.save_pretrained(tmp_path / "half")
    with pytest.raises(AbridgedError) as error:
        abridged.finetune(tmp_path / "half", shapes, tmp_path / "none", recipe="litevl")
    assert "\n" not in str(error.value)


def test_a_report_shows_clips_and_what_is_mistaken_for_its_opposite(stock, shapes):
    model = load_video_model(stock, None, answers=False)
    task = VideoText(model, load_tokenizer(stock, model), open_data(shapes))
    found = task.clips({"teacher": model, "student": model})
    clips = task.data.test
    assert [strip.caption for strip in found.strips] == [clip.captions[0] for clip in clips[:4]]
    assert all(len(strip.frames) == task.pictures.frames for strip in found.strips)
    assert all(frame.startswith(b"\xff\xd8") for frame in found.strips[0].frames)
    assert found.own.diagonal().all()
    videos = clip_vectors(model, partial(task.pictures.of, clips), len(clips))
    texts = task.vectors(model, [clip.captions[0] for clip in clips])
    np.testing.assert_allclose(found.similarities["teacher"], texts @ videos.videos.T, atol=1e-5)
    np.testing.assert_allclose(found.strips[1].cosines["student"], videos.frames[1] @ texts[1], atol=1e-5)
    order = [clip.captions[0] for clip in clips if ", then " in clip.captions[0]]
    rows = {(row.true, row.turned): row for row in found.confusions}
    assert rows["a, then b", "b, then a"].count == len(order)
    assert len(order) < sum(row.count for row in found.confusions) <= len(clips)
    wrong = 0.0
    for i, clip in enumerate(clips):
        if ", then " in clip.captions[0]:
            first, second = clip.captions[0].split(", then ")
            true, false = videos.videos[i] @ task.vectors(model, [clip.captions[0], f"{second}, then {first}"]).T
            wrong += float(false > true) + 0.5 * float(false == true)
    assert rows["a, then b", "b, then a"].mistaken["teacher"] == pytest.approx(wrong / len(order))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["best-video-2-2-8", "best-video-1-1-8", "best-video-vtrans-2-2-8"])
def test_a_video_model_is_made_small_packed_and_measured(video, shapes, tmp_path, recipe):
    narrow = [f"stages.0.methods.quantize.{part}.group_size=16" for part in ("weights", "embeddings")]
    changes = [*QUICK, *(narrow if recipe == "best-video-1-1-8" else [])]
    record = abridged.compress(video, recipe, shapes, tmp_path / "small", overrides=changes)
    assert record["size"]["ratio"] > 1.5
    found = abridged.evaluate(tmp_path / "small", shapes)
    assert found["recall_at_1"] == pytest.approx(record["metrics"]["student"]["recall_at_1"])
    page = (tmp_path / "small" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4 * 4
    assert "a, then b" in page


def test_a_captioner_writes_for_frames_and_what_is_unlike_them_is_left_out(stock, shapes, tmp_path, monkeypatch):
    from abridged.core.settings import Events, TrainingSettings

    model = load_video_model(stock, {"num_frames": 4}, answers=False)
    data = open_data(shapes)
    for clip in data.train:
        object.__setattr__(clip, "frame_captions", ())
    monkeypatch.setattr(
        "abridged.tasks.captioner.blip_captioner", lambda name: lambda pictures: ["a red circle"] * len(pictures)
    )
    task = VideoText(model, load_tokenizer(stock, model), data)
    for least, empty in ((-1.0, False), (1.0, True)):
        settings = TrainingSettings(events=Events(captioner="x", least_similarity=least))
        batch = task.examples(settings).batch(torch.tensor([0, 1]))
        assert ((batch.inputs["frame_attention_mask"].sum(-1) == 2).all().item()) is empty


def test_a_blip_for_captions_writes_one_for_each_frame(tmp_path):
    from abridged.tasks.captioner import blip_captioner
    from scripts import benchmark

    tokenizer = benchmark("shapes").tokenizer()
    config = blip(entries=len(tokenizer)).config
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path / "writer")
    tokenizer.save_pretrained(tmp_path / "writer")
    said = blip_captioner(str(tmp_path / "writer"))(np.zeros((3, 20, 30, 3), dtype=np.uint8))
    assert len(said) == 3
    assert len(set(said)) == 1
