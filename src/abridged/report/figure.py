"""matplotlib figures as inline SVG that takes the page's colours and fonts."""

import hashlib
import io
import re
import warnings
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from abridged.report.text import readable

# matplotlib knows no CSS variables: each colour is drawn as a stand-in that occurs nowhere else, and then replaced.
_VARIABLES = ("ink", "muted", "rule", "teacher", "rounded", "student", "c1", "c2", "c3", "c4", "c5", "c6", "paper")
COLOURS = {name: f"#0a0b{index:02d}" for index, name in enumerate(_VARIABLES, 1)}
SERIES = [COLOURS[f"c{i}"] for i in range(1, 7)]
DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
MARKERS = ["o", "s", "^", "D", "v", "P"]

_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "abridged",  # the same data gives the same file
    "text.parse_math": False,  # a token such as "$x$" is no formula
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "axes.unicode_minus": True,
}
_VARIABLE_OF = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


class Drawing:
    """One figure of a single pair of axes: `with Drawing(3.6, 2.4) as d: d.axes.plot(…)`, then `d.svg`.

    Args:
        width, height: inches; a figure shown at 96 CSS pixels an inch has letters of the size of the page's captions.
        label: what the figure shows, for readers who do not see it.
        margins: around the axes (left, bottom, right, top), inches; where None, found by measuring what is written
            there, which takes longer than all the rest of a small figure.
    """

    def __init__(
        self, width: float, height: float, label: str, margins: tuple[float, float, float, float] | None = None
    ) -> None:
        self._style = rc_context(_STYLE)
        self._size, self._label, self._margins = (width, height), label, margins
        self.svg = Markup("")

    def __enter__(self) -> "Drawing":
        self._style.__enter__()
        self.axes: Axes
        if self._margins is None:
            self.figure = Figure(figsize=self._size, layout="constrained")
            self.axes = self.figure.add_subplot()
        else:
            (width, height), (left, bottom, right, top) = self._size, self._margins
            box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
            self.figure = Figure(figsize=self._size)
            self.axes = self.figure.add_axes(box)
        return self

    def __exit__(self, *fault: object) -> None:
        if fault[0] is None:
            self.svg = _inline(self.figure, self._label)
        self._style.__exit__(None, None, None)


def standalone(svg: str) -> str:
    """An inline figure as a file of its own, in the page's colours by day."""
    style = (Path(__file__).parent / "templates" / "style.css").read_text()
    colours = style.partition(":root {")[2].partition("}")[0]
    svg = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return svg.replace("<title>", f"<style>svg {{{colours} background: var(--paper); }}</style><title>", 1)


def _inline(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has the glyph
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None}
        )
    head, body = buffer.getvalue().partition("<svg")[2].split(">", 1)
    body = re.sub(r"<(metadata|style)\b.*?</\1>|<defs>\s*</defs>", "", body, flags=re.S)
    prefix = "f" + hashlib.sha256((label + body).encode("utf-8", "replace")).hexdigest()[:8]
    body = re.sub(r"<[^<>]+>", lambda tag: _restyle(tag[0], prefix), body)  # tags only: labels are not ours
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    title = Markup("<title>{}</title>").format(readable(label))
    return Markup(f'<svg {box[0]} role="img">{title}{body}')


def _restyle(tag: str, prefix: str) -> str:
    """The page's variables for colours and fonts, and ids that are unique on a page of many figures."""
    tag = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", tag).replace("xlink:href", "href")
    tag = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", tag)
    tag = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", tag)
    tag = re.sub(r"\s+", " ", tag)
    return re.sub(r"#0a0b\d\d", lambda colour: _VARIABLE_OF.get(colour[0], colour[0]), tag)
