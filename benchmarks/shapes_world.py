"""Images and clips of shapes, with captions, captions of frames, questions and moments: all of it from seeds.

Shapes have a colour, a kind, a size and a place; in clips they move in one of eight directions, grow, shrink, appear or
disappear, alone or one after another, in front of textured and noisy grounds and among others that stand still.

An event and its opposite have the same frames, played backwards, and a thing is there only while its own event lasts.
So a clip and the one that its caption turned around tells of have the very same frames, in another order: whoever
averages frames cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

SIDE = 48  #: pixels
FRAMES, RATE = 24, 12  #: of a clip, and a second
PARTS = 8  #: captions of frames
COLOURS = {
    "red": (215, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (235, 215, 50),
    "purple": (150, 50, 190), "orange": (240, 140, 30), "white": (245, 245, 245), "cyan": (50, 205, 215),
}  # fmt: skip
KINDS = ("circle", "square", "triangle", "diamond", "star", "ring", "cross")
SIZES = {"small": (4.0, 6.5), "large": (7.5, 10.0)}  #: radii, in pixels
_ROWS = {"top": 0.22, "": 0.5, "bottom": 0.78}
_COLUMNS = {"left": 0.22, "": 0.5, "right": 0.78}
PLACES = {
    f"{row} {column}".strip() or "centre": (_COLUMNS[column], _ROWS[row]) for row, column in product(_ROWS, _COLUMNS)
}
DIRECTIONS = {
    "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1),
    "moves to the upper left": (-1, -1), "moves to the upper right": (1, -1),
    "moves to the lower left": (-1, 1), "moves to the lower right": (1, 1),
}  # fmt: skip
MOTIONS = (*DIRECTIONS, "grows", "shrinks", "appears", "disappears")
#: Motions and their opposites, which look the same played backwards.
OPPOSITES = (
    ("moves left", "moves right"), ("moves up", "moves down"), ("grows", "shrinks"), ("appears", "disappears"),
    ("moves to the upper left", "moves to the lower right"), ("moves to the upper right", "moves to the lower left"),
)  # fmt: skip
#: Of the combinations of colour, kind and pair of opposites, every so many-th is for tests alone.
HELD_OUT = 5


@dataclass(frozen=True)
class Thing:
    """A shape where it stands: the centre in shares of the side, the radius in pixels; `there` in 0...1."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float
    there: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def place(self) -> str:
        """The nearest of `PLACES`."""
        return min(PLACES, key=lambda p: (PLACES[p][0] - self.x) ** 2 + (PLACES[p][1] - self.y) ** 2)

    @property
    def size(self) -> str:
        return "small" if self.radius < 7 else "large"


@dataclass(frozen=True)
class Event:
    """A thing that does something."""

    thing: Thing
    motion: str

    @property
    def caption(self) -> str:
        return said(self.thing.colour, self.thing.kind, self.motion)

    def at(self, time: float) -> Thing:
        """The thing at `time`, 0 to 1 of the event."""
        time, thing = min(max(time, 0.0), 1.0), self.thing
        if self.motion in DIRECTIONS:
            dx, dy = DIRECTIONS[self.motion]
            far = 0.5 / np.hypot(dx, dy) * (time - 0.5)
            return replace(thing, x=thing.x + dx * far, y=thing.y + dy * far)
        if self.motion in ("grows", "shrinks"):
            share = time if self.motion == "grows" else 1 - time
            return replace(thing, radius=4.0 + 7.0 * share)
        return replace(thing, there=float((time >= 0.5) == (self.motion == "appears")))


def with_article(name: str) -> str:
    """A or an."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def said(colour: str, kind: str, motion: str) -> str:
    """A shape that does something, in words."""
    return f"{with_article(f'{colour} {kind}')} {motion}"


def held_out(event: Event) -> bool:
    """Whether a combination is for tests alone, and so its opposite is: a clip played backwards shows that."""
    number = (list(COLOURS).index(event.thing.colour) * len(KINDS) + KINDS.index(event.thing.kind)) * 13
    pair = next(i for i, both in enumerate(OPPOSITES) if event.motion in both)
    return (number + pair * 3) % HELD_OUT == 0


def inside(thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points are a thing's; `u` and `v` are their places from its centre, in radii."""
    if thing.kind in ("circle", "ring"):
        far = np.hypot(u, v)
        return (far < 1) & (far > (0.55 if thing.kind == "ring" else -1))
    if thing.kind == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if thing.kind == "triangle":
        return (v < 0.75) & (abs(u) < (v + 0.95) * 0.6)
    if thing.kind == "diamond":
        return abs(u) + abs(v) < 1.1
    if thing.kind == "star":
        return np.hypot(u, v) < 0.68 + 0.32 * np.cos(5 * (np.arctan2(v, u) + np.pi / 2))
    return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)


