"""Makes the tables of the pages in docs and of README.md from the rows in benchmarks/results.

    python benchmarks/tables.py

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; nothing else in the pages is touched.
"""

import re
from statistics import StatisticsError

import tables_of_cost
import tables_of_headlines
import tables_of_plans
import tables_of_quality
import tables_of_sentences
import tables_of_video
from rendering import DOCS
from results import NotMeasured

PAGES = (*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md")
TABLES = (
    tables_of_quality.TABLES
    | tables_of_cost.TABLES
    | tables_of_plans.TABLES
    | tables_of_sentences.TABLES
    | tables_of_video.TABLES
    | tables_of_headlines.TABLES
)


def make(name: str) -> str:
    """A table, or a sentence where its command has not been run."""
    try:
        made = TABLES[name]()
    except (NotMeasured, StatisticsError):
        made = ""
    return made if made.count("\n") > 1 else "Not measured yet."


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"<!-- table:(\w+) -->", text):
            between = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
            text = between.sub(lambda m, made=make(name): f"{m[1]}\n{made}\n\n{m[2]}", text)
        if text != page.read_text():
            page.write_text(text)


if __name__ == "__main__":
    main()
