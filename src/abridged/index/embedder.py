"""Models that put pictures and texts, or texts alone, into one space, as the index asks them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.names import pretrained, public_name, resolve
from abridged.evaluation.vectors import unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Endings of the files of a model on which its vectors depend.
_OF_MODEL = (".safetensors", ".bin", ".json", ".txt", ".model")


class Embedder(Protocol):
    """What a search needs of a model. Vectors are FP32, of length 1, all `width` wide."""

    width: int

    def embed_text(self, text: str) -> np.ndarray:
        """The vector (width,) of a text that is searched by."""
        ...


class SeesVideos(Embedder, Protocol):
    """What the index of videos needs of a model."""

    frames: int  #: frames that a window is shown as, at most
    side: int  #: pixels that the shorter side of a frame needs

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of frames (T, height, width, 3) uint8: (T, width) one by one, and (width,) of all as a clip."""
        ...


@runtime_checkable
class ReadsTexts(Embedder, Protocol):
    """What the index of texts needs of a model."""

    limit: int  #: tokens of a passage at most

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors (n, width) of passages that are found."""
        ...


@runtime_checkable
class Pools(Protocol):
    """An embedder whose clip is no more than its frames: each frame is looked at once, whatever windows it is in."""

    def pool(self, vectors: np.ndarray) -> np.ndarray:
        """The vector (width,) of a clip, of those of its frames (T, width)."""
        ...


@runtime_checkable
class Matches(SeesVideos, Protocol):
    """An embedder that looks at frames and text together, too."""

    def match(self, frames: np.ndarray, text: str) -> float:
        """How well frames (T, height, width, 3) uint8 and a text go together; comparable with a cosine."""
        ...


class ImageEncoder:
    """CLIP, SigLIP and their like: a clip is the mean of its frames (Luo et al., CLIP4Clip, 2021, arXiv:2104.08860,
    section 3.3, without parameters)."""

    frames = 8

    def __init__(self, name: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises AbridgedError where the model comes without an image processor."""
        from transformers import AutoImageProcessor

        from abridged.models.load import first_line

        try:
            self.processor = AutoImageProcessor.from_pretrained(**pretrained(name), backend="pil")
        except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
            raise AbridgedError(f"cannot load the image processor of '{name}': {first_line(error)}") from error
        self.model, self.tokenizer = model, tokenizer
        self.side = max(value for value in dict(self.processor.size).values() if value)
        self.width = len(self.embed_text("a"))

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model has vectors for pictures and for texts."""
        return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Embedder`."""
        pixels = self.processor(images=list(frames), return_tensors="pt")["pixel_values"]
        vectors = self._vectors(self.model.get_image_features, pixel_values=pixels)
        return vectors, self.pool(vectors)

    def pool(self, vectors: np.ndarray) -> np.ndarray:
        """See `Pools`."""
        return unit(vectors.mean(axis=0))

    def embed_text(self, text: str) -> np.ndarray:
        """See `Embedder`."""
        # Padded to the whole context, as SigLIP was trained; to CLIP it is the same as unpadded.
        whole = self.tokenizer.model_max_length < 4096
        ids = self.tokenizer(text, truncation=whole, padding="max_length" if whole else False, return_tensors="pt")
        return self._vectors(self.model.get_text_features, **ids)[0]

    def _vectors(self, features: Any, **inputs: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = features(**inputs)
        return unit(getattr(found, "pooler_output", found).float().numpy())


class VideoEncoder:
    """A model that encodes the frames of a clip together, so that its vector may tell what came first."""

    def __init__(self, name: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from abridged.data.video.pixels import Squares
        from abridged.families.kinds import context_of

        config = model.config
        self.model, self.tokenizer, self.context = model, tokenizer, context_of(model.config)
        self.pixels = Squares(config.image_size, config.image_mean, config.image_std)
        self.frames, self.side = int(config.num_frames), int(config.image_size)
        self.width = len(self.embed_text("a"))

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model encodes videos."""
        return hasattr(model, "encode_video") and hasattr(model, "video_vectors")

    def embed_frames(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Embedder`."""
        import torch

        with torch.inference_mode():
            video, each = self.model.video_vectors(self.model.encode_video(self.pixels(frames)[None]))
        return unit(each[0].float().numpy()), unit(video[0].float().numpy())

    def embed_text(self, text: str) -> np.ndarray:
        """See `Embedder`."""
        import torch

        with torch.inference_mode():
            found = self.model.text_vectors(self.model.encode_text(**self._ids(text)).last_hidden_state)
        return unit(found[0].float().numpy())

    def _ids(self, text: str) -> dict[str, Any]:
        found = self.tokenizer(text, truncation=True, max_length=self.context, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


class MatchingVideoEncoder(VideoEncoder):
    """One that reads the text with the video before it, too (BLIP's image-text matching)."""

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model encodes videos and matches them with texts."""
        return VideoEncoder.fits(model) and hasattr(model, "match")

    def match(self, frames: np.ndarray, text: str) -> float:
        """See `Matches`: how far match is above no match, in logits, times what the contrast divides cosines by to make
        logits of them; on top of a cosine, both say as much as they know."""
        import torch

        ids = self._ids(text)
        with torch.inference_mode():
            states = self.model.encode_video(self.pixels(frames)[None])
            alone = self.model.encode_text(**ids).last_hidden_state[:, 0]
            no, yes = self.model.match(states, alone, **ids)[0].tolist()
        return float((yes - no) * self.model.temperature.detach().clamp(*self.model.temperatures))


class TextEncoder:
    """A model of sentences. What is searched by and what is found each have their prompt, where there are such."""

    def __init__(self, name: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from abridged.evaluation.sentences import SentenceEncoder

        self.encoder = SentenceEncoder(model, tokenizer)
        prompt = self.count([self.encoder.settings.prompt(self.encoder.passage_prompt)])[0]
        self.limit = self.encoder.limit - tokenizer.num_special_tokens_to_add() - prompt
        self.width = len(self.embed_text("a"))

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a model makes vectors of texts."""
        from abridged.models.sentence import sentence_settings_of

        return sentence_settings_of(model) is not None

    def count(self, texts: Sequence[str]) -> list[int]:
        """See `ReadsTexts`."""
        if not texts:
            return []
        found = self.encoder.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in found["input_ids"]]

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """See `ReadsTexts`."""
        return unit(self.encoder.encode(texts, self.encoder.passage_prompt).vectors)

    def embed_text(self, text: str) -> np.ndarray:
        """See `Embedder`."""
        from abridged.evaluation.sentences import note_cut

        found = self.encoder.encode([text], self.encoder.query_prompt)
        note_cut(found.cut, 1, self.encoder.limit)
        return unit(found.vectors[0])


#: The first that fits a model serves it.
ADAPTERS = (MatchingVideoEncoder, VideoEncoder, ImageEncoder, TextEncoder)


def open_embedder(name: str | Path) -> Embedder:
    """The model of that name, for the index.

    Raises:
        AbridgedError: it cannot be loaded, or has no vectors for pictures and texts, nor for texts.
    """
    from abridged.models.load import load_any, load_tokenizer

    model = load_any(name)
    adapter = next((adapter for adapter in ADAPTERS if adapter.fits(model)), None)
    if adapter is None:
        raise AbridgedError(
            f"a {type(model).__name__} has no vectors for both pictures and texts, nor for texts: an index of videos "
            "needs a model such as CLIP, an index of texts one of sentence-transformers"
        )
    return adapter(name, model, load_tokenizer(name))


def identify(name: str | Path, seen: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """What tells a model apart, found without loading it: `name`, `digest` of its files, and `files`, their sizes and
    times, by which an unchanged model is known when it is among those that were `seen` before.

    Raises:
        AbridgedError: there is no such model.
    """
    folder = _folder(name)
    within = (*folder.iterdir(), *folder.glob("[0-9]*_*/config.json"))  # modules of sentence-transformers
    paths = sorted(path for path in within if path.suffix in _OF_MODEL and path.is_file())
    if not paths:
        raise AbridgedError(f"'{name}' holds no model")
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    files = {names[path]: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    for one in seen:
        if one.get("files") == files:
            return one
    whole = hashlib.sha256(json.dumps([[names[path], file_sha256(path)] for path in paths]).encode())
    return {"name": public_name(name), "digest": whole.hexdigest()[:16], "files": files}


def _folder(name: str | Path) -> Path:
    where = Path(resolve(name))
    if where.is_dir():
        return where
    if where.exists() or str(name).startswith((".", "/", "~")):
        raise AbridgedError(f"'{name}' is no directory of a model")
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in _OF_MODEL]
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted, local_files_only=True))
    except Exception:  # it is not here yet
        pass
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted))
    except Exception as error:  # the hub raises a dozen kinds; to a person they all mean: not found or not reachable
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AbridgedError(f"cannot load the model '{name}': {reason}") from error
