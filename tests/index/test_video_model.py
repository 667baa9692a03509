"""A video model made here, as the index asks it."""

import numpy as np
import pytest
import torch

import abridged
import video_models
from abridged.data.video.pixels import Squares
from abridged.index.build import build
from abridged.index.embedder import Matches, Pools, open_embedder
from abridged.index.search import Searcher


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A LiteVL, trained for two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABRIDGED_CACHE", str(tmp_path_factory.mktemp("cache")))
        output = tmp_path_factory.mktemp("runs") / "video"
        quick = ["epochs=null", "steps=2", "batch_size=4", "evaluate_every=2", "save_every=2"]
        overrides = [*(f"stages.*.{one}" for one in quick), "model.num_frames=4"]
        data = video_models.clips(tmp_path_factory.mktemp("shapes"), 10, 6)
        stock = video_models.saved_blip(tmp_path_factory.mktemp("blip"))
        abridged.finetune(stock, data, output, recipe="litevl", overrides=overrides)
    return output


def test_vectors_and_matches_are_those_of_the_model(video):
    embedder = open_embedder(video)
    assert isinstance(embedder, Matches)
    assert not isinstance(embedder, Pools)
    assert embedder.frames == 4
    vision = embedder.model.config.vision_config
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 50, 3), dtype=np.uint8)
    each, whole = embedder.embed_frames(frames)
    pixels = Squares(vision.image_size, vision.image_mean, vision.image_std)(frames)[None]
    ids = embedder.tokenizer(["a red square moves left"], return_tensors="pt")
    with torch.inference_mode():
        found = embedder.model(pixel_values=pixels, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
    assert whole.shape == (embedder.width,)
    assert each.shape == (4, embedder.width)
    no, yes = found.logits[0].tolist()
    assert embedder.match(frames, "a red square moves left") == pytest.approx(
        (yes - no) * float(embedder.model.temperature.detach()), abs=1e-5
    )
    with torch.inference_mode():
        videos, _ = embedder.model.video_vectors(embedder.model.encode_video(pixels))
    assert np.allclose(whole, videos[0], atol=1e-5)


def test_from_a_folder_to_a_moment_with_it(video, folder):
    assert build(video, folder).added == 4
    searcher = Searcher(video, folder)
    assert len(searcher.text("a red square", limit=3, rerank=3)) == 3
    assert searcher.text("a red square", ["a green circle"])