def ground(draw: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) float: plain, a slope, stripes or checks, all dark and all a little noisy."""
    first, second = draw.uniform(20, 110, (2, 3))
    y, x = np.mgrid[:side, :side] / side
    kind, angle, count = draw.integers(4), draw.uniform(0, np.pi), draw.uniform(2, 6)
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = 0.5 + 0.5 * np.sign(np.sin(along * count * 6))
    checks = ((x * count).astype(int) + (y * count).astype(int)) % 2
    share = (np.zeros_like(x), along, stripes, checks)[kind]
    return first + share[..., None] * (second - first) * 0.6


def picture(things: list[Thing], behind: np.ndarray, draw: np.random.Generator, noise: float = 6.0) -> np.ndarray:
    """(side, side, 3) uint8 on a ground of that size; edges are smooth, for shapes are drawn three times as large."""
    found, side = behind.copy(), len(behind)
    for thing in (thing for thing in things if thing.there > 0):
        x, y, radius = thing.x * side, thing.y * side, thing.radius * side / SIDE
        reach = 1.2 * radius
        left, top = max(0, int(x - reach)), max(0, int(y - reach))
        right, bottom = min(side, int(x + reach) + 2), min(side, int(y + reach) + 2)
        if left >= right or top >= bottom:
            continue
        v, u = np.mgrid[3 * top : 3 * bottom, 3 * left : 3 * right] / 3 + 1 / 6
        cover = inside(thing, (u - x) / radius, (v - y) / radius)
        cover = cover.reshape(bottom - top, 3, right - left, 3).mean((1, 3))[..., None]
        part = found[top:bottom, left:right]
        part += cover * (np.array(COLOURS[thing.colour], dtype=float) - part)
    return (found + draw.normal(0, noise, found.shape)).clip(0, 255).astype(np.uint8)


def said_of(things: list[Thing], sizes: bool = False) -> str:
    """What a picture shows, in words."""
    named = [(f"{t.size} {t.name}" if sizes else t.name, t.place) for t in things if t.there > 0]
    some = [f"{with_article(name)} at the {place}" for name, place in named]
    return " and ".join(some) or "nothing"


#: What of a thing is another in a picture that is nearly the same.
ATTRIBUTES = {"colour": ("colour",), "kind": ("kind",), "place": ("x", "y")}


def still_life(draw: np.random.Generator) -> list[Thing]:
    """One or two shapes that stand apart, each somewhere about a place of its own.

    Somewhere about it, and of any radius: who has seen shapes in nine spots and of two sizes alone knows them by heart
    there, and hardly one in four elsewhere.
    """
    while True:
        places = draw.permutation(list(PLACES))[: 1 + draw.integers(2)]
        found = [one_at(str(place), draw) for place in places]
        if len(found) < 2 or apart(*found):
            return found


def one_at(place: str, draw: np.random.Generator) -> Thing:
    """A shape about a place, of some colour, kind and size."""
    x, y = np.array(PLACES[place]) + draw.uniform(-0.12, 0.12, 2)
    radius = draw.uniform(*SIZES[str(draw.choice(list(SIZES)))])
    return Thing(str(draw.choice(list(COLOURS))), str(draw.choice(KINDS)), float(x), float(y), float(radius))


def apart(a: Thing, b: Thing) -> bool:
    """Whether two shapes hardly cover each other."""
    return bool(SIDE * np.hypot(a.x - b.x, a.y - b.y) > 0.8 * (a.radius + b.radius))


def nearly(things: list[Thing], draw: np.random.Generator) -> list[Thing]:
    """The same, but for a colour, kind or place: two things have exchanged theirs, or one has another."""
    names = ATTRIBUTES[str(draw.choice(list(ATTRIBUTES)))]

    def given(to: Thing, by: Thing) -> Thing:
        return replace(to, **{name: getattr(by, name) for name in names})

    if len(things) > 1 and draw.random() < 0.5:
        return [given(things[0], things[1]), given(things[1], things[0])]
    while True:
        other = one_at(str(draw.choice(list(PLACES))), draw)
        found = [given(things[0], other), *things[1:]]
        if said_of(found) != said_of(things) and (len(found) < 2 or apart(*found)):
            return found[:: int(draw.choice((-1, 1)))]


def images(draw: np.random.Generator, count: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of one or two shapes with captions that say all of it, by fours that differ in one thing.

    Who knows what there is, and not what belongs to what, cannot tell these four apart; among pictures drawn one by one
    that is hardly ever asked.
    """
    found: list[list[Thing]] = []
    while len(found) < count:
        things = still_life(draw)
        found += [things, *(nearly(things, draw) for _ in range(3))]
    return [(picture(one, ground(draw), draw), said_of(one, sizes=True)) for one in found[:count]]


