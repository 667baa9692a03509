"""LiteVL against transformers' BLIP, which it starts from: to the bit where that can be."""

import pytest
import torch
from transformers import AutoModel, AutoModelForVisualQuestionAnswering

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.errors import AbridgedError
from abridged.families.small import small_model
from abridged.methods.quantization.method import Quantize
from abridged.models.video.config import LiteVLConfig, with_settings
from abridged.models.video.litevl import LiteVLForVideoQuestions, LiteVLModel
from abridged.training.gates import TOLERANCE, stored_gate, storing
from video_models import blip, inputs

ONE_BY_ONE = {"temporal": False, "features": "original"}


@pytest.fixture(scope="module")
def stock():
    return blip()


@torch.no_grad()
def test_gated_temporal_attention_starts_as_blip_frame_by_frame_to_the_bit(stock):
    model = LiteVLModel.from_blip(stock, scale="gated", num_frames=4)
    model.set_attn_implementation("eager")
    pixels = inputs()["pixel_values"]
    embedded = stock.vision_model.embeddings(pixels.flatten(0, 1))
    torch.testing.assert_close(model.vision_model.embeddings(pixels), embedded, atol=1e-6, rtol=0)
    found = model.vision_model.encode(embedded, 2, 4).tokens.flatten(0, 1)
    assert torch.equal(found, stock.vision_model(pixels.flatten(0, 1)).last_hidden_state)
    for block in model.vision_model.encoder.layers:
        block.temporal.scale.expand.fill_(100.0)
    assert not torch.allclose(model.vision_model.encode(embedded, 2, 4).tokens.flatten(0, 1), found, atol=1e-3)


@torch.no_grad()
def test_single_frames_get_the_scores_of_blip(stock):
    model = LiteVLModel.from_blip(stock, **ONE_BY_ONE)
    given = inputs(frames=1)
    found = model(**given)
    texts = {name: given[name] for name in ("input_ids", "attention_mask")}
    image = given["pixel_values"][:, 0]
    cosines = stock(pixel_values=image, use_itm_head=False, **texts).itm_score
    torch.testing.assert_close(found.video_embeds @ found.text_embeds.T, cosines, atol=1e-5, rtol=0)
    texts["input_ids"] = texts["input_ids"].clone()
    texts["input_ids"][:, 0] = model.config.match_token_id  # where transformers' own leaves [CLS]
    logits = stock(pixel_values=image, **texts).itm_score
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_answers_are_those_of_blip():
    stock = blip(answers=True)
    model = LiteVLForVideoQuestions.from_blip(stock, **ONE_BY_ONE)
    given = inputs(frames=1)
    ids, mask, written = given["input_ids"], given["attention_mask"], torch.tensor([[126, 9, 10], [126, 11, 12]])
    asked = ids.clone()
    asked[:, 0] = model.config.match_token_id
    seen = stock.vision_model(given["pixel_values"][:, 0]).last_hidden_state
    read = stock.text_encoder(input_ids=asked, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
    # transformers' decoder looks at a question's padding, too: the first one has none
    wanted = stock.text_decoder(input_ids=written, encoder_hidden_states=read, use_cache=False).logits[0]
    found = model(**given, decoder_input_ids=written).logits
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)
    changed = ids.clone()
    changed[1, 5:] = 77  # behind the mask
    again = model(given["pixel_values"], changed, mask, decoder_input_ids=written).logits
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)
    about = torch.tensor([1, 0, 0])
    several = model(given["pixel_values"], ids[about], mask[about], decoder_input_ids=written[about], videos=about)
    torch.testing.assert_close(several.logits, found[about], atol=1e-5, rtol=0)
    greedy = [model(given["pixel_values"], ids, mask).logits[0, -1].argmax().item()]
    assert model.answer(given["pixel_values"], ids, mask, tokens=1)[0] == greedy


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"video_cls": True, "scale": "scalar"}, {"scale_of": "frame-and-channel"}])
def test_time_is_told_by_all_that_is_meant_to(stock, settings):
    model = LiteVLModel.from_blip(stock, num_frames=4, **settings)
    given = inputs()
    model.vision_model.embeddings.frame_embedding.weight.normal_(generator=torch.Generator().manual_seed(1))
    forward = model(**given)
    given["pixel_values"] = given["pixel_values"].flip(1)
    backward = model(**given)
    assert float((forward.video_embeds - backward.video_embeds).abs().max()) > 1e-4
    plain = LiteVLModel.from_blip(stock, num_frames=4, temporal=False)
    assert torch.allclose(plain(**given).video_embeds, plain(**inputs()).video_embeds, atol=1e-6)


