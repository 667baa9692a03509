"""Cuts moments out of videos, without encoding them anew where that can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.data.video.decode import VideoError, stretch
from abridged.index.search import Hit

#: Seconds that a clip may begin early, at a key frame, for the sake of not being encoded anew.
_EARLY = 1.0


def cut_all(folder: Path, hits: Sequence[Hit], into: Path) -> list[Path]:
    """Write the moments of files in `folder` into another one, the best first by name; the clips' paths.

    Raises:
        AbridgedError: as `cut`.
    """
    written = []
    for number, hit in enumerate(hits, 1):
        stem = f"{number:03d}-{Path(hit.path).stem}-{hit.start:.1f}-{hit.end:.1f}"
        written.append(cut(folder / hit.path, hit.start, hit.end, into / stem))
    return written


def cut(path: Path, start: float, end: float, output: Path) -> Path:
    """Write the stretch from `start` to `end`, in seconds, of a video to `output`, to whose name the source's ending is
    added, or .mp4 where it is encoded anew. Nothing half-written is left.

    Where a key frame is at most a second before `start`, packets are copied from there on; else pictures are encoded
    anew by H.264, exactly from `start`, and sound is copied where .mp4 can hold it.

    Returns:
        Where it was written.

    Raises:
        AbridgedError: it cannot be read, or `output` cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    import av

    ways: dict[str, Callable[..., bool]] = {
        "copied": _copy,
        "encoded": _encode,
        "without sound": partial(_encode, sound=False),
    }
    for way, write in ways.items():
        ending = path.suffix if way == "copied" else ".mp4"
        temporary = output.with_name(f".{output.name}.partial{ending}")
        try:
            if write(path, start, end, temporary):
                return temporary.replace(output.with_name(output.name + ending))
        except (av.error.FFmpegError, ValueError) as error:
            if write is ways["without sound"]:
                raise AbridgedError(f"cannot cut {path}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    raise VideoError(f"{path}: has no pictures from {start:.2f} s to {end:.2f} s")


def _copy(path: Path, start: float, end: float, output: Path) -> bool:
    """Copy packets; False where no key frame is near."""
    import av

    with av.open(str(path)) as source:
        video: Any = source.streams.video[0]
        sound: list[Any] = list(source.streams.audio)
        zero = (source.start_time or 0) / 1_000_000
        source.seek(int((start + zero) / video.time_base), stream=video, backward=True)
        first: float | None = None
        with av.open(str(output), "w") as target:
            into = {stream: target.add_stream_from_template(stream) for stream in (video, *sound)}
            for packet in source.demux(video, *sound):
                if packet.dts is None or packet.pts is None:
                    continue
                base = packet.stream.time_base
                if first is None:
                    if packet.stream is not video or not packet.is_keyframe:
                        continue
                    first = float(packet.pts * base)
                    if not start - _EARLY <= first - zero <= start + 0.05:
                        return False
                if float(packet.dts * base) - zero >= end:
                    if packet.stream is video:
                        break
                    continue
                if packet.stream is not video and float(packet.pts * base) < first:
                    continue
                shift = int(first / base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = into[packet.stream]
                target.mux(packet)
    return first is not None


def _encode(path: Path, start: float, end: float, output: Path, sound: bool = True) -> bool:
    """Encode pictures anew; False where there are none."""
    import av

    base = Fraction(1, 90_000)
    with av.open(str(output), "w") as target, av.open(str(path)) as source:
        rate = source.streams.video[0].average_rate or 25
        video: Any = target.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        video.pix_fmt, video.time_base, video.codec_context.time_base = "yuv420p", base, base
        tracks = {track: target.add_stream_from_template(track) for track in source.streams.audio if sound}
        some = False
        for time, picture in stretch(path, start, end):
            height, width = (size // 2 * 2 for size in picture.shape[:2])  # H.264 of this kind wants even sizes
            if not some:
                video.width, video.height, some = width, height, True
            frame = av.VideoFrame.from_ndarray(picture[: video.height, : video.width], format="rgb24")
            frame.pts, frame.time_base = round(max(0.0, time - start) / base), base
            target.mux(video.encode(frame))
        if not some:
            return False
        target.mux(video.encode(None))
        zero = (source.start_time or 0) / 1_000_000
        for packet in source.demux(*tracks) if tracks else ():
            if packet.dts is None or not start <= float(packet.dts * packet.stream.time_base) - zero < end:
                continue
            shift = int((start + zero) / packet.stream.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = tracks[packet.stream]
            target.mux(packet)
    return True
