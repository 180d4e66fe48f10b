"""The public interface: lazy, documented, what the stages call, and safe with hostile texts."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_example import example_summary

import refusal_cliff as rc
from refusal_cliff.api import steps
from refusal_cliff.api.answers import Traces
from refusal_cliff.api.results import Cliff, Selection
from refusal_cliff.api.runs import NEEDED
from refusal_cliff.api.view import View
from refusal_cliff.cliff.measure import read_measured, write_measured
from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.findings.summary import write_summary
from refusal_cliff.findings.wording import findings_of
from refusal_cliff.generate import generate
from refusal_cliff.heads import find
from refusal_cliff.model.subject import Subject
from refusal_cliff.report.chart import Chart
from refusal_cliff.report.reader import page_script

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "numpy", "pandas", "pyarrow", "pydantic", "jinja2", "sklearn")
HOSTILE = '<script>alert(1)</script>" onload="x\' ]]> &amp; \x1b[2J\u202e\ud800'
BATCH = rc.GenerationConfig(max_new_tokens=160, batch_size=80)


def python_of(page: str) -> list[str]:
    """The Python examples of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def shown(source: str, names: dict[str, Any]) -> Any:
    """Run a cell of a notebook; what its last expression is."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def in_one_batch(
    model: Subject, prompts: Sequence[rc.Prompt], config: rc.GenerationConfig, **options: Any
) -> list[rc.Trace]:
    return generate(model, prompts, replace(config, batch_size=80), **options)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All names of the README's example, which is run as it stands."""
    (example,) = [code for code in python_of("README.md") if "import refusal_cliff" in code]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setattr(steps, "generate", in_one_batch)
        exec(compile(example, "README.md", "exec"), names)
        names["drawn"] = Path("cliff.svg").read_text(encoding="utf-8")
    return names


def test_the_package_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; before = set(sys.modules); import refusal_cliff as rc; dir(rc); "
        f"print(len(set(sys.modules) - before), [m for m in {HEAVY} if m in sys.modules]); "
        "rc.RefusalCliffError; print([m for m in sys.modules if m in ('torch', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    count, heavy = first.split(maxsplit=1)
    assert int(count) < 60  # typing and importlib at most, on an interpreter that had neither
    assert (heavy, second) == ("[]", "[]")


