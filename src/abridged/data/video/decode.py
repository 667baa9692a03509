"""Pictures out of video files by time stamp, through PyAV, which brings its own FFmpeg.

Times are seconds since the beginning of the file, as players count them. The picture at a time is the one shown then.
A file is read through and left early; it is sought in only where the way to the next wanted time spans several key
frames. Another decoder can stand behind the functions here: nothing else of this module is used elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abridged.core.errors import AbridgedError

#: Endings of files that are taken for videos.
SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
#: Time stamps are rounded to the units of their file: what is asked for may be this much before it.
_ROUNDING = 1e-3
#: Seconds between two key frames, until some were seen.
_KEY_FRAMES = 2.0


class VideoError(AbridgedError):
    """A file has no pictures, or not the one that is wanted; the sentence begins with its name."""


def frames(path: str | Path, times: Sequence[float], side: int | None = None) -> np.ndarray:
    """The pictures that are shown at `times`, upright.

    Args:
        times: seconds, in any order; before the first picture means the first.
        side: scale pictures down until their shorter side has so many pixels; None = as they are.

    Returns:
        (times, height, width, 3) uint8, RGB.

    Raises:
        VideoError: the file cannot be read, has no pictures, ends before one of `times`, or is damaged there.
    """
    order = np.argsort(times, kind="stable")
    with _opened(path) as video:
        found = [picture for _, picture in video.at((float(times[i]) for i in order), side)]
    return np.stack(found)[np.argsort(order)]


def sample(
    path: str | Path, count: int, start: float = 0.0, end: float | None = None, side: int | None = None
) -> np.ndarray:
    """The pictures in the middle of `count` equal parts of the stretch from `start` to `end`, or of all.

    Returns, raises: as `frames`.
    """
    with _opened(path) as video:
        last = video.end()
        end = last if end is None else min(end, last)
        if not start < end:
            raise VideoError(f"{path}: has no pictures from {start:.2f} s on: it ends at {last:.2f} s")
        times = start + (np.arange(count) + 0.5) * (end - start) / count
        return np.stack([picture for _, picture in video.at(map(float, times), side)])


def walk(path: str | Path, every: float, side: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Times 0, `every`, 2·`every` … to the end, each with its picture (height, width, 3) uint8; those whose picture is
    lost in a damaged stretch are passed over.

    Raises:
        VideoError: the file cannot be read or has no pictures.
    """
    with _opened(path) as video:
        number = -1
        for number, picture in video.at((i * every for i in range(2**62)), side, strict=False):
            yield number * every, picture
        if number < 0:
            raise VideoError(f"{path}: no picture in it can be read")


def stretch(path: str | Path, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
    """All pictures shown from `start` to `end`, in seconds, each with the time from which on it is shown.

    Raises:
        VideoError: the file cannot be read or has no pictures.
    """
    with _opened(path) as video:
        before: _Shown | None = None
        for shown in video.sought(start):
            if shown.time > start + _ROUNDING and before is not None:
                yield before.time, video.picture(before.frame, None)
            before = shown
            if shown.time >= end:
                return
        if before is not None and before.time + video.lasts(before.frame) > start:
            yield before.time, video.picture(before.frame, None)


def duration(path: str | Path) -> float:
    """When the last picture ends, in seconds.

    Raises:
        VideoError: the file cannot be read or has no pictures.
    """
    with _opened(path) as video:
        return video.end()


class _Shown(NamedTuple):
    time: float
    frame: Any  #: av.VideoFrame
    after_loss: bool  #: whether something before it could not be decoded


@contextmanager
def _opened(path: str | Path) -> Iterator[_Video]:
    try:
        import av
    except ImportError as error:
        raise AbridgedError("reading videos needs PyAV: pip install 'abridged[video]'") from error
    try:
        if not Path(path).stat().st_size:
            raise VideoError(f"{path}: the file is empty")
        with av.open(str(path), metadata_errors="replace") as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                raise VideoError(f"{path}: it has no pictures" + (", only sound" if container.streams.audio else ""))
            streams[0].thread_type = "AUTO"
            yield _Video(path, container, streams[0], av.error.FFmpegError)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read as a video ({error.strerror or error})") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror or error})") from error


