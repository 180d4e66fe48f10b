"""The terminal view: a table on a terminal, plain lines elsewhere, never control characters."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.wording import Finding
from refusal_cliff.live import (
    LiveView,
    headline_text,
    plain,
    print_error,
    print_findings,
)
from refusal_cliff.progress import meanwhile


def console(*, terminal: bool, height: int = 30) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100, height=height), text


def show(view: LiveView) -> None:
    view.planned(["tiny/probe", "tiny/trace", "report"])
    view.stage_started("tiny/probe")
    view.progress("tiny/probe", 3, 10)
    view.stage_finished("tiny/probe", 1.25, {"auroc": 0.99812, "layer": 7, "ok": True})
    view.stage_skipped("tiny/trace", {"says": "[bold]\x1b[2J"})


def test_without_a_terminal_each_stage_is_a_line() -> None:
    target, text = console(terminal=False)
    with LiveView(target, "demo") as view:
        show(view)
    assert text.getvalue().splitlines() == [
        "demo",
        "tiny/probe ...",
        "tiny/probe: 1.2 s auroc 0.998 · layer 7 · ok yes",
        "tiny/trace: kept from an earlier run; says [bold]�[2J",
    ]


def test_on_a_terminal_the_last_table_has_every_stage() -> None:
    target, text = console(terminal=True, height=8)
    with LiveView(target, "demo") as view:
        show(view)
        view.planned([f"stage-{i}" for i in range(20)])
    assert all(f"stage-{i}" in text.getvalue() for i in range(20))


def test_the_view_closes_when_a_run_fails() -> None:
    target, _ = console(terminal=True)
    try:
        with LiveView(target, "demo") as view:
            view.planned(["a"])
            view.stage_started("a")
            raise RefusalCliffError("no")
    except RefusalCliffError:
        target.print("still works")


def test_steps_follow_work_that_is_no_pipeline() -> None:
    target, text = console(terminal=False)
    with LiveView(target, "train") as view:
        for stage in ("align", "damage"):
            for done in (1, 2):
                view.step(stage, done, 2)
    assert "align: 0.0 s" in text.getvalue()
    assert text.getvalue().count("...") == 2


def test_a_log_says_where_long_work_is_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "run") as view:
        for done in range(1, 10):
            now[0] += 11
            view.step("align", done, 20)
    assert text.getvalue().splitlines() == [
        "run",
        "align ...",
        "align: 4 of 20 · 5.5/min · 3 min left",
        "align: 7 of 20 · 5.5/min · 2 min left",
        "align: 88.0 s done 9",
    ]


def test_a_log_says_what_one_long_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "run") as view:
        view.planned(["ask", "judge"])
        view.stage_started("ask")
        for tokens in (100, 200, 300):  # of a first batch, before any count
            now[0] += 16
            meanwhile(f"{tokens} tokens")
        view.progress("ask", 8, 16)
        now[0] += 31
        meanwhile("400 tokens")
    meanwhile("nobody listens any more")
    assert text.getvalue().splitlines()[2:4] == [
        "ask: 200 tokens",
        "ask: 8 of 16 · 400 tokens",
    ]


def test_work_of_unknown_length_is_counted_and_ends_with_the_view() -> None:
    target, text = console(terminal=False)
    with LiveView(target, "trace") as view:
        view.step("traces", 8)
        view.step("traces", 12)
    assert text.getvalue().splitlines() == ["trace", "traces ...", "traces: 0.0 s done 12"]


def test_what_an_earlier_run_kept_is_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "run") as view:
        view.stage_started("ask")
        for done in (1_000, 1_001, 1_002, 1_003):
            view.progress("ask", done, 1_010)
            now[0] += 20
        for done in (1, 3):  # the next part of the same stage
            now[0] += 20
            view.progress("ask", done, 50, note="part two")
    assert text.getvalue().splitlines()[2:4] == [
        "ask: 1,002 of 1,010 · 3/min · 3 min left",
        "ask: 1 of 50 · part two",
    ]


@pytest.mark.parametrize("total", [None, 1_000])
def test_what_is_told_in_two_calls_at_once_is_no_pace(
    total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on tells 0 steps of an unknown number first, then the step it is at."""
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "train") as view:
        view.step("steps", 0, total)
        now[0] += 20 if total is None else 0.5
        for done in (501, 502, 503, 504):
            view.step("steps", done, 1_000, "loss 1.2")
            now[0] += 20
    told = [line for line in text.getvalue().splitlines() if " of 1,000" in line]
    assert told and all("· 3/min · 2.8 h left · loss 1.2" in line for line in told)


def test_work_that_is_told_often_has_a_pace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "train") as view:
        for done in range(400):
            view.step("steps", done, 10_000)
            now[0] += 0.1
    assert "steps: 301 of 10,000 · 10/s · 16 min left" in text.getvalue()


def test_a_count_ends_when_other_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("refusal_cliff.live.time.monotonic", lambda: now[0])
    target, text = console(terminal=False)
    with LiveView(target, "select") as view:
        for rows in (100, 77_500):
            view.step("rows read", rows)
            now[0] += 31
        view.step("shards scored", 1, 9)
        now[0] += 3_600
        view.step("shards scored", 9, 9)
    assert text.getvalue().splitlines()[1:] == [
        "rows read ...",
        "rows read: 77,500 · 2,497/s",
        "rows read: 31.0 s done 77,500",
        "shards scored ...",
        "shards scored: 9 of 9 · 0.13/min · 0 s left",
        "shards scored: 3600.0 s",
    ]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert plain("a\x1b[31m\rb\nc") == "a�[31m�b\nc"


def test_numbers_are_short() -> None:
    assert headline_text({"n": 12345, "x": 0.123456, "t": "a"}) == "n 12,345 · x 0.123 · t a"


def test_findings_and_errors_show_markup_as_text() -> None:
    target, text = console(terminal=True)
    print_findings(target, [Finding("[b]?", "[i]x", False), Finding("n", "y", None)])
    print_error(target, "[red]row 3")
    for part in ("[b]?", "[i]x", "[red]row 3"):
        assert part in text.getvalue()


@pytest.mark.parametrize("path", ["{x}", "a{", "}{task}", "{0.__class__}", "[bold]{x!r}"])
def test_a_path_is_shown_as_it_is(path: str) -> None:
    target, text = console(terminal=True)
    with LiveView(target, f"trace {path}") as view:
        view.step(f"read {path}", 3, note=path)
        view.progress(f"read {path}", 4, None, note=path)
    assert f"trace {path}" in text.getvalue()
    assert f"read {path}" in text.getvalue()
