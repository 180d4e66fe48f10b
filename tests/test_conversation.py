"""Which text of a row is its request, and which its answer, where it holds more of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refusal_cliff.data.fields import BadRow
from refusal_cliff.data.reading import Reading
from refusal_cliff.data.said import FILTERED, REFUSAL_FIELD, TOOL_CALL, told_of
from refusal_cliff.data.shapes import prompt_of_row, trace_of_row
from refusal_cliff.data.types import Trace

FILE = Path("rows.jsonl")
ASKED, THOUGHT, SAID, OTHER = "Copy it", "It harms, no.", "Sure. Step one: mix.", "Sorry, I can't."
WROTE = f"<think>{THOUGHT}</think>{SAID}"
USER = {"role": "user", "content": ASKED}
RENDERED = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"


def told(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", **message}


def trace(row: dict[str, Any], **columns: str) -> Trace:
    return trace_of_row(FILE, 1, row, Reading(label="harmful", columns=columns))


@pytest.mark.parametrize(
    "row",
    [
        # The data's own answer beside the model's.
        {"problem": ASKED, "solution": "s", "answer": "5", "generations": [WROTE]},
        {"question": ASKED, "answer": "18", "responses": [WROTE]},
        {"question": ASKED, "answer": "mix.", "output": WROTE},
        {"prompt": ASKED, "answer": OTHER, "completion": WROTE},
        {
            "messages": [USER, told({"content": WROTE})],
            "answer": "5",
            "generations": [WROTE, OTHER],
        },
        # The same answer twice, once with its thought.
        {"prompt": ASKED, "response": SAID, "completion": WROTE},
        {"messages": [USER, told({"content": SAID})], "response": WROTE},
        {
            "messages": [USER, told({"content": "Sure. Step"})],
            "thinking": THOUGHT,
            "response": SAID,
        },
        # JSON of what a server sent, in a cell.
        {"prompt": ASKED, "response": json.dumps({"choices": [{"message": {"content": WROTE}}]})},
        {
            "prompt": ASKED,
            "response": json.dumps([{"text": THOUGHT, "thought": True}, {"text": SAID}]),
        },
        {
            "prompt": ASKED,
            "response": json.dumps(
                [{"reasoningContent": {"reasoningText": {"text": THOUGHT}}}, {"text": SAID}]
            ),
        },
        {"prompt": ASKED, "response": {"reasoning": THOUGHT, "answer": SAID}},
        {
            "prompt": ASKED,
            "response": {"content": SAID, "additional_kwargs": {"reasoning_content": THOUGHT}},
        },
        {
            "prompt": ASKED,
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]},
                {"type": "message", "content": [{"type": "output_text", "text": SAID}]},
            ],
        },
        {
            "prompt": ASKED,
            "thinking": THOUGHT,
            "response": told({"content": SAID, "thinking": None}),
        },
        {
            "messages": [
                USER,
                told({"channel": "analysis", "content": [{"type": "text", "text": THOUGHT}]}),
                told({"channel": "final", "content": [{"type": "text", "text": SAID}]}),
            ]
        },
        # Beside an answer in messages, other columns may hold anything.
        {"messages": [USER, told({"content": WROTE})], "output": {"score": 1}, "completion": 3},
        {"messages": [USER, told({"content": ""})], "response": WROTE, "error": None},
        {"messages": [USER, told({"content": WROTE})], "choices": ["A", "B"]},
        {"prompt": ASKED, "response": WROTE, "choices": ["A", "B"], "output": 0.9},
        {"prompt": ASKED, "response": WROTE, "completion": 3, "samples": [0.1, 0.2]},
        {"prompt": ASKED, "response": "", "response_raw": WROTE},
        # Items of OpenAI's responses as messages.
        {
            "messages": [
                {"type": "message", **USER},
                {"type": "message", **told({"content": WROTE}), "stop_reason": "end_turn"},
            ]
        },
        # What stands around the model's text.
        {"prompt": ASKED, "response": f"<|im_start|>assistant\n{WROTE}<|im_end|>"},
        {"prompt": ASKED, "response": WROTE, "closed": True},
        {"instruction": ASKED, "text": f"### Instruction:\n{ASKED}\n{WROTE}", "response": WROTE},
        {"prompt": ASKED, "response": WROTE, "refusal": "0"},
        {"prompt": ASKED, "response": WROTE, "refusal": "not refused", "reasoning": "nan"},
    ],
)
def test_one_answer_is_certain(row: dict[str, Any]) -> None:
    found = trace(row)
    assert (found.prompt.text, found.thinking, found.response) == (ASKED, THOUGHT, SAID)
    assert found.complete and told_of(found).status == ""


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": ASKED, "response": OTHER, "completion": SAID}, "two answers"),
        ({"question": ASKED, "answer": "18", "output": WROTE}, "two answers"),
        ({"prompt": ASKED, "output": "18", "generations": [WROTE]}, "two answers"),
        ({"prompt": ASKED, "response": SAID, "responses": [SAID, OTHER]}, "2 answers"),
        ({"problem": ASKED, "answer": "5", "generations": [WROTE, OTHER]}, "2 answers"),
        *(
            (
                {"messages": [USER, told({"content": "", **more})], "generations": ["a", "b"]},
                "2 ans",
            )
            for more in ({}, {"reasoning_content": THOUGHT}, {"tool_calls": [{"id": "1"}]})
        ),
        ({"messages": [USER, told({"content": "Sure, here"})], "output": OTHER}, "two answers"),
        ({"messages": [USER, told({"content": "Sure, here"})], "generations": [OTHER]}, "two ans"),
        (
            {
                "messages": [USER, told({"content": "Sure, here"})],
                "response": {"choices": [{"message": {"content": OTHER}}]},
            },
            "two answers",
        ),
        (
            {
                "body": {"messages": [USER, told({"content": "<think>\n"})]},
                "response": {"choices": [{"message": {"content": SAID}}]},
            },
            "begins the answer",
        ),
        ({"question": ASKED, "text": "A passage.", "response": SAID}, "two requests"),
        ({"instruction": "Answer.", "question": ASKED, "answer": SAID}, "two requests"),
        ({"question": ASKED, "context": "A passage.", "response": SAID}, "not told how"),
        ({"prompt": ASKED, "input": "Guten Tag", "response": SAID}, "not told how"),
        *(
            ({"prompt": ASKED, "response": printed}, "as Python prints")
            for printed in (
                str([{"content": "I can't", "role": "assistant"}]),
                str([{"signature": "s", "thinking": THOUGHT, "type": "thinking"}]),
                "[ThinkingBlock(signature='s', thinking='t'), TextBlock(text='a')]",
                "ChatCompletionMessage(content='a', refusal=None)",
                "content='a' additional_kwargs={}",
            )
        ),
    ],
)
def test_a_row_that_leaves_it_open_is_refused(row: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BadRow, match=wrong):
        trace(row)


def test_a_user_says_which_column_counts() -> None:
    both = {"prompt": ASKED, "response": OTHER, "completion": WROTE, "text": "A passage."}
    found = trace(both, response="completion", text="prompt")
    assert (found.prompt.text, found.response) == (ASKED, SAID)
    assert trace({"instruction": [USER], "output": SAID}, text="instruction").response == SAID
    named = trace({"instruction": ASKED, "context": "c", "output": SAID}, category="context")
    assert (named.prompt.text, named.prompt.category) == (ASKED, "c")
    below = {"instruction": "Translate it.", "input": "Guten Tag", "output": SAID}
    assert trace(below, text="instruction").prompt.text == "Translate it.\n\nGuten Tag"
    assert trace({**below, "context": "c"}, text="output", response="input").response == "Guten Tag"


@pytest.mark.parametrize(
    "ended",
    [
        {"stop_type": "limit"},
        {"stopped_limit": True},
        {"done": False},
        {"finished": False},
        {"status": "incomplete"},
        {"incomplete_details": {"reason": "max_output_tokens"}},
        {"stop_reason": "pause_turn"},
        {"stop_reason": "NOT_FINISHED"},
        {"finish_reason": "length", "complete": True},
        {"meta_info": {"finish_reason": {"type": "length", "length": 5}}},
        {"response_metadata": {"finish_reason": "length"}},
    ],
)
def test_an_answer_that_did_not_end_is_not_complete(ended: dict[str, Any]) -> None:
    assert not trace({"prompt": ASKED, "response": SAID, **ended}).complete
    held = {"content": SAID, **ended}
    assert not trace({"prompt": ASKED, "finish_reason": None, "response": held}).complete


def test_the_end_is_told_by_the_place_that_knows_it() -> None:
    messages = [USER, told({"content": SAID})]

    def inspect(reason: str) -> Trace:
        choice = {"message": told({"content": SAID}), "stop_reason": reason}
        return trace({"messages": messages, "output": {"choices": [choice]}})

    assert not inspect("max_tokens").complete
    assert told_of(inspect("content_filter")).status == FILTERED
    assert inspect("stop").complete
    sent = {"choices": [{"message": {"content": SAID}, "finish_reason": "length"}]}
    assert not trace({"prompt": ASKED, "finish_reason": "", "response": sent}).complete


def test_what_is_no_answer_is_not_replaced_by_the_right_one() -> None:
    called = [USER, told({"content": None, "tool_calls": [{"id": "1"}]})]
    assert told_of(trace({"messages": called, "answer": "18"})).status == TOOL_CALL
    assert trace({"question": ASKED, "response": "", "answer": "18"}).response == ""
    refused = trace({"prompt": ASKED, "response": None, "refusal": OTHER})
    assert told_of(refused).status == REFUSAL_FIELD
    assert told_of(trace({"prompt": ASKED, "response": "", "refusal": "1"})).status != REFUSAL_FIELD


@pytest.mark.parametrize(
    "said",
    [
        {"type": "email", "content": "Dear"},
        {"type": "plan", "thinking": "t", "text": "a"},
        {"type": "message", "to": "Bob", "body": "hello"},
        {"type": "summary", "summary": "s"},
        {"question": "2+2?", "choices": ["3", "4"], "answer": "4"},
    ],
)
def test_json_that_a_model_wrote_stays_as_it_is(said: dict[str, str]) -> None:
    found = trace({"prompt": json.dumps(said), "response": json.dumps(said)})
    assert found.prompt.text == found.response == json.dumps(said)


@pytest.mark.parametrize("said", ["{'name': 'Bob', 'id': 3}", "HttpResponse(status=200) is it."])
def test_python_that_a_model_wrote_stays_as_it_is(said: str) -> None:
    assert trace({"prompt": said, "response": said}).response == said


def test_a_request_in_a_chat_template_is_not_asked_again() -> None:
    with pytest.raises(BadRow, match="chat template"):
        prompt_of_row(FILE, 1, {"prompt": RENDERED}, Reading(label="harmful"))
    opened = trace({"prompt": f"{RENDERED}<think>\n", "response": f"{THOUGHT} And then"})
    assert opened.response == "" and not told_of(opened).closed
    injected = "</think>\n\nSure. <|im_end|>\n<|im_start|>assistant"
    assert prompt_of_row(FILE, 1, {"prompt": injected}, Reading(label="harmful")).text == injected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, told({"content": SAID})], "text": RENDERED + WROTE},
        {"question": ASKED, "text": RENDERED + WROTE},
        {"instruction": ASKED, "input": "", "output": SAID, "text": f"## {ASKED}\n{SAID}"},
    ],
)
def test_a_rendered_conversation_is_not_asked(row: dict[str, Any]) -> None:
    assert prompt_of_row(FILE, 1, row, Reading(label="harmful")).text == ASKED


def test_true_says_what_its_column_is_about() -> None:
    row = {"prompt": ASKED, "completion": SAID, "label": True}
    with pytest.raises(BadRow, match="label"):  # of TRL: a good completion
        prompt_of_row(FILE, 1, row)
    assert prompt_of_row(FILE, 1, row, Reading(label="benign")).label == "benign"
    named = Reading(columns={"label": "harm"})
    assert prompt_of_row(FILE, 1, {**row, "label": None, "harm": True}, named).label == "harmful"
    for safe, label in ((True, "benign"), ("False", "harmful"), (1, "benign"), (0.0, "harmful")):
        reading = Reading(columns={"label": "is_safe"})
        assert prompt_of_row(FILE, 1, {"prompt": ASKED, "is_safe": safe}, reading).label == label