class _Video:
    """An open file, at some place in its pictures."""

    def __init__(self, path: str | Path, container: Any, stream: Any, fault: type[Exception]) -> None:
        self.path, self.container, self.stream, self.fault = path, container, stream, fault
        self.zero = container.start_time / 1_000_000 if container.start_time is not None else 0.0
        self.interval = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        self.seekable = True
        self.key_frames = _KEY_FRAMES  #: the longest way between two that was seen, in seconds
        self.size: tuple[int, int] | None = None  #: width and height of all pictures, before they are turned

    def at(self, times: Iterator[float], side: int | None, strict: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each of the ascending `times` with its picture; where not `strict`, those that are lost are
        left out, and the end of the file is the end."""
        coming = self._decoded()
        shown: _Shown | None = None
        following = next(coming, None)
        made: tuple[_Shown, np.ndarray] | None = None
        for number, time in enumerate(times):
            here = following or shown
            if self.seekable and here is not None and time - here.time > 3 * self.key_frames:
                coming = self.sought(time)
                shown, following = None, next(coming, None)
            while following is not None and following.time <= time + _ROUNDING:
                shown, following = following, next(coming, None)
            picture = shown or following
            if picture is None:
                if strict:
                    raise VideoError(f"{self.path}: no picture in it can be read")
                return
            ends = picture.time + (self.lasts(picture.frame) if shown else 0.0)
            if following is None and time > ends + (_ROUNDING if strict else -_ROUNDING):
                if strict:
                    raise VideoError(f"{self.path}: has no picture at {time:.2f} s: it ends at {ends:.2f} s")
                return
            if following is not None and following.after_loss and time > ends + self.interval:
                if strict:
                    raise VideoError(f"{self.path}: is damaged at {time:.2f} s")
                continue
            if made is None or made[0] is not picture:
                made = (picture, self.picture(picture.frame, side))
            yield number, made[1]

    def end(self) -> float:
        """When the last picture ends, as the packets say: headers say nothing (mkv), or more than there is (cut short).

        The file is at its beginning afterwards."""
        ends: list[float] = []
        if self.container.duration:  # only the way from the last key frame
            try:
                self._seek(self.zero + self.container.duration / 1_000_000)
                ends = self._packets()
            except self.fault:
                pass
        if not ends:
            self._seek(None)
            ends = self._packets()
        self._seek(None)
        if not ends:
            raise VideoError(f"{self.path}: no picture in it can be read")
        return max(ends)

    def _packets(self) -> list[float]:
        base, ends, count = float(self.stream.time_base), [], 0
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    count += 1
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    lasts = packet.duration * base if packet.duration else self.interval
                    ends.append(stamp * base + lasts - self.zero if stamp is not None else count * self.interval)
        except self.fault:  # cut short: what came before is there
            pass
        return ends

    def lasts(self, frame: Any) -> float:
        return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else self.interval

    def _seek(self, time: float | None) -> None:
        """To the last key frame before `time`; None = to the beginning."""
        if time is None:
            self.container.seek(self.stream.start_time or 0, stream=self.stream, backward=True)
        else:
            self.container.seek(int(time / self.stream.time_base), stream=self.stream, backward=True)

    def sought(self, time: float) -> Iterator[_Shown]:
        """All pictures from the one that is shown at `time` on, or from one before it."""
        for earlier in (0.0, 4 * self.key_frames):  # some formats find a key frame behind what is sought
            try:
                self._seek(time + self.zero - earlier)
                found = self._decoded()
                first = next(found, None)
                if first is not None and first.time <= time + _ROUNDING:
                    return chain([first], found)
            except self.fault:
                pass
        self.seekable = False
        self._seek(None)
        return self._decoded()

    def _decoded(self) -> Iterator[_Shown]:
        """All pictures from here on, in the order in which they are shown."""
        packets = self.container.demux(self.stream)
        lost, time, key = False, -self.interval, None
        packet: Any = packets
        while packet is not None:
            try:
                packet = next(packets, None)
            except self.fault:  # the rest of the file cannot be read
                packet, lost = None, True
            try:
                decoded = self.stream.decode(packet)  # None empties the decoder
            except self.fault:
                decoded, lost = [], packet is not None
            for frame in decoded:
                if frame.time is None:  # a bare stream without time stamps
                    self.seekable = False
                    time += self.interval
                else:
                    time = frame.time - self.zero
                if frame.key_frame:
                    self.key_frames = max(self.key_frames, time - key) if key is not None else self.key_frames
                    key = time
                yield _Shown(time, frame, lost)
                lost = False

    def picture(self, frame: Any, side: int | None) -> np.ndarray:
        if self.size is None:
            share = min(1.0, side / min(frame.width, frame.height)) if side else 1.0
            self.size = (max(1, round(frame.width * share)), max(1, round(frame.height * share)))
        width, height = self.size
        picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return picture if matrix is None else _upright(picture, np.frombuffer(bytes(matrix), np.int32))


def _upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A picture turned and mirrored as a display matrix says (ISO/IEC 14496-12, 8.3.2): x' = ax + cy, y' = bx + dy."""
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) > abs(a):
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
