"""Small real videos, encoded by libx264, whose pictures tell their number and which way is up."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
HEIGHT, WIDTH = 32, 48
BASE = Fraction(1, 1000)


def numbered(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Grey pictures, each four levels lighter than the one before, with a white upper left corner."""
    pictures = [np.full((height, width, 3), 20 + 4 * number, np.uint8) for number in range(count)]
    for picture in pictures:
        picture[: height // 4, : width // 4] = 255
    return pictures


def number_of(picture: np.ndarray) -> int:
    """Which of the `numbered` pictures it is."""
    return round((float(np.median(picture)) - 19) / 4)  # conversions round down


def numbers(pictures) -> list[int]:
    return [number_of(picture) for picture in pictures]


def plain(*colours: tuple[int, int, int], each: int = 10) -> list[np.ndarray]:
    """So many pictures of each colour, one colour after the other."""
    return [np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in colours for _ in range(each)]


def write(
    path: Path,
    pictures: list[np.ndarray],
    rate: int = 10,
    times: list[float] | None = None,
    key_frames: int = 250,
    between: int = 0,
    rotation: tuple | None = None,
    sound: bool = False,
    pixels: str = "yuv420p",
    codec: str = "libx264",
    more: str = "",
    **options: str,
) -> Path:
    """Encode pictures.

    Args:
        times: seconds of each, in place of a constant `rate`.
        key_frames: pictures from one to the next.
        between: B-frames in a row.
        rotation: degrees, and whether mirrored across and down, as a header says.
        options: of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        quality = {
            "crf": "0",
            "x264-params": f"keyint={key_frames}:min-keyint=1:scenecut=0:bframes={between}:b-adapt=0{more}",
        }
        if pictures:
            stream = container.add_stream(
                codec,
                rate=rate,
                options=quality
                if codec == "libx264"
                else {"qmin": "1", "qmax": "1"}
                if codec in ("mjpeg", "mpeg4")
                else {},
            )
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixels
            if times is not None:
                stream.time_base = stream.codec_context.time_base = BASE
            if rotation is not None:
                stream.set_display_rotation(*rotation)
        tone = container.add_stream("aac", rate=8000) if sound else None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] / BASE), BASE
            container.mux(stream.encode(frame))
        if pictures:
            container.mux(stream.encode(None))
        if tone is not None:
            seconds = len(pictures) / rate if pictures else 1
            samples = av.AudioFrame.from_ndarray(np.zeros((1, round(8000 * seconds)), np.float32), "fltp", "mono")
            samples.rate, samples.pts, samples.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(tone.encode(samples))
            container.mux(tone.encode(None))
    return path
