"""Every known shape of a row says the same in every reader; the cases of others come out right."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.cliff.source import read_trace
from refusal_cliff.data.fields import BadRow, checked_label
from refusal_cliff.data.reading import Reading, source_rows, usable
from refusal_cliff.data.said import EMPTY, FILTERED, NO_ANSWER, REFUSAL_FIELD, TOOL_CALL, told_of
from refusal_cliff.data.shapes import example_of_row, prompt_of_row, trace_of_row
from refusal_cliff.data.types import LeftOut, SafetyExample, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.settings import LABELS
from refusal_cliff.thinking.formats import KNOWN, markers_of

CASES = Path(__file__).parents[2] / "shared" / "cases"
FILE = Path("rows.jsonl")
READING = Reading(label="harmful")
ASKED, THOUGHT, SAID = "Copy it", "It harms.", "Sorry, no."
USER = {"role": "user", "content": ASKED}
TOLD = {"role": "assistant", "content": SAID}
ANSWER = {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT}
CHOICES = {"choices": [{"message": ANSWER, "finish_reason": "stop"}]}
BATCH = {"custom_id": "q", "response": {"status_code": 200, "body": CHOICES}, "error": None}
SAME: dict[str, dict[str, Any]] = {
    "a batch with its request": {**BATCH, "body": {"messages": [USER]}},
    "a batch with its line of requests": {**BATCH, "request": {"body": {"messages": [USER]}}},
    "a batch with a prompt": {**BATCH, "prompt": ASKED},
    "what a server sent": {"prompt": ASKED, "response": CHOICES},
    "a message as answer": {"prompt": ASKED, "response": ANSWER},
    "parts as answer": {
        "prompt": [{"type": "text", "text": ASKED}],
        "thinking": THOUGHT,
        "response": [{"type": "text", "text": SAID}],
    },
    "Mistral's parts": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
                    {"type": "text", "text": SAID},
                ],
            },
        ]
    },
    "a thought by another name": {"prompt": ASKED, "chain_of_thought": THOUGHT, "response": SAID},
    "OpenRouter's details": {
        "prompt": ASKED,
        "response": {
            "content": SAID,
            "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}],
        },
    },
    "thinking as parts": {
        "prompt": ASKED,
        "thinking": [{"type": "text", "text": THOUGHT}],
        "response": SAID,
    },
    "a plain completion": {
        "prompt": ASKED,
        "response": {"choices": [{"text": f"<think>{THOUGHT}</think>{SAID}"}]},
    },
    "an empty system turn": {"messages": [{"role": "system", "content": " "}, USER, ANSWER]},
    "chat and answer apart": {"messages": [USER], "thinking": THOUGHT, "response": SAID},
    "our own": {"prompt": ASKED, "thinking": THOUGHT, "response": SAID, "closed": True},
    "a thought beside messages": {"messages": [USER, {**TOLD}], "thinking": THOUGHT},
    "a thought beside what a server sent": {
        **{"prompt": ASKED, "reasoning_content": THOUGHT},
        "response": {"choices": [{"message": {**TOLD}}]},
    },
    "messages as JSON": {"messages": json.dumps([USER, ANSWER])},
    "a request and an answer as JSON": {
        **{"prompt": json.dumps([USER]), "response": json.dumps(ANSWER)}
    },
    "a last message that waits for the answer": {
        **{"messages": [USER, {"role": "assistant", "content": ""}]},
        **{"thinking": THOUGHT, "response": SAID},
    },
    "a second column for the answer": {
        **{"prompt": ASKED, "thinking": THOUGHT, "response": "", "completion": SAID}
    },
    "parts in place of a content": {
        "messages": [
            USER,
            {
                **{"role": "assistant", "content": ""},
                "parts": [
                    {"type": "step-start"},
                    {"type": "reasoning", "text": THOUGHT},
                    {"type": "text", "text": SAID},
                ],
            },
        ]
    },
    "a message as a part": {
        **{"prompt": ASKED, "thinking": THOUGHT},
        "output": [{"type": "message", "content": [{"type": "output_text", "text": SAID}]}],
    },
    "parts by other names": {
        **{"prompt": ASKED, "thinking": THOUGHT, "response": [{"type": "Text", "content": SAID}]}
    },
    "harmony's thought as a message": {
        "messages": [
            USER,
            {"role": "assistant", "channel": "analysis", "content": THOUGHT},
            {"role": "assistant", "channel": "final", "content": SAID},
        ]
    },
    "a system prompt that says nothing": {
        **{"prompt": ASKED, "thinking": THOUGHT, "response": SAID, "history": []},
        **{"system": [{"type": "text", "text": ""}], "system_prompt": False},
    },
    "one answer in a list of them": {
        **{"prompt": ASKED, "generations": [f"<think>{THOUGHT}</think>{SAID}"]}
    },
    "an answer of vLLM in a list of them": {
        "prompt": ASKED,
        "outputs": [{"text": f"<think>{THOUGHT}</think>{SAID}", "finish_reason": "stop"}],
    },
    "the same answer in messages and in a column": {
        **{"messages": [USER, ANSWER], "response": f" {SAID}\n", "answer": "42"}
    },
    "the same thought in two fields": {
        **{"prompt": ASKED, "thinking": THOUGHT, "reasoning": f" {THOUGHT}", "response": SAID}
    },
    "a setting beside a thought": {
        **{"prompt": ASKED, "reasoning": "high", "thinking": THOUGHT, "response": SAID}
    },
    "a switch of another type beside it": {
        **{"prompt": ASKED, "reasoning": True, "cot": THOUGHT, "response": SAID},
        **{"thinking": {"type": "enabled", "budget_tokens": 9}},
    },
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("small", tiny_model(), tiny_tokenizer())


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_all_shapes_say_the_same_everywhere(row: dict[str, Any], subject: Subject) -> None:
    assert prompt_of_row(FILE, 1, row, READING).text == ASKED
    record = trace_of_row(FILE, 1, row, READING)
    assert (record.prompt.text, record.thinking, record.response) == (ASKED, THOUGHT, SAID)
    example = example_of_row(FILE, 1, row, READING)
    assert (example.thinking, example.response) == (THOUGHT, SAID)
    trace = read_trace(FILE, 1, row, subject, READING)
    assert (trace.thinking, trace.response.strip(), trace.verdict) == (THOUGHT, SAID, "refused")
    assert record.prompt.id == ("q" if "custom_id" in row else "rows-1")


def test_no_other_judge_steps_in_for_one(subject: Subject) -> None:
    row = {"prompt": ASKED, "thinking": THOUGHT, "response": SAID, "label": "harmful"}
    assert read_trace(FILE, 1, row, subject).verdict == "refused"
    seen = {**row, "verdict": "unscored", "judge": "wildguard"}
    assert read_trace(FILE, 1, seen, subject).verdict == "unscored"


@pytest.mark.parametrize(
    ("answer", "finish", "status"),
    [
        ({"content": None, "refusal": "I cannot."}, "stop", REFUSAL_FIELD),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", TOOL_CALL),
        ({"content": ""}, "content_filter", FILTERED),
        ({"content": "\u200b\n"}, "stop", EMPTY),
        ({"content": "<think>Hm.</think><|im_end|>"}, "stop", NO_ANSWER),
    ],
)
def test_what_is_no_answer_is_known(answer: dict[str, Any], finish: str, status: str) -> None:
    choice = {"message": {"role": "assistant", **answer}, "finish_reason": finish}
    row = {"prompt": ASKED, "response": {"body": {"choices": [choice]}}}
    assert told_of(trace_of_row(FILE, 1, row, READING)).status == status


@pytest.mark.parametrize(
    ("beside", "status"),
    [
        ({}, EMPTY),
        ({"response": []}, EMPTY),
        ({"reasoning": "Hm."}, NO_ANSWER),
        ({"reasoning": "Hm.", "finish_reason": "length"}, ""),
        ({"refusal": "I cannot."}, REFUSAL_FIELD),
        ({"tool_calls": [{"id": "1"}], "finish_reason": "tool_calls"}, TOOL_CALL),
        ({"finish_reason": "content_filter"}, FILTERED),
    ],
)
def test_what_stands_beside_an_empty_cell_is_read(beside: dict[str, Any], status: str) -> None:
    row = {"prompt": ASKED, "response": None, **beside}
    record = trace_of_row(FILE, 1, row, READING)
    assert (told_of(record).status, record.complete) == (
        status,
        status != "" and status != FILTERED,
    )


def test_a_filter_that_leaves_no_message_is_known() -> None:
    row = {"prompt": ASKED, "response": {"choices": [{"finish_reason": "content_filter"}]}}
    assert told_of(trace_of_row(FILE, 1, row, READING)).status == FILTERED


@pytest.mark.parametrize(
    "answer",
    [
        {"response": SAID, "stop_reason": "max_tokens"},
        {"response": SAID, "done_reason": "length"},
        {"response": SAID, "finishReason": "MAX_TOKENS"},
        {"response": {"role": "assistant", "content": SAID, "stop_reason": "max_tokens"}},
        {"output": {"choices": [{"message": {"content": SAID}, "stop_reason": "max_tokens"}]}},
        {"messages": [USER, {**TOLD, "finish_reason": "length"}]},
        {"messages": [USER, TOLD], "finish_reason": "length"},
        {"response": SAID, "stopReason": "maxPredictedTokensReached"},
        {"response": SAID, "finish_reason": {"reason": "length"}},
        {"response": SAID, "finish_reason": ["length"]},
        {"response": SAID, "finish_reason": "userStopped"},
    ],
)
def test_a_cut_is_known_by_any_of_its_names(answer: dict[str, Any]) -> None:
    assert not trace_of_row(FILE, 1, {"prompt": ASKED, **answer}, READING).complete
    ended = {"finish_reason": "stop", "stop_reason": "max_tokens"}  # a string that stopped it
    assert trace_of_row(FILE, 1, {"prompt": ASKED, "response": SAID, **ended}, READING).complete


@pytest.mark.parametrize("switch", ["on", "off", "none", "Medium", "enabled", "true", False])
def test_a_switch_of_reasoning_is_no_thought(switch: str) -> None:
    row = {"prompt": ASKED, "reasoning": switch, "output": f"<think>{THOUGHT}</think>{SAID}"}
    record = trace_of_row(FILE, 1, row, READING)
    assert (record.thinking, record.response) == (THOUGHT, SAID)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({**BATCH, "prompt": ASKED, "response": {"status_code": 500, "body": {}}}, "status 500"),
        ({"prompt": ASKED, "response": None, "error": {"code": "x"}}, "the request failed"),
        (BATCH, "none of the columns prompt"),
        ({"prompt": ASKED, "response": {"message": {}}}, "no message with a content"),
        ({"prompt": ASKED, "response": SAID, "system": "Be kind."}, "system prompt"),
        ({"prompt": ASKED, "response": SAID, "thinking": [7]}, "thinking is"),
        (
            {"prompt": ASKED, "response": SAID, "cot": "Hm.", "thinking": [7]},
            "is [7] (in thinking)",
        ),
        ({"prompt": ASKED, "response": SAID, "system_prompt": "Be kind."}, "system prompt"),
        ({**BATCH, "body": {"messages": [USER], "system": "Be kind."}}, "system prompt"),
        ({"prompt": ASKED, "response": SAID, "history": [["Hi", "Hello"]]}, "earlier turns"),
        ({"prompt": ASKED, "response": 42}, "'response' is 42, neither a text nor"),
        ({"prompt": ASKED, "response": [{"token": "No", "logprob": -0.1}]}, "'token', 'logprob'"),
        ({"prompt": ASKED, "response": [{"type": "image"}]}, "a part of the kind 'image'"),
        ({"prompt": ASKED, "response": {"choices": None, "error": "busy"}}, "failed: 'busy'"),
        ({"prompt": ASKED, "response": {"choices": [{}, {}]}}, "2 answers"),
        ({"prompt": ASKED, "generations": [SAID, "Yes."]}, "2 answers"),
        ({"messages": [USER, ANSWER], "response": "Yes."}, "two answers, in its messages and in"),
        ({"messages": str([USER, TOLD])}, "as Python prints them"),
        ({"prompt": ASKED, "response": SAID, "label": "bad"}, "--label"),
        ({"prompt": ASKED, "response": SAID, "score": "high"}, "'score' is 'high'"),
        ({"prompt": ASKED, "response": SAID, "score": float("inf")}, "'score' is inf"),
        ({"prompt": ASKED, "response": SAID, "verdict": ["refused"]}, "the verdict is"),
        ({"prompt": ASKED, "response": SAID, "token_ids": [1, -1], "spans": None}, "holds -1"),
        ({"prompt": ASKED, "response": SAID, "token_ids": [1, 2.0], "spans": None}, "holds 2.0"),
        ({"prompt": ASKED, "response": SAID, "token_ids": [1], "spans": {"total": 1}}, "'spans'"),
    ],
)
def test_other_rows_say_what_mends_them(row: dict[str, Any], wrong: str, subject: Subject) -> None:
    with pytest.raises(RefusalCliffError, match=r".") as caught:
        read_trace(FILE, 1, row, subject, READING)
    assert wrong in str(caught.value)


def test_labels_of_public_data_are_read() -> None:
    for known, label in LABELS.items():
        for name in (known, known.upper()):
            assert prompt_of_row(FILE, 1, {"prompt": "a", "label": name}).label == label
            assert checked_label(name) == label
    for value, label in ((1, "harmful"), (0, "benign"), (True, "harmful"), (0.0, "benign")):
        assert prompt_of_row(FILE, 1, {"prompt": "a", "label": value}).label == label
    with pytest.raises(RefusalCliffError, match="Unknown label 'odd'"):
        checked_label("odd")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"response": "\u200b"}, "empty"),
        ({"response": f"<think>{THOUGHT}</think>\n\u2060\ufeff"}, "empty"),
        ({"response": "", "thinking": THOUGHT}, "empty"),
        ({"response": "", "thinking": THOUGHT, "tool_calls": [{"id": "1"}]}, "empty"),
        ({"response": '<tool_call>\n{"name": "f"}\n</tool_call>'}, "empty"),
        ({"response": f"<think>{THOUGHT}"}, "thinking never closes"),
        ({"messages": [USER, {**TOLD, "finish_reason": "length"}]}, "cut off"),
    ],
)
def test_nobody_trains_on_what_is_no_answer(answer: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        example_of_row(FILE, 1, {"prompt": ASKED, **answer}, READING)
    assert caught.value.reason == reason


def test_different_thoughts_of_two_fields_are_both_kept() -> None:
    row = {"prompt": ASKED, "reasoning": "It asks.", "thinking": THOUGHT, "response": SAID}
    assert trace_of_row(FILE, 1, row, READING).thinking == f"It asks.\n\n{THOUGHT}"


def test_the_column_of_thinking_that_a_user_names_is_the_one() -> None:
    row = {"prompt": ASKED, "mine": THOUGHT, "reasoning_content": "Other.", "response": SAID}
    reading = Reading(label="harmful", columns={"thinking": "mine"})
    assert trace_of_row(FILE, 1, row, reading).thinking == THOUGHT


def test_columns_and_markers_that_a_user_names() -> None:
    reading = Reading("benign", {"text": "Goal", "response": "Said", "id": "key"})
    row = {"Goal": ASKED, "Said": "«Hm.»No.", "key": 7, "messages": [{"role": "user"}]}
    record = trace_of_row(FILE, 1, row, reading)
    assert (record.prompt.id, record.prompt.text, record.response) == ("7", ASKED, "«Hm.»No.")
    reading = Reading("benign", reading.columns, (markers_of("« »"), *KNOWN))
    record = trace_of_row(FILE, 1, row, reading)
    assert (record.thinking, record.response) == ("Hm.", "No.")
    with pytest.raises(RefusalCliffError, match=r"it has no column 'Goal'.*--column text=COLUMN"):
        trace_of_row(FILE, 1, {"prompt": "a"}, reading)


def read_case(file: Path, subject: Subject) -> dict[str, list[Any]]:
    makers = {
        "judge": partial(trace_of_row, file, reading=READING),
        "select": partial(example_of_row, file, reading=READING.of_model(subject.format)),
        "trace": partial(read_trace, file, subject=subject, reading=READING),
    }
    rows = list(source_rows(file, READING))
    return {name: [row for _, row in usable(file, rows, make)] for name, make in makers.items()}


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases beside the checkout")
@pytest.mark.parametrize("name", ["deep", "no-response", "nul", "surrogate"])
def test_one_bad_row_among_seven_is_listed(name: str, subject: Subject) -> None:
    for found in read_case(CASES / "rows" / f"{name}.jsonl", subject).values():
        assert [isinstance(row, LeftOut) for row in found] == [n == 3 for n in range(7)]


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases beside the checkout")
@pytest.mark.parametrize("name", ["label-unsafe", "list-content"])
def test_one_odd_row_among_seven_is_read(name: str, subject: Subject) -> None:
    for found in read_case(CASES / "rows" / f"{name}.jsonl", subject).values():
        assert not any(isinstance(row, LeftOut) for row in found)


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases beside the checkout")
@pytest.mark.parametrize("name", ["marco", "openr1", "reasoning", "s1", "sharegpt-system"])
def test_the_thought_is_never_part_of_the_answer(name: str, subject: Subject) -> None:
    found = read_case(CASES / "shapes" / f"{name}.jsonl", subject)
    for row in (*found["judge"], *found["select"]):
        if not isinstance(row, LeftOut):
            assert isinstance(row, Trace | SafetyExample)
            assert row.thinking.startswith("The request is to slash")
            assert row.response == "No, I will not help with that. It is damage to property."


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases beside the checkout")
@pytest.mark.parametrize("name", ["thinking-twice", "thinking-line-ends"])
def test_a_thought_stands_once_however_it_is_told(name: str, subject: Subject) -> None:
    traces = read_case(CASES / f"{name}.jsonl", subject)["trace"]
    seams = {trace.token_ids[trace.spans.thinking : trace.spans.closing] for trace in traces}
    assert len(seams) == 1
    alike = [trace for trace in traces if "\r" not in trace.thinking]
    assert len({(trace.token_ids, trace.spans) for trace in alike}) == 1


def test_commands_that_read_rows_take_the_same_options() -> None:
    reads = {
        "generate": "label column split",
        "judge": "label column split thinking-markers",
        "evaluate": "label column split thinking-markers",
        "trace": "label column split thinking-markers",
        "select": "label column split thinking-markers",
        "repair": "label column split thinking-markers",
        "train": "column split thinking-markers",
        "audit": "column split",
        "check": "label column",
    }
    for command, options in reads.items():
        told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(f"--{option}" in told for option in options.split()), command


def test_judge_reads_every_shape_and_lists_the_rest(tmp_path: Path) -> None:
    rows = [*SAME.values(), {"prompt": "\ud800", "response": "No."}, {"prompt": "a"}]
    rows = [{key: row[key] for key in row if key != "custom_id"} for row in rows]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["judge", "--traces", str(file), "--out", str(tmp_path / "out"), "--label", "unsafe"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    judged = [json.loads(line) for line in (tmp_path / "out/traces.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in judged] == ["refused"] * len(SAME)
    left = [json.loads(line) for line in (tmp_path / "out/left-out.jsonl").read_text().splitlines()]
    assert [row["row"] for row in left] == [len(SAME) + 1, len(SAME) + 2]