@dataclass(frozen=True)
class Story:
    """A clip: events one after another, what stands still besides, the seed of its ground and noise, and how long each
    event lasts beside the others, where they are not all as long."""

    events: tuple[Event, ...]
    still: tuple[Thing, ...]
    seed: int
    lengths: tuple[float, ...] = ()

    @property
    def caption(self) -> str:
        return ", then ".join(event.caption for event in self.events)

    def span(self, number: int) -> tuple[float, float]:
        """From when to when an event lasts, in shares of the clip."""
        lengths = self.lengths or (1.0,) * len(self.events)
        before, whole = sum(lengths[:number]), sum(lengths)
        return before / whole, (before + lengths[number]) / whole

    def things(self, time: float) -> list[Thing]:
        """All that is there at `time`, 0 to 1 of the clip: what stands still, and the thing whose event it is."""
        number = next((i for i in range(len(self.events)) if time < self.span(i)[1]), len(self.events) - 1)
        start, end = self.span(number)
        return [*self.still, self.events[number].at((time - start) / (end - start))]

    def frames(self, count: int = FRAMES, side: int = SIDE) -> np.ndarray:
        """(count, side, side, 3) uint8, each of the middle of its share of the time."""
        draw = np.random.default_rng(self.seed)
        behind = ground(draw, side)
        return np.stack([picture(self.things((i + 0.5) / count), behind, draw) for i in range(count)])

    def frame_captions(self) -> list[str]:
        """What is to be seen in the middle of each of `PARTS` equal parts."""
        return [said_of(self.things((i + 0.5) / PARTS)) for i in range(PARTS)]

    def question(self, draw: np.random.Generator) -> tuple[str, str]:
        """One of the kinds of questions that can be asked of it, with its answer; 46 kinds in all."""
        event = self.events[draw.integers(len(self.events))]
        thing, other = event.thing, str(draw.choice(MOTIONS))
        own = [one for one in self.events if one.thing.name == thing.name]
        start, end = own[0].at(0), own[-1].at(1)
        told = [
            (f"what colour is the shape that {event.motion}?", thing.colour),
            (f"which shape {event.motion}?", thing.kind),
            (f"does the {thing.name} {plainly(other)}?", "yes" if other in [one.motion for one in own] else "no"),
            (f"where is the {thing.name} in the beginning?", start.place if start.there else "nowhere"),
            (f"where is the {thing.name} in the end?", end.place if end.there else "nowhere"),
            ("how many shapes stand still?", str(len(self.still))),
        ]  # fmt: skip
        if len(own) == 1:
            told.append((f"what does the {thing.name} do?", event.motion))
        if len(self.events) > 1:
            first, last = self.events[0], self.events[-1]
            told += [("what happens first?", first.caption), ("what happens last?", last.caption)]
            if len(own) == 1:
                told += [
                    ("which colour moves first?", first.thing.colour),
                    ("which colour moves last?", last.thing.colour),
                ]
        # a yes-or-no question about every motion would be no half of the time: as often yes as no
        chosen = told[draw.integers(len(told))]
        if chosen[1] == "no" and draw.random() < 0.5:
            chosen = (f"does the {thing.name} {plainly(event.motion)}?", "yes")
        return chosen


def plainly(motion: str) -> str:
    """A motion as a question has it: "move left", "grow"."""
    verb, _, where = motion.partition(" ")
    return f"{verb.removesuffix('s')} {where}".strip()


