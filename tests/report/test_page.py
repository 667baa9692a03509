import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from abridged.evaluation.perplexity import perplexities
from abridged.report.data import ModelRow, ReportData, SampleGroup
from abridged.report.page import render, write_report
from abridged.report.pictures import token_picture
from abridged.report.sections import SECTIONS, shown_matrices, what_was_lost

HOSTILE = ["</text><script>alert(1)</script>", "$\\frac{1}$", '" onload="alert(1)', "&lt;", "\x00\ud800", "{{ 7*7 }}",
           "<!--", "]]>", "url(http://evil.example/x)", "\u202eabc", "한국어", "%s"]  # fmt: skip


class Page(HTMLParser):
    """The elements and attributes of a page, as a browser would find them."""

    VOID = {"meta", "br", "use", "path", "rect", "img"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def test_every_section_is_there_and_tags_are_balanced(report):
    html = render(report)
    page = Page(html)
    assert page.open == []
    ids = page.values("id")
    for section in SECTIONS:
        assert section.__name__.replace("_", "-") in ids


def test_each_kind_has_a_row_with_what_every_model_finds_of_it(report):
    told = re.search(r'<section id="by-kind".*?</section>', render(report), re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", told) == ["91.25", "3.50", "88.75"]
    assert "PER (1,200)" in told
    report.summary[-1].measurements = [m for m in report.summary[-1].measurements if not m.part]
    assert ">–</td>" in render(report)


def test_the_page_needs_nothing_else(report):
    html = render(report)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "image", "base"} & {tag for tag, _ in page.tags}
    assert all(value.startswith("#") for value in page.values("href"))
    assert len(page.values("src")) == 4
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    style = " ".join(page.values("style")) + html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", style))
    assert "default-src 'none'" in html
    assert not re.findall(r"https?:", html)


def test_ids_are_unique_and_what_refers_to_them_finds_them(report):
    html = render(report)
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_figures_take_the_pages_colours(report):
    html = render(report)
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(figures) == 1 + 3 + 3 + len(report.matrices) + 3 + 2 + 6
    for figure in figures:
        ElementTree.fromstring(figure)
        assert "#0a0b" not in figure
        assert "DejaVu" not in figure
    assert "var(--student)" in html
    assert "prefers-color-scheme: dark" in html


def test_hostile_text_stays_text(make_report, tmp_path):
    report, hostile = make_report(layers=2), " ".join(HOSTILE)
    clean = Page(render(report))
    report.title = report.recipe = report.base_model = report.data = report.directory = hostile
    report.recipe_description = report.paper = report.date = hostile
    report.summary[1] = ModelRow(hostile, "rounded", perplexities(math.log(3.0), 1, 1))
    report.samples = [SampleGroup.of(hostile, {hostile: hostile, "student": hostile}, hostile)]
    report.machine = {hostile: hostile}
    report.modules[0]["name"] = hostile
    report.parts[0].name = hostile
    for matrix, text in zip(report.matrices, HOSTILE, strict=False):
        matrix.name = matrix.block = text
    report.videos.strips[0].caption = report.videos.confusions[0].true = hostile
    report.sentences.worst[0].first = report.sentences.worst[0].second = hostile
    labels = [text + str(index) for text in HOSTILE for index in range(3)]
    cloud = np.random.default_rng(0).normal(size=(len(labels), 4))
    report.tokens = token_picture(labels, {hostile: ("teacher", cloud), "student": ("student", cloud)})
    report.stages = [hostile, hostile]
    terms = dict.fromkeys(HOSTILE, 1.0)
    report.metrics = [{**line, **terms, "lr": terms} for line in report.metrics if line["event"] == "train"]
    path = write_report(tmp_path / "report.html", report)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in clean.tags}
    assert {name for _, attributes in page.tags for name in attributes} == {
        name for _, attributes in clean.tags for name in attributes
    }
    for figure in re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), flags=re.S):
        ElementTree.fromstring(figure)