def test_every_public_name_is_there_and_no_other() -> None:
    assert [name for name in rc.__all__ if getattr(rc, name, None) is None] == []
    assert sorted(rc.__all__) == rc.__all__
    assert set(rc.__all__) <= set(dir(rc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rc.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((ROOT / "src/refusal_cliff/__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    assert {alias.asname or alias.name for alias in aliases} == set(rc.__all__)
    for node in imports:
        for alias in node.names:
            module = __import__(str(node.module), fromlist=[alias.name])
            assert getattr(rc, alias.asname or alias.name) is getattr(module, alias.name)


def test_no_public_name_is_a_module_that_an_import_would_put_in_its_place() -> None:
    found = [name for name in rc.__all__ if importlib.util.find_spec(f"refusal_cliff.{name}")]
    assert found == []


def test_the_page_names_all_that_is_public() -> None:
    page = (ROOT / "docs/howto/python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^`(\w+)`: ", page, re.M)) == sorted(rc.__all__)


@pytest.mark.parametrize("code", python_of("docs/howto/python.md")[1:])
def test_examples_of_the_page_use_public_names(code: str) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "rc"
    }
    assert used <= set(rc.__all__)


def test_the_readme_leads_to_the_verdict_and_the_effect(walk: dict[str, Any]) -> None:
    cliff, heads = walk["cliff"], walk["heads"]
    assert cliff.verdict == "cliff"
    assert cliff.found.cliff_ci[0] > 0.5
    assert rc.Head(7, 7) in heads.chosen
    change = rc.compare(walk["traces"], walk["without"])[0]
    assert change.rate == "attacks" and change.interval[1] < 0
    ET.fromstring(walk["drawn"])


def test_the_notebook_runs_and_shows_itself(
    walk: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It asks and measures what the README's example does: it is given that answer and effects."""
    known = iter([walk[name] for name in ("fitting", "traces", "without")])

    def told(
        model: Subject, prompts: Sequence[rc.Prompt], config: rc.GenerationConfig, **options: Any
    ) -> list[rc.Trace]:
        traces = next(known, None)
        if traces is None:
            return generate(model, prompts, config, **options)
        assert [trace.prompt for trace in traces] == list(prompts)
        return list(traces)

    monkeypatch.setattr(steps, "generate", told)
    monkeypatch.setattr(find, "measure_on_traces", lambda *_, **__: list(walk["heads"].rows))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs/howto/notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    results = [shown(cell, names) for cell in cells]
    views = [result for result in results if isinstance(result, View)]
    assert {type(view).__name__ for view in views} == {
        *("RateTable", "Probes", "Cliff", "Heads", "Changes", "Selection")
    }
    assert all("<svg" in view._repr_html_() for view in views)
    assert len(names["chosen"].examples) == 4
    assert names["heads"].chosen == walk["heads"].chosen  # or their answers would be others


def test_every_result_has_words_a_table_and_a_chart(walk: dict[str, Any]) -> None:
    traces, probes = walk["traces"], walk["probes"]
    scores = rc.score_traces(walk["model"], traces[:4], probes)
    views = [traces, rc.rates(traces), probes, scores, walk["cliff"], walk["heads"]]
    for view in [*views, rc.compare(traces, walk["without"])]:
        rows = view.table()
        assert list(view.to_pandas().columns) == list(rows[0])
        assert len(view.to_pandas()) == len(rows)
        assert len(repr(view)) < 1000 and "object at" not in repr(view)
        if view is not scores:
            ET.fromstring(view.plot().markup)


def test_progress_is_told(walk: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    prompts = [trace.prompt for trace in walk["traces"]][:3]
    config = rc.GenerationConfig(max_new_tokens=2, batch_size=2)
    rc.ask(walk["model"], prompts, config, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


def test_results_are_what_the_steps_return(walk: dict[str, Any]) -> None:
    model, traces, probes = walk["model"], walk["traces"], walk["probes"]
    some = [trace for trace in traces if trace.spans is not None][:3]
    (one, *_), (other, *_) = rc.score_traces(model, some, probes), score_traces(model, some, probes)
    assert (one.logits == other.logits).all()
    assert rc.score_traces(model, some, probes).table()[0]["trace_id"] == some[0].prompt.id


def test_probes_of_another_model_are_refused(walk: dict[str, Any]) -> None:
    other = replace(walk["model"], fingerprint="0" * 64)
    for step in (rc.score_traces, rc.find_heads):
        with pytest.raises(rc.RefusalCliffError, match="were fitted on 'tiny'"):
            step(other, walk["traces"], walk["probes"])
    assert rc.score_traces(other, walk["traces"][:1], walk["probes"], same_space=True)


def test_ablated_context_answers_as_rows_with_heads_out(walk: dict[str, Any]) -> None:
    prompts = [trace.prompt for trace in walk["traces"]][:6]
    heads = walk["heads"].chosen
    rows = generate(walk["model"], prompts, BATCH, row_heads=[heads] * len(prompts))
    with rc.ablated(walk["model"], heads):
        context = rc.generate_traces(walk["model"], prompts, BATCH)
    assert [one.token_ids for one in context] == [one.token_ids for one in rows]


def test_a_hostile_trace_is_shown_and_does_nothing(walk: dict[str, Any]) -> None:
    prompt = rc.Prompt("x" + HOSTILE, HOSTILE, "harmful", category=HOSTILE)
    trace = rc.Trace(prompt, (1, 2), None, HOSTILE, HOSTILE, True, "refused")
    page = Traces((trace,))._repr_html_()
    closing = replace(walk["cliff"], name=HOSTILE, closing=(HOSTILE,))
    curves = tuple(replace(curve, subject=HOSTILE) for curve in closing.curves)
    for text in (page, replace(closing, curves=curves)._repr_html_()):
        assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
        assert 'onload="' not in text
        text.encode()


def test_a_chart_styles_nothing_around_it(walk: dict[str, Any], tmp_path: Path) -> None:
    chart = walk["cliff"].plot()
    style = re.search(r"<style>(.*?)</style>", chart.markup, re.S)
    assert style is not None
    rules = [line for line in style[1].splitlines() if line]
    assert [line for line in rules if not line.startswith((".refusal-cliff", "@media"))] == []
    assert all(
        one.strip().startswith(".refusal-cliff")
        for line in rules
        if not line.startswith("@")
        for one in line.partition("{")[0].split(",")
    )
    assert chart.save(tmp_path / "c.svg").read_text().startswith("<svg xmlns=")
    assert (
        len({re.findall(r' id="([^"]+)"', c.markup)[0] for c in (chart, walk["probes"].plot())})
        == 2
    )


def test_without_pandas_the_remedy_is_named(
    walk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(rc.RefusalCliffError, match="pip install pandas"):
        walk["cliff"].to_pandas()


def test_examples_are_selected_trained_on_and_the_ablation_is_written(
    walk: dict[str, Any], tmp_path: Path
) -> None:
    model, probes = walk["model"], walk["probes"]
    examples, benign = rc.organism_examples(12)
    wrote = rc.ask(model, [example.prompt for example in examples], BATCH)
    chosen = rc.select_examples(model, examples, wrote, probes, fraction=0.25)
    assert isinstance(chosen, Selection) and len(chosen.examples) == 3
    with pytest.raises(rc.RefusalCliffError, match="has no trace"):
        rc.select_examples(model, examples, wrote[:3], probes)
    config = rc.RepairConfig(steps=1, batch_size=2)
    repaired = rc.train(model, chosen.examples, benign, tmp_path / "adapter", config)
    assert repaired.fingerprint != model.fingerprint
    sides = {"before": walk["traces"], "after": walk["without"]}
    out = rc.export(model, walk["heads"], tmp_path / "served", **sides)
    assert (out / "adapter_config.json").is_file()
    assert f"{len(walk['traces'])} prompts" in (out / "README.md").read_text()


def test_find_heads_takes_what_the_search_of_a_run_takes(
    walk: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that is proven on traces after those it was chosen by; else the ranking."""
    model, fitting, probe = walk["model"], walk["fitting"], walk["probes"].chosen
    rows = walk["heads"].rows
    monkeypatch.setattr(find, "measure_on_traces", lambda *_, **__: list(rows))
    assert len(find.explained(list(fitting))) < find.JOINT_TRACES + find.LEAST_DECIDING
    assert walk["heads"].method == "direct"
    searched = find.search_sets(
        model,
        rows,
        fitting,
        walk["traces"][:40],
        probe,
        fractions=(0.01, 0.03),
        most=20,
        joint_traces=10,
        candidates=4,
    )
    found = find.find_heads(model, fitting, probe, most=20, joint_traces=10, candidates=4)
    assert found.chosen == find.taken_out(rows, searched.chosen)
    assert (found.method == "joint effect") == (searched.chosen is not None)
    assert searched.reverse.mean < 0


@pytest.fixture
def run(walk: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """A run folder with the files of two models."""
    from refusal_cliff.cliff.scores import write_scores
    from refusal_cliff.probe.files import write_probes

    probes, model = walk["probes"], walk["model"]
    scores = rc.score_traces(model, walk["traces"], probes)
    for name in ("model", "other"):
        folder = tmp_path / name
        folder.mkdir()
        write_probes(folder / "probes.safetensors", folder / "probes.json", probes)
        write_scores(folder / "scores.parquet", scores)
        write_measured(folder / "cliff.parquet", folder / "cliff.json", walk["cliff"].measured)
    yield tmp_path


def test_a_run_is_opened_without_its_model(walk: dict[str, Any], run: Path) -> None:
    opened = rc.open_run(run, "model")
    assert isinstance(opened.cliff, Cliff)
    assert opened.cliff.measured == walk["cliff"].measured
    assert opened.probes.layer == walk["probes"].layer
    assert opened.cliff.name == "tiny"
    assert "not finished" in repr(opened)
    with pytest.raises(rc.RefusalCliffError, match=r"model/ablation\.json.*not run"):
        _ = opened.heads
    with pytest.raises(rc.RefusalCliffError, match="It has: model, other"):
        rc.open_run(run)
    with pytest.raises(rc.RefusalCliffError, match="folder of a run"):
        rc.open_run(run / "model")
    for name in NEEDED:
        (run / "other" / name).unlink()
    assert rc.open_run(run).model == "model"


def test_a_finished_run_says_what_it_found(run: Path) -> None:
    summary = example_summary().model_copy(update={"model": "other"})
    write_summary(run / "summary.json", summary)
    opened = rc.open_run(run)  # the main one of several
    assert opened.model == "other"
    assert opened.summary == summary
    assert findings_of(summary)[0].question in repr(opened)


def test_a_damaged_cliff_is_refused(run: Path) -> None:
    (run / "model/cliff.json").write_text('{"layer": 8, "cliff_by_layer": []}')
    with pytest.raises(rc.RefusalCliffError, match=r"cliff\.json: group.* It is damaged"):
        read_measured(run / "model/cliff.parquet", run / "model/cliff.json")


def test_a_chart_has_a_short_repr() -> None:
    assert repr(Chart("a chart", "<svg></svg>")) == "<chart: a chart; .save('chart.svg') writes it>"


def test_runs_stand_beside_each_other(run: Path, walk: dict[str, Any]) -> None:
    from typer.testing import CliRunner

    from refusal_cliff.cli import app
    from refusal_cliff.data.traces import write_traces

    kept, refusing = list(walk["traces"]), list(walk["without"])
    write_traces(run / "model" / "traces-test.parquet", kept)
    write_traces(run / "other" / "traces-test.parquet", refusing)
    (run / "manifest.json").write_text("{}")
    out = run / "beside"
    line = ["compare", str(run / "model"), str(run / "other"), "--out", str(out)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    tables = json.loads((out / "comparison.json").read_text())["tables"]
    changed = tables["What changed on the same prompts"]["rows"]
    (attacks,) = [cells for name, cells in changed.items() if "attack success" in name]
    asked = [trace for trace in kept if trace.prompt.label == "harmful"]
    harmful = [trace for trace in refusing if trace.prompt.label == "harmful"]
    worked = [sum(t.verdict == "complied" for t in side) for side in (asked, harmful)]
    assert attacks[0]["value"] == pytest.approx(worked[0] / len(asked))
    assert attacks[1]["value"] == pytest.approx(worked[1] / len(harmful))
    assert attacks[2]["interval"][1] < 0
    turned = tables["How far the refusal direction turned"]["rows"]
    assert all(cell["value"] == pytest.approx(1.0) for (cell,) in turned.values())
    moves = tables["What became of each harmful prompt"]["rows"]
    assert all(sum(c["value"] for c in cells) == pytest.approx(1.0) for cells in moves.values())
    page = (out / "comparison.html").read_text()
    assert re.findall(r"<script>(.*?)</script>", page, re.S) == [page_script()]
    assert page.count("<svg") == 2
    again = CliRunner().invoke(app, line)
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(app, [*line[:2], str(run), "--out", str(out)])
    assert other.exit_code == 1