def story(seed: int, test: bool) -> Story:
    """The clip of a seed: one event or two, all of them held out, or none; and up to two things that stand still.

    Half of the pairs are of one thing, so that who sees which thing is there when does not know their order.
    """
    draw = np.random.default_rng((seed, 1 if test else 0))
    count, still = 1 + int(draw.integers(2)), int(draw.integers(3))
    names = draw.permutation([f"{colour} {kind}" for colour, kind in product(COLOURS, KINDS)])
    # things stand apart: each has a quarter of the picture of its own
    corners = draw.permutation(_CORNERS) + draw.uniform(-0.04, 0.04, (4, 2))
    found: list[Event] = []
    each = 2 if count == 2 and draw.random() < 0.5 else 1
    for name, corner in zip(names[: count // each], corners, strict=False):
        thing = placed(str(name), corner)
        fitting = [m for m in MOTIONS if held_out(Event(thing, m)) == test]
        found += [Event(thing, str(motion)) for motion in draw.choice(fitting, each, replace=False)]
    moving = {event.thing.name for event in found}
    rest = [str(name) for name in names if str(name) not in moving][:still]
    others = tuple(placed(name, corners[count + i], 5.0) for i, name in enumerate(rest))
    return Story(tuple(found), others, seed * 2 + test)


def long_story(seed: int, things: int, each: int) -> Story:
    """A long clip of held-out events of uneven lengths: each of the things does several things, in a mixed order."""
    draw = np.random.default_rng((seed, 2))
    names = draw.permutation([f"{colour} {kind}" for colour, kind in product(COLOURS, KINDS)])
    found: list[Event] = []
    for number, corner in zip(range(things), draw.permutation(_CORNERS), strict=False):
        thing = placed(str(names[number]), corner)
        fitting = [m for m in MOTIONS if held_out(Event(thing, m))]
        found += [Event(thing, str(motion)) for motion in draw.choice(fitting, each, replace=False)]
    order = draw.permutation(len(found))
    lengths = tuple(map(float, draw.uniform(0.75, 1.25, len(found))))
    return Story(tuple(found[i] for i in order), (), 10**7 + seed, lengths)


def examples() -> list[Story]:
    """A dozen clips of three events, to try a search on: of four each the events, the events in the other order, and
    both with what happens turned around. So an event is in two of them, and two in order are in one."""
    opposite = {"moves left": "moves right", "moves up": "moves down", "grows": "shrinks", "appears": "disappears"}
    opposite |= {b: a for a, b in opposite.items()}
    told = (
        (("red circle", "moves left"), ("blue square", "grows"), ("yellow star", "moves up")),
        (("green triangle", "moves right"), ("white ring", "appears"), ("purple cross", "moves down")),
        (("orange diamond", "moves up"), ("cyan circle", "shrinks"), ("green star", "moves right")),
    )
    found: list[Story] = []
    for events in told:
        for turned, backwards in product((False, True), repeat=2):
            made = [
                Event(placed(name, corner), opposite[motion] if turned else motion)
                for (name, motion), corner in zip(events, _CORNERS, strict=False)
            ]
            still = placed("white square", _CORNERS[3], 5.0)
            found.append(Story(tuple(made[::-1] if backwards else made), (still,), 10**8 + len(found)))
    return found


#: The middles of the quarters of a picture.
_CORNERS = ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))


def placed(name: str, centre: Sequence[float], radius: float = 6.0) -> Thing:
    """The thing of that name, "red circle", around a place."""
    colour, kind = name.split()
    return Thing(colour, kind, float(centre[0]), float(centre[1]), radius)


def write_clip(path: Path, frames: np.ndarray, quality: str = "16") -> None:
    """An mp4 by libx264, at a constant rate factor."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": quality, "preset": "veryfast"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def words() -> list[str]:
    """Every word that is said anywhere."""
    said = " ".join([*COLOURS, *KINDS, *SIZES, *PLACES, *MOTIONS, "a an and at the then nothing nowhere yes no"])
    said += " what colour is shape that which does do where in beginning end how many shapes stand still happens first"
    said += " last move grow shrink appear disappear before after centre 0 1 2 3 , ?"
    return list(dict.fromkeys(said.split()))