def test_clips_are_told_of_by_each_model(report):
    html = render(report)
    section = html[html.index('<section id="videos">') :].partition("</section>")[0]
    texts = re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", section, flags=re.S))
    cells = texts[texts.index("left") :]
    assert re.search(r"left\s+right\s+20\s+2\u202f%\s+50\u202f%\s+4\u202f%", texts), cells
    for name in ("teacher", "untrained", "student"):
        assert all(f"{value:.2f}" in texts for value in report.videos.strips[1].cosines[name])
    found = re.findall(r"correlation with the teacher\s+(\S+)", texts)
    assert found[-1] == "1.00"  # the student's are the teacher's, times 0.9
    assert found[0] != "1.00"


def test_sentences_are_told_of_by_each_model(report):
    html = render(report)
    section = html[html.index('<section id="sentences">') :].partition("</section>")[0]
    assert section.count("<svg") == 3 + 2 + 1
    texts = re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", section, flags=re.S))
    for pair in report.sentences.worst:
        cells = rf"{pair.first}\s+{pair.second}\s+" + r"\s+".join(f"{value:.2f}" for value in pair.cosines.values())
        assert re.search(cells, texts), texts
    assert re.findall(r"correlation with the teacher\s+(\S+)", texts)[-1] == "1.00"


def test_absent_data_leaves_its_section_out():
    html = render(ReportData(title="nothing"))
    page = Page(html)
    assert "section" not in [tag for tag, _ in page.tags]
    only = Page(render(ReportData(title="one", summary=[ModelRow("teacher", "teacher", perplexities(3.0, 1, 1))])))
    assert only.values("id") == ["summary"]


def test_each_part_of_the_data_stands_alone(report):
    empty = ReportData(title="")
    for name, value in vars(report).items():
        if name != "title":
            assert render(ReportData(**{"title": "alone", name: value}))
            setattr(empty, name, value)


def test_the_same_data_gives_the_same_file(report, make_report):
    assert render(report) == render(make_report())


def test_a_large_model_is_shown_by_some_of_its_layers(make_report):
    report = make_report(layers=12)
    shown = shown_matrices(report.matrices)
    assert len({matrix.name for matrix in report.matrices}) == 49
    assert len({matrix.name for matrix in shown}) <= 32
    layers = {matrix.layer for matrix in shown}
    assert {None, 0, 11} <= layers
    assert f"The other {len(report.matrices) - len(shown)} matrices" in render(report)


def test_what_was_lost_follows_the_numbers():
    teacher = ModelRow("teacher", "teacher", perplexities(math.log(20.0), 1, 1), 32 * 2**20, 1.0, 32.0)
    rounded = ModelRow("rounded", "rounded", perplexities(math.log(2000.0), 1, 1), 2**21, 16.0, 2.0)
    text = " ".join(what_was_lost(ReportData("t", summary=[teacher, rounded, _student(25.0)])))
    assert "16.0 times less" in text
    assert "25.0\u202f%" in text
    assert "0.80 times the probability" in text
    assert "95.2\u202f%" in text  # 1 - ln 1.25 / ln 100
    assert "nothing was lost" in " ".join(what_was_lost(ReportData("t", summary=[teacher, _student(19.0)])))
    assert "not finite" in " ".join(what_was_lost(ReportData("t", summary=[teacher, _student(float("inf"))])))


def _student(perplexity: float) -> ModelRow:
    return ModelRow("student", "student", perplexities(math.log(perplexity), 1, 1), 2**21, 16.0, 2.0)


def test_no_half_written_report(tmp_path, report):
    path = tmp_path / "report.html"
    path.write_text("older")
    report.summary[0] = None
    with pytest.raises(AttributeError):
        write_report(path, report)
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("step", "told"), [(0, "keeps the weights from before training"), (300, "of step 300, the best")]
)
def test_it_says_which_weights_were_kept(report, step, told):
    assert "keeps the weights" not in render(report)
    kept = {"event": "kept", "stage": 0, "step": step}
    assert told in render(replace(report, metrics=[*report.metrics, kept]))
