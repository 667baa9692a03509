"""The table of results: rows are found by fields, the newest counts, and pages show all that is measured."""

import json
import re
import subprocess
import sys

import pytest

from scripts import BENCHMARKS, benchmark

results = benchmark("results")


def test_a_row_is_found_by_its_fields_and_settings_and_says_how_it_was_made(tmp_path):
    for seed in (0, 1):
        about = {"name": "ours", "task": "sst2", "seed": seed, "settings": {"steps": 300}}
        results.append("glue", {"score": 90.0 + seed}, tmp_path, **about)
    results.append("glue", {"score": 80.0}, tmp_path, name="ours", task="sst2", seed=0, settings={"steps": 1000})
    (row,) = results.read("glue", tmp_path, name="ours", seed=1, steps=300)
    assert row["score"] == 91.0
    assert row["command"].startswith("python benchmarks/")
    assert row["processor"]["cpu"]
    assert {"family", "model"} < row["processor"].keys()
    assert row["versions"]["torch"]
    assert len(results.read("glue", tmp_path, steps=300)) == 2
    assert results.read("glue", tmp_path, steps=500) == []


def test_verbs_of_a_script_share_a_file_and_not_their_rows(tmp_path):
    results.append("kronecker speed", {"threads": 2}, tmp_path)
    results.append("kronecker size", {"layouts": {}}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kronecker.jsonl"]
    assert len(results.read("kronecker speed", tmp_path)) == 1


def test_of_equal_keys_the_newest_counts_and_stands_where_the_first_stood(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        results.append("size", {"mb": value}, tmp_path, name=name, overrides=[f"value={value}"])
    assert [(row["name"], row["mb"]) for row in results.read("size", tmp_path)] == [("a", 3), ("b", 2)]


def test_without_a_name_the_recipe_and_its_overrides_tell_rows_apart(tmp_path):
    for overrides in ([], ["stages.0.steps=5"]):
        results.append("recipes", {"loss": len(overrides)}, tmp_path, recipe="best-2-2-8", overrides=overrides)
    (row,) = results.read("recipes", tmp_path, overrides=[])
    assert row["loss"] == 0


def test_the_newest_is_so_by_its_date_wherever_a_merge_has_put_it(tmp_path):
    for value in (1, 2):
        results.append("size", {"mb": value}, tmp_path, name="a")
    path = tmp_path / "size.jsonl"
    old, new = (json.loads(line) for line in path.read_text().splitlines())
    new["date"] = "2999-01-01T00:00:00+00:00"
    path.write_text("".join(json.dumps(row) + "\n" for row in (new, old)))
    assert results.latest("size", folder=tmp_path)["mb"] == 2
    assert [row["mb"] for row in results.read("size", tmp_path)] == [2]


def test_what_a_killed_process_left_of_a_line_is_passed_over_and_goes_with_the_next_row(tmp_path):
    results.append("size", {"mb": 1}, tmp_path, name="whole")
    path = tmp_path / "size.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"benchmark": "size", "name": "torn"})[:-5])
    assert [row["name"] for row in results.read("size", tmp_path)] == ["whole"]
    results.append("size", {"mb": 2}, tmp_path, name="next")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["whole", "next"]


def test_rows_of_several_processes_stand_below_each_other(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from results import append\n"
    code += (
        "for seed in range(15): append('size', {'x': 500_000 * 'x'}, Path(sys.argv[2]), name=sys.argv[3], seed=seed)"
    )
    commands = [[sys.executable, "-c", code, str(BENCHMARKS), str(tmp_path), who] for who in "abc"]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait() == 0
    assert len(results.read("size", tmp_path)) == 45


def test_metrics_cannot_pass_for_fields(tmp_path):
    with pytest.raises(ValueError, match="model"):
        results.append("size", {"model": 1}, tmp_path)
    with pytest.raises(ValueError, match="steps"):
        results.append("size", {"steps": 1}, tmp_path, settings={"steps": 300})
    with pytest.raises(ValueError, match="sead"):
        results.append("size", {"mb": 1}, tmp_path, sead=0)
    assert not list(tmp_path.iterdir())


def test_paths_of_this_machine_stay_out_of_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/benchmarks/glue.py", "--data", "/home/me/glue", "--base=/home/me/gpt2"])
    results.append("glue", {}, tmp_path)
    assert results.latest("glue", folder=tmp_path)["command"] == "python benchmarks/glue.py --data glue --base=gpt2"


def test_rows_of_quick_runs_are_passed_over_unless_they_are_wanted(tmp_path):
    results.append("index", {"ms": 2}, tmp_path)
    results.append("index", {"ms": 9}, tmp_path, settings={"quick": True})
    assert [row["ms"] for row in results.read("index", tmp_path)] == [2]
    assert results.latest("index", tmp_path)["ms"] == 2
    assert [row["ms"] for row in results.read("index", tmp_path, quick=True)] == [9]
    assert [row["ms"] for row in results.by_processor("index", tmp_path)] == [2, 9]


def test_options_that_are_given_win_over_those_of_a_quick_run(monkeypatch):
    import argparse

    def parsed(*words):
        monkeypatch.setattr(sys, "argv", ["index.py", *words])
        parser = argparse.ArgumentParser()
        parser.add_argument("--rounds", type=int, default=5)
        return results.speed_options(parser, rounds=1)

    assert parsed().rounds == 5
    assert parsed("--quick").rounds == 1
    assert parsed("--quick", "--rounds", "3").rounds == 3
    assert results.quick_settings(parsed("--quick")) == {"quick": True}
    assert results.quick_settings(parsed()) == {}


def made_on(folder, ms, cpu, family=None, model=None, amx=False, **settings):
    """A row of `index`, made on a processor."""
    results.append("index", {"windows": 10, "rows": {"int8": {"processor_ms": ms}}}, folder, settings=settings)
    path = folder / "index.jsonl"
    *others, last = path.read_text().splitlines()
    row = json.loads(last)
    row["processor"] |= {"cpu": cpu, "family": family, "model": model, "amx": amx, "forced": None}
    path.write_text("".join(line + "\n" for line in (*others, json.dumps(row))))


def test_each_processor_has_its_newest_row(tmp_path):
    for ms, model in ((1.0, 17), (2.0, 143), (3.0, 17)):
        made_on(tmp_path, ms, "AMD EPYC", 25, model)
    found = {
        results.processor_of(row): row["rows"]["int8"]["processor_ms"]
        for row in results.by_processor("index", tmp_path)
    }
    assert found == {"AMD EPYC, family 25 model 17": 3.0, "AMD EPYC, family 25 model 143": 2.0}


def test_a_forced_path_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("ABRIDGED_KERNELS", "avx2")
    results.append("index", {"ms": 2}, tmp_path)
    assert results.processor_of(results.latest("index", tmp_path)).endswith(", forced to avx2")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([("Intel(R) Xeon(R)", 6, 143, True), ("AMD EPYC", 25, 1, False), ("AMD EPYC", 25, 17, False)], 3),
        ([("Intel(R) Xeon(R)", 6, 143, False), ("AMD EPYC", 23, 17, True), ("AMD EPYC", 25, 1, True)], 3),
        ([("Intel(R) Xeon(R)", 6, 143, False), ("AMD EPYC", None, None, False)], 2),
        ([("Intel(R) Xeon(R)", 25, 17, False), ("AMD EPYC", None, None, True)], 2),
    ],
)
def test_numbers_stand_beside_those_of_the_nearest_processor(tmp_path, there, expected):
    bench = benchmark("bench")
    for number, about in enumerate(there, start=1):
        made_on(tmp_path / "there", float(number), *about)
    made_on(tmp_path / "here", 1.5, "AMD EPYC", 25, 17, quick=True)
    committed = results.by_processor("index", tmp_path / "there")
    (line,) = bench.beside(results.by_processor("index", tmp_path / "here"), committed, "index")
    assert line[:3] == ["search in 10 windows, int8", "1.5 ms", str(expected)]
    assert line[3] == f"{expected / 1.5:.2f}×"  # less time is faster
    assert there[expected - 1][0] in line[4]
    assert bench.table([line]).splitlines()[1].startswith("search in 10 windows, int8  1.5 ms")


def test_headlines_are_found_in_every_row_that_is_kept():
    speeds = benchmark("speeds")
    for name, headlines in speeds.SPEEDS.items():
        for row in results.by_processor(name):
            found = [*headlines(row)]
            assert found or row["name"] == "files"
            assert all(number > 0 for _, _, number in found)


def test_what_was_not_measured_is_told_apart():
    with pytest.raises(results.NotMeasured, match="nothing"):
        results.latest("nothing")


def test_a_plan_passes_over_what_has_a_row_and_what_was_not_asked_for(tmp_path):
    import argparse

    quantizers = benchmark("quantizers")
    trials = [quantizers.Trial(f"{name}-seed0", name, "kngpt2", [], settings={"steps": 300}) for name in "abc"]
    trials[0].record("glue", {"score": 1.0}, tmp_path)
    options = argparse.Namespace(only="[ab]*", minutes=1.0)
    pending = list(quantizers.pending(trials, "glue", options, tmp_path))
    assert [(work.name, trial.name) for work, trial in pending] == [("b-seed0", "b")]
    longer = [quantizers.Trial("a-seed0", "a", "kngpt2", [], settings={"steps": 1000})]
    assert len(list(quantizers.pending(longer, "glue", options, tmp_path))) == 1
    options.minutes = -1.0
    assert not list(quantizers.pending(trials, "glue", options, tmp_path))


def test_every_row_that_is_kept_is_whole_and_in_the_file_of_its_script():
    for path in results.RESULTS.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row.keys() == {*results.FIELDS, "metrics", *results.MADE_BY}, path
            assert row["benchmark"].split()[0] == path.stem
            assert (BENCHMARKS / f"{path.stem}.py").exists()


def test_every_table_stands_in_a_page_and_every_link_between_pages_leads_somewhere():
    tables = benchmark("tables")
    pages = {path: path.read_text() for path in tables.PAGES}
    shown = {name for text in pages.values() for name in re.findall(r"<!-- table:(\w+) -->", text)}
    assert shown == tables.TABLES.keys()
    for path, text in pages.items():
        for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", text):
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), (path.name, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
                assert anchor in {_anchor(title) for title in titles}, (path.name, target, anchor)


def _anchor(title):
    """What a heading is linked by on GitHub."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_a_headline_is_some_rows_and_columns_of_its_table():
    headlines = benchmark("tables_of_headlines")
    whole = "|  | a | b |\n|---|---:|---:|\n| x | 1 | 2 |\n| y | 3 |  |\n\nA sentence."
    assert headlines.some_of(lambda: whole, ("y", "x", "z"), ("b",)) == "|  | b |\n|---|---:|\n| y |  |\n| x | 2 |"
    for table, rows, _ in headlines.HEADLINES.values():
        firsts = {line.split("|")[1].strip() for line in table().splitlines() if line.startswith("|")}
        assert {*rows} <= firsts


def test_what_is_not_trained_stands_by_its_size_beside_types_that_saw_validation_text_alone(monkeypatch):
    quality = benchmark("tables_of_quality")
    ours = {"recipe": "ptq-4", "file_bytes": 2 * 2**20, "validation": {"perplexity": 20.2}}
    ours |= {"student": {"perplexity": 30.0}, "loss_percent": {"perplexity": 0.88}}
    theirs = {"name": "Q4_K_M", "tensor_bytes": 3 * 2**20, "validation": {"perplexity": 21.0}}
    monkeypatch.setattr(quality, "read", lambda of, **wanted: [ours] if of == "recipes" else [theirs])
    _, _, *rows = quality.untrained().splitlines()
    assert rows == ["| llama.cpp Q4_K_M | 3.00 | 21.00 | – | – |", "| ptq-4 | 2.00 | 20.20 | 30.00 | 0.88 |"]
