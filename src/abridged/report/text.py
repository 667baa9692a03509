"""Numbers and strange strings as a reader wants to see them."""

import math
import unicodedata

from abridged.report.data import MB

MISSING = "–"
USELESS = 1_000  #: a perplexity this many times the teacher's is a guess, however large the number
THIN = "\u202f"  #: narrow space that keeps a number and its unit on one line


def number(value: float | None, digits: int = 2) -> str:
    """A value with thousands separators: 1234.5 -> '1,234.50'; beyond a million '3.2 × 10⁷'."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e6:
        exponent = math.floor(math.log10(abs(value)))
        power = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10**exponent:.1f} × 10{power}".replace("-", "−")
    return f"{value:,.{0 if abs(value) >= 10_000 else digits}f}".replace("-", "−")


def signed_percent(share: float | None) -> str:
    """A relative change: 0.195 -> '+19.5\u202f%'; beyond ten times '×\u202f25', beyond a thousand 'unusable'."""
    if share is None or math.isnan(share):
        return MISSING
    if share > USELESS:
        return "unusable"
    if share > 10:
        return f"×{THIN}{number(share + 1, 0)}"
    sign = "+" if share >= 0 else "−"
    return f"{sign}{number(abs(100 * share), 1)}{THIN}%"


def percent(share: float | None, digits: int = 1) -> str:
    """A share: 0.041 -> '4.1\u202f%'."""
    return MISSING if share is None or math.isnan(share) else f"{number(100 * share, digits)}{THIN}%"


def megabytes(size: float | None) -> str:
    """Bytes as MB of 2^20, with as many digits as such a size deserves."""
    if size is None:
        return MISSING
    value = size / MB
    return number(value, 1 if value >= 10 else 2 if value >= 0.1 else 3)


def times(ratio: float | None) -> str:
    """How many times smaller: 16.04 -> '16.0\u202f×'; nothing is said of 0."""
    return f"{number(ratio, 1)}{THIN}×" if ratio else MISSING


def significant(value: float | None, digits: int = 3) -> str:
    """A small quantity to so many significant digits: 0.021345 -> '0.0213'."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return number(value, decimals) if decimals <= 6 else f"{value:.{digits - 1}e}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as '45 s', '6 min 12 s' or '2 h 05 min'."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def visible(text: str, limit: int = 16) -> str:
    """A token as a short label: its spaces and line ends shown, what cannot be drawn replaced.

    Control characters, surrogates and the marks that turn the direction of writing would otherwise break the SVG or
    mix up the labels around them.
    """
    text = text.strip(" ") or text
    text = text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    drawn = "".join("�" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn"} else c for c in text)
    return drawn if len(drawn) <= limit else drawn[: limit - 1] + "…"


def name_of(text: str, limit: int) -> str:
    """A name as a short label: as `visible`, with its spaces as spaces."""
    return visible(text, limit).replace("␣", " ")


def shortened(text: str, limit: int = 600) -> str:
    """The beginning of a document, in whole words."""
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " …"


def readable(text: str) -> str:
    """Running text with its line breaks, without characters that an HTML page may not hold."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} else "�" for c in text)