@torch.no_grad()
def test_a_scale_starts_at_one_or_at_nothing_and_is_learned(stock):
    attended = torch.randn(2, 4, 16, 32)
    for kind, start in (("dynamic", 1.0), ("scalar", 1.0), ("gated", 0.0)):
        scale = LiteVLModel.from_blip(stock, scale=kind).vision_model.encoder.layers[0].temporal.scale
        assert torch.equal(scale(attended) + torch.zeros(2, 4, 1, 1), torch.full((2, 4, 1, 1), start))
        scale.expand.fill_(100.0)
        found = scale(attended)
        assert float(found.max()) <= 2.0
        assert not torch.allclose(found, torch.full_like(found, start))


@torch.no_grad()
def test_temporal_attention_is_begun_as_the_setting_says(stock):
    def attention(init):
        return LiteVLModel.from_blip(stock, init=init).vision_model.encoder.layers[1].temporal.attn

    own = stock.vision_model.encoder.layers[1].self_attn
    assert torch.equal(attention("spatial").qkv.weight, own.qkv.weight)
    assert not torch.equal(attention("random").qkv.weight, own.qkv.weight)
    zero = attention("zero-projection")
    assert torch.equal(zero.qkv.weight, own.qkv.weight)
    assert not zero.projection.weight.any()


@torch.no_grad()
def test_pooling_depends_on_the_text_and_on_nothing_in_the_vectors(stock):
    model = LiteVLModel.from_blip(stock, num_frames=4)
    given = inputs()
    states = model.encode_video(given["pixel_values"])
    text = torch.randn(2, 32)
    found = model.features(states, text)
    patches, tokens = states.patches, states.tokens.flatten(1, 2)
    assert torch.equal(found[:, : tokens.shape[1]], tokens)
    frames, places = patches.mean(2), patches.mean(1)
    weights = torch.softmax(torch.cosine_similarity(frames, text.unsqueeze(1), dim=-1), 1)
    first = found[:, tokens.shape[1] : tokens.shape[1] + 4]
    torch.testing.assert_close(first, 4 * weights.unsqueeze(-1) * frames)
    weights = torch.softmax(torch.cosine_similarity(places, text.unsqueeze(1), dim=-1), 1)
    torch.testing.assert_close(found[:, tokens.shape[1] + 4 :], 16 * weights.unsqueeze(-1) * places)
    plain = LiteVLModel.from_blip(stock, num_frames=4, features="original")
    assert torch.equal(plain(**given).video_embeds, model(**given).video_embeds)
    assert not torch.allclose(plain(**given).logits, model(**given).logits, atol=1e-4)


@torch.no_grad()
def test_texts_that_do_not_fit_are_read_and_matched_like_others(stock):
    model = LiteVLModel.from_blip(stock, num_frames=4)
    given = inputs()
    ids, mask = given["input_ids"], given["attention_mask"]
    wrong = {"turned_input_ids": ids.flip(0).unsqueeze(1), "turned_attention_mask": mask.flip(0).unsqueeze(1)}
    found, match = model(**given, **wrong, match_later=True)
    plain, match_plain = model(**given, match_later=True)
    torch.testing.assert_close(found.text_embeds, plain.text_embeds)
    torch.testing.assert_close(found.turned_embeds[:, 0], plain.text_embeds.flip(0))
    videos, texts = torch.tensor([0, 1]), torch.tensor([2, 3])
    torch.testing.assert_close(match(videos, texts), match_plain(videos, torch.tensor([1, 0])))


