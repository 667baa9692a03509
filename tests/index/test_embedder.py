"""A stock CLIP as the index asks it, and the whole way from a folder to a moment with it."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, SiglipConfig, SiglipModel
from typer.testing import CliRunner

import videos
from abridged.cli import app as command
from abridged.cli.search import clock
from abridged.core.errors import AbridgedError
from abridged.data.tokenizer import learn_tokenizer
from abridged.data.video.decode import frames
from abridged.index.build import build
from abridged.index.embedder import identify, open_embedder
from abridged.index.search import Searcher
from colours import COLOURS

TEXT = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 16, "projection_size": 16,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip


def write(directory, made, size):
    torch.manual_seed(0)
    made.eval().save_pretrained(directory)
    learn_tokenizer("a red dog and a green cat " * 40, 300, 16, encoder=True).save_pretrained(directory)
    mean = [0.5] * 3
    CLIPImageProcessorPil(size=size, crop_size=16, image_mean=mean, image_std=mean).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of width 32, random."""
    torch.manual_seed(0)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return write(tmp_path_factory.mktemp("clip"), CLIPModel(config), {"shortest_edge": 16})


def test_vectors_are_those_of_the_model(clip):
    embedder = open_embedder(clip)
    assert (embedder.width, embedder.side) == (16, 16)
    shown = np.random.default_rng(0).integers(0, 255, (3, 16, 24, 3), dtype=np.uint8)
    each, whole = embedder.embed_frames(shown)
    pixels = torch.from_numpy(shown[:, :, 4:20]).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.inference_mode():
        right = embedder.model(
            input_ids=torch.tensor([[0, 5, 6, 2]]), attention_mask=torch.ones(1, 4), pixel_values=pixels
        )
    assert np.allclose(each, right.image_embeds, atol=1e-5)
    assert np.allclose(whole, right.image_embeds.mean(0) / right.image_embeds.mean(0).norm(), atol=1e-5)
    assert np.allclose(np.linalg.norm(each, axis=1), 1, atol=1e-5)

    ids = embedder.tokenizer("a red dog", return_tensors="pt")
    with torch.inference_mode():
        right = embedder.model(**ids, pixel_values=pixels).text_embeds[0]
    assert np.allclose(embedder.embed_text("a red dog"), right, atol=1e-5)
    assert embedder.embed_text("a red dog " * 99).shape == (16,)


def test_siglip_is_served_by_the_same(tmp_path):
    config = SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)
    embedder = open_embedder(write(tmp_path / "siglip", SiglipModel(config), {"height": 16, "width": 16}))
    assert embedder.embed_frames(np.zeros((2, 20, 30, 3), np.uint8))[0].shape == (2, 32)
    assert embedder.embed_text("a dog").shape == (32,)


def test_from_a_folder_to_a_moment(clip, folder):
    assert build(clip, folder).added == 4
    searcher = Searcher(clip, folder)
    example = videos.write(folder.parent / "blue.mp4", videos.plain(COLOURS["blue"]))
    assert {hit.path for hit in searcher.clip(example, limit=2)} == {"sub/blue.mp4", "sub/deep/grey-blue-grey.mp4"}
    assert len(searcher.text("a red dog", limit=3)) == 3
    assert searcher.text("a red dog", ["a green cat"])[0].end <= 6


def test_what_has_no_vectors_for_both_is_refused(teacher, clip, tmp_path):
    with pytest.raises(AbridgedError, match="GPT2LMHeadModel has no vectors for both pictures and texts"):
        open_embedder(teacher)
    for name in clip.iterdir():
        if name.name != "preprocessor_config.json":
            (tmp_path / name.name).write_bytes(name.read_bytes())
    with pytest.raises(AbridgedError, match="cannot load the image processor"):
        open_embedder(tmp_path)


def test_what_tells_a_model_apart(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "report.html").write_text("of no account")
    told = identify(tmp_path)
    assert set(told["files"]) == {"config.json", "model.safetensors"}
    monkeypatch.setattr("abridged.index.embedder.file_sha256", None)  # what was seen is not read again
    assert identify(tmp_path, [told]) == told
    monkeypatch.undo()
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    assert identify(tmp_path, [told])["digest"] != told["digest"]
    for name, said in ((tmp_path / "none", "no directory of a model"), ("no-such/model", "cannot load the model")):
        with pytest.raises(AbridgedError, match=said):
            identify(name)


@pytest.fixture
def run():
    """run("index", …) -> what the command line gives, in this process."""
    return lambda *arguments: CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def test_the_command_line(clip, folder, run, tmp_path):
    (folder / "empty.mp4").write_bytes(b"")
    file = tmp_path / "videos.sqlite"
    found = json.loads(run("index", clip, folder, "--index", file, "--vectors", "int8", "--json").stdout)
    assert (found["files"], found["added"], found["skipped"]) == (5, 4, {"empty.mp4": "the file is empty"})
    again = run("index", clip, folder, "--index", file)
    assert again.stdout.startswith("5 videos: 5 unchanged, 1 skipped, in ")
    assert again.stderr.splitlines()[-1] == "skipped empty.mp4: the file is empty"

    options = ["--index", file, "--limit", 2, "--under", "sub"]
    hits = json.loads(run("search", clip, folder, "a red dog", *options, "--cut", tmp_path / "hits", "--json").stdout)
    assert len(hits) == 2
    assert {hit["path"].split("/")[0] for hit in hits} == {"sub"}
    assert [frames(hit["clip"], [0.0]).shape for hit in hits] == [(1, videos.HEIGHT, videos.WIDTH, 3)] * 2
    table = run("search", clip, folder, "a red dog", "--then", "a green cat", *options).stdout.splitlines()
    assert table[0].split() == ["file", "from", "to", "score"]
    assert len(table) == 4
    assert run("search", clip, folder, "a dog", "--since", "2999-01-01", *options).stdout == "nothing is found\n"


def test_what_the_command_line_refuses(clip, folder, run):
    for arguments in ([], ["a dog", "--image", "a.png"], ["--then", "a dog"], ["--serve", "a dog"]):
        assert run("search", clip, folder, *arguments).exit_code == 2
    for arguments in (
        ["search", clip, folder, "a dog"],
        ["index", clip, folder, "--vectors", "int4"],
        ["index", clip, "no"],
    ):
        found = run(*arguments)
        assert found.exit_code == 1
        assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00.0"), (59.96, "1:00.0"), (123.4, "2:03.4"), (3723.4, "1:02:03.4")]
)
def test_times_are_told_as_players_tell_them(seconds, told):
    assert clock(seconds) == told
