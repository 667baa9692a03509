"""The section on Kronecker factors."""

from dataclasses import replace

from abridged.report.page import write_report
from abridged.report.sections import factors


def test_errors_are_drawn_by_layer_and_the_worst_is_named(report, tmp_path):
    report = replace(report, modules=[module for module in report.modules if "error" not in module])
    assert factors(report) is None
    modules = [{"name": "transformer.wte", "error": 0.5}]
    modules += [{"name": f"transformer.h.{layer}.mlp.c_fc", "error": 0.1 * layer} for layer in (1, 3)]
    base = {"shape": [4, 2], "stored": "2x2 ⊗ 2x1", "bytes": 4}
    data = replace(report, modules=[*report.modules, *({**base, **module} for module in modules)])
    found = factors(data)
    assert found is not None
    assert (found["count"], found["worst"]) == (3, "transformer.wte")
    assert "mlp.c_fc" in str(found["svg"])
    write_report(tmp_path / "report.html", data)
    assert "Matrices as Kronecker products" in (tmp_path / "report.html").read_text()