@torch.no_grad()
def test_which_frame_is_which_is_known_from_the_start(stock):
    model = LiteVLModel.from_blip(stock, num_frames=4)
    times = model.vision_model.embeddings.times(4, torch.device("cpu"))
    norm = stock.vision_model.encoder.layers[0].layer_norm1.weight.abs().mean()
    assert float(times.std() / norm) == pytest.approx(1.0, abs=0.3)
    assert LiteVLModel.from_blip(stock, temporal=False).vision_model.embeddings.times(4, times.device) is None


@torch.no_grad()
def test_other_numbers_of_frames_and_sizes_are_interpolated(stock):
    model = LiteVLModel.from_blip(stock, num_frames=4)
    table = model.vision_model.embeddings.frame_embedding.weight.normal_()
    assert torch.equal(model.vision_model.embeddings.times(4, table.device), table)
    found = model.vision_model.embeddings.times(7, table.device)
    torch.testing.assert_close(found[[0, 2, 6]], torch.stack([table[0], table[1], table[3]]))
    assert model.encode_video(torch.randn(1, 3, 3, 24, 16)).tokens.shape == (1, 3, 25, 32)


@torch.no_grad()
@pytest.mark.parametrize("answers", [False, True])
def test_a_directory_opens_by_transformers_auto_classes_to_the_bit(tmp_path, answers):
    kind = LiteVLForVideoQuestions if answers else LiteVLModel
    model = kind.from_blip(blip(answers), scale="gated", video_cls=True, tau=0.5)
    model.save_pretrained(tmp_path)
    auto = AutoModelForVisualQuestionAnswering if answers else AutoModel
    again = auto.from_pretrained(tmp_path)
    assert type(again) is kind
    assert again.config.tau == 0.5
    for one in (model, again):
        one.eval()
    assert torch.equal(again(**inputs()).logits, model(**inputs()).logits)


def test_a_wrong_setting_or_model_is_one_sentence(stock):
    with pytest.raises(AbridgedError, match=r"unknown key model\.scal, did you mean 'scale'"):
        LiteVLModel.from_blip(stock, scal="gated")
    with pytest.raises(AbridgedError, match="model:") as error:
        with_settings(LiteVLConfig(), {"scale": "large"})
    assert "\n" not in str(error.value)
    with pytest.raises(AbridgedError, match="a BlipVisionModel has no text encoder"):
        LiteVLModel.from_blip(stock.vision_model)


@pytest.mark.parametrize(
    ("kind", "settings"), [(LiteVLModel, {}), (LiteVLModel, {"video_cls": True}), (LiteVLForVideoQuestions, {})]
)
def test_all_of_it_is_quantised_packed_and_reloaded(stock, kind, settings):
    model = small_model(kind, kind.from_blip(stock, **settings).config)
    view = families.view(model)
    assert view.bare == 0.0
    linear = {matrix.name for matrix in view.matrices}
    for name in ("vision_model.embeddings.patch_embedding", "text_encoder.encoder.layer.1.crossattention.self.key"):
        assert name in linear
    assert stored_gate(model, view, storing(Quantize)) <= TOLERANCE


@torch.no_grad()
def test_packed_clips_of_a_large_batch_are_read_as_one_by_one(stock):
    model = LiteVLModel.from_blip(stock, num_frames=4)
    method = storing(Quantize)
    given = inputs(count=16)
    method.build(model, families.view(model), lambda model, tokens=None: model(**given)).finish()
    packed = pack_model(model)
    together = packed(**given).video_embeds
    for i in (0, 9, 15):
        alone = packed(**{name: value[i : i + 1] for name, value in given.items()}).video_embeds
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)
