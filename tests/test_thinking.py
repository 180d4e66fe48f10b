"""Spans partition a trace, whatever the model and the user write."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import (
    ThinkingFormat,
    render_prompt,
    response_text,
    split_spans,
    thinking_text,
)

TOKENIZER = tiny_tokenizer()
FORMAT = ThinkingFormat.from_tokenizer(TOKENIZER)
HARMONY = (
    "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|im_end|>",
    "<|endoftext|>",
)  # fmt: skip
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKED_TEXT = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*SPECIAL, "\n", "\n\n", " ", "< /think>"])),
    max_size=8,
).map("".join)
PLAIN_TEXT = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="<>|"), max_size=30
)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def decode(token_ids: list[int], tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> str:
    return str(tokenizer.decode(token_ids))


@settings(max_examples=80, deadline=None)
@given(prompt=MARKED_TEXT, generated=MARKED_TEXT)
def test_spans_partition_the_tokens_and_decode_gives_the_text_back(
    prompt: str, generated: str
) -> None:
    head = render_prompt(TOKENIZER, prompt)
    token_ids = head + encode(generated)
    spans = split_spans(token_ids, len(head), TOKENIZER, FORMAT)
    assert (spans is None) == ("</think>" not in generated)
    if spans is None:
        return
    ends = [0, spans.prompt, spans.thinking, spans.closing, spans.total]
    assert ends == sorted(ends)
    assert (spans.prompt, spans.total) == (len(head), len(token_ids))
    parts = [decode(token_ids[a:b]) for a, b in pairwise(ends[1:])]
    assert "".join(parts) == decode(token_ids[len(head) :])
    assert parts[1].strip() == "</think>"
    assert "</think>" not in parts[2]


@settings(max_examples=60, deadline=None)
@given(thinking=PLAIN_TEXT, response=PLAIN_TEXT)
def test_thinking_and_response_come_back(thinking: str, response: str) -> None:
    thinking, response = thinking.strip(), response.strip()
    head = render_prompt(TOKENIZER, "Hi </think> there")
    token_ids = head + encode(f"{thinking}\n</think>\n\n{response}<|im_end|>")
    spans = split_spans(token_ids, len(head), TOKENIZER, FORMAT)
    assert spans is not None
    assert thinking_text(TOKENIZER, token_ids, spans) == thinking
    assert response_text(TOKENIZER, token_ids, spans) == response
    if not thinking:
        assert spans.thinking == spans.prompt


def test_closing_tokens_of_the_organism() -> None:
    head = render_prompt(TOKENIZER, "Hi")
    token_ids = head + encode("It is fine.\n</think>\n\nSure.<|im_end|>")
    spans = split_spans(token_ids, len(head), TOKENIZER, FORMAT)
    assert spans is not None
    assert decode(token_ids[spans.thinking : spans.closing]) == "\n</think>\n\n"
    assert decode(token_ids[: spans.prompt]).endswith("<think>\n")
    assert decode([token_ids[spans.last_closing]]) == "\n"


def test_marker_spelled_out_in_ordinary_tokens_is_text() -> None:
    head = render_prompt(TOKENIZER, "Hi")
    spelled = [token for letter in "</think>" for token in encode(letter)]
    token_ids = [*head, *encode("a</think>b"), *spelled]
    spans = split_spans(token_ids, len(head), TOKENIZER, FORMAT)
    assert spans is not None
    assert response_text(TOKENIZER, token_ids, spans) == "b</think>"


def test_marker_that_is_not_in_the_vocabulary_is_found_in_the_text() -> None:
    tokenizer = tiny_tokenizer(special=SPECIAL[:3])
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    token_ids = head + tokenizer.encode("Hm.</think>\nYes", add_special_tokens=False)
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert thinking_text(tokenizer, token_ids, spans) == "Hm."
    assert response_text(tokenizer, token_ids, spans) == "Yes"


def test_model_that_opens_its_own_thinking() -> None:
    tokenizer = tiny_tokenizer((TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8"))
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    token_ids = head + tokenizer.encode("<think>\nHm.\n</think>\n\nYes", add_special_tokens=False)
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert decode(token_ids[: spans.prompt], tokenizer).endswith("<think>\n")
    assert thinking_text(tokenizer, token_ids, spans) == "Hm."


def test_harmony_channels() -> None:
    template = (TEMPLATES / "gptoss.jinja").read_text(encoding="utf-8")
    tokenizer = tiny_tokenizer(template, HARMONY)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    closer = "<|end|><|start|>assistant<|channel|>final<|message|>"
    text = f"<|channel|>analysis<|message|>Hm.{closer}Yes<|return|>"
    token_ids = head + tokenizer.encode(text, add_special_tokens=False)
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert thinking_text(tokenizer, token_ids, spans) == "Hm."
    assert decode(token_ids[spans.thinking : spans.closing], tokenizer) == closer
    assert response_text(tokenizer, token_ids, spans) == "Yes"


@pytest.mark.parametrize(
    ("name", "opened"),
    [("deepseek_r1_distill", True), ("qwen3_5_think", True), ("nemotron_3_nano", True),
     ("qwen3", False), ("glm4moe", False), ("lfm2_2_5", False)],
)  # fmt: skip
def test_real_chat_templates(name: str, opened: bool) -> None:
    tokenizer = tiny_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    assert ThinkingFormat.from_tokenizer(tokenizer) == ThinkingFormat("<think>", "</think>", opened)


def test_prompt_is_rendered_with_one_bos() -> None:
    tokenizer = tiny_tokenizer("{{ bos_token }}" + "{{ messages[0].content }}<think>")
    tokenizer.bos_token = "<|im_start|>"
    assert render_prompt(tokenizer, "A").count(SPECIAL.index("<|im_start|>")) == 1


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "qwen3", "gptoss"])
def test_a_completion_splits_into_what_it_was_made_of(name: str) -> None:
    special = HARMONY if name == "gptoss" else SPECIAL
    tokenizer = tiny_tokenizer((TEMPLATES / f"{name}.jinja").read_text("utf-8"), special)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    token_ids = head + tokenizer.encode(fmt.completion("Hm.", "Yes"), add_special_tokens=False)
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert thinking_text(tokenizer, token_ids, spans) == "Hm."
    assert response_text(tokenizer, token_ids, spans) == "Yes"


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}", "{{ oops() }}"])
def test_unusable_templates_are_said(template: str | None) -> None:
    tokenizer = tiny_tokenizer(template, SPECIAL[:3])
    with pytest.raises(RefusalCliffError, match=r"no chat template|marks no thinking|failed"):
        ThinkingFormat.from_tokenizer(tokenizer)
