"""Spans partition a trace, whatever the model and the user write."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from time import process_time

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import (
    Spans,
    ThinkingFormat,
    render_prompt,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
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
    _, closed, answer = generated.rpartition("</think>")
    assert (spans is None) == (not closed or "<think>" in answer)
    if spans is None:
        return
    ends = [len(head), spans.prompt, spans.thinking, spans.closing, len(token_ids)]
    assert ends == sorted(ends)
    assert spans.total == len(token_ids)
    parts = [decode(token_ids[a:b]) for a, b in pairwise(ends)]
    assert "".join(parts) == decode(token_ids[len(head) :])
    opening, _, closing, answer = parts
    assert opening.strip() == ("<think>" if opening else "")
    assert not opening or generated.lstrip().startswith("<think>")
    assert closing.strip() == "</think>"
    assert "</think>" not in answer


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


@pytest.mark.parametrize("more", ["", "\n", "\n\n\n", " \n"])
def test_the_last_closing_token_is_the_templates_own_whatever_blanks_follow(more: str) -> None:
    """The score before the answer is read at one place, not at the last of some line ends."""
    head = render_prompt(TOKENIZER, "Hi")
    token_ids = head + encode(f"Hm.\n</think>\n\n{more}No.<|im_end|>")
    spans = split_spans(token_ids, len(head), TOKENIZER, FORMAT)
    assert spans is not None
    assert decode(token_ids[spans.thinking : spans.closing]) == "\n</think>\n\n"
    assert decode(token_ids[spans.closing :]) == f"{more}No.<|im_end|>"


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


def test_prompt_is_rendered_with_one_bos() -> None:
    tokenizer = tiny_tokenizer("{{ bos_token }}" + "{{ messages[0].content }}<think>")
    tokenizer.bos_token = "<|im_start|>"
    assert render_prompt(tokenizer, "A").count(SPECIAL.index("<|im_start|>")) == 1


@pytest.mark.parametrize("template", [None, "{{ oops() }}"])
def test_unusable_templates_are_said(template: str | None) -> None:
    tokenizer = tiny_tokenizer(template, SPECIAL[:3])
    with pytest.raises(RefusalCliffError, match=r"no chat template|failed"):
        ThinkingFormat.from_tokenizer(tokenizer)


@pytest.mark.parametrize("part", ["prompt", "thinking", "response"])
def test_half_a_surrogate_pair_is_refused(part: str) -> None:
    texts = {"prompt": "Hi", "thinking": "Hm.", "response": "Yes", part: "a\ud800b"}
    with pytest.raises(RefusalCliffError, match=r"(?i)the " + part + r" .*at character 1"):
        tokenise_trace(TOKENIZER, FORMAT, texts["prompt"], texts["thinking"], texts["response"])


def test_a_model_without_thinking_whose_template_adds_nothing() -> None:
    tokenizer = tiny_tokenizer("{{ messages[0].content }}", SPECIAL[:3])
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert not fmt.thinks
    spans = split_spans(tokenizer.encode("Hi there"), 2, tokenizer, fmt)
    assert spans == Spans(1, 1, 2, 8)
    assert split_spans(tokenizer.encode("Hi"), 0, tokenizer, fmt) is None


def qwen3() -> tuple[PreTrainedTokenizerFast, ThinkingFormat]:
    tokenizer = tiny_tokenizer((TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8"))
    return tokenizer, ThinkingFormat.from_tokenizer(tokenizer)


def split(
    tokenizer: PreTrainedTokenizerFast, fmt: ThinkingFormat, text: str
) -> tuple[str, str, str] | None:
    """Thinking, closing and response of a generated text, markers and all."""
    head = render_prompt(tokenizer, "Hi </think> <think>")
    token_ids = head + tokenizer.encode(text, add_special_tokens=False)
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    if spans is None:
        return None
    ends = (spans.prompt, spans.thinking, spans.closing, spans.total)
    thinking, closing, response = (decode(token_ids[a:b], tokenizer) for a, b in pairwise(ends))
    return thinking, closing, response


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a</think>b</think>c", ("a</think>b", "</think>", "c")),
        ("<think>a<think>b</think>c</think>d", ("a<think>b</think>c", "</think>", "d")),
        ("<think></think>b", ("", "</think>", "b")),
        ("<think>\n\n</think>\n\nb", ("", "</think>\n\n", "b")),
        ("Hm. <think>a</think>b", ("Hm. <think>a", "</think>", "b")),
        ("<think>a</think>", ("a", "</think>", "")),
        ("<think>a</think>b<think>c", None),
        ("</think><think>c", None),
        ("<think>a", None),
        ("b<think>", None),
        ("", None),
        ("\n", None),
    ],
)
def test_hostile_markers(text: str, parts: tuple[str, str, str] | None) -> None:
    assert split(*qwen3(), text) == parts


@pytest.mark.parametrize("cut", range(len("<think>")))
def test_the_beginning_of_a_spelled_opener_is_not_an_answer(cut: int) -> None:
    tokenizer = tiny_tokenizer((TEMPLATES / "qwen3.jinja").read_text("utf-8"), SPECIAL[:3])
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert split(tokenizer, fmt, "<think>"[:cut]) is None


def gptoss(special: tuple[str, ...] = HARMONY) -> tuple[PreTrainedTokenizerFast, ThinkingFormat]:
    tokenizer = tiny_tokenizer((TEMPLATES / "gptoss.jinja").read_text("utf-8"), special)
    return tokenizer, ThinkingFormat.from_tokenizer(tokenizer)


ANALYSIS = "<|channel|>analysis<|message|>"
NEXT, FINAL = "<|end|><|start|>assistant", "<|channel|>final<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>Now.<|end|><|start|>assistant"


@pytest.mark.parametrize("special", [HARMONY, SPECIAL[:3]])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"{ANALYSIS}a{NEXT}{FINAL}b", ("a", NEXT + FINAL, "b")),
        (f"{ANALYSIS}a{NEXT}{PREAMBLE}{FINAL}b", ("a", NEXT + PREAMBLE + FINAL, "b")),
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}c",
         (f"a{NEXT}{ANALYSIS}b", NEXT + FINAL, "c")),
        (f"{ANALYSIS}{NEXT}{FINAL}b", ("", NEXT + FINAL, "b")),
        (f"{ANALYSIS}a{FINAL}b", ("a", FINAL, "b")),
        (f"{FINAL}b", ("", FINAL, "b")),
        (f"{PREAMBLE}{FINAL}b", ("", PREAMBLE + FINAL, "b")),
        (f"{FINAL}a{NEXT}{FINAL}b", ("", f"{FINAL}a{NEXT}{FINAL}", "b")),
        (f"{ANALYSIS}a{NEXT}<|channel|>final <|constrain|>json<|message|>{{}}",
         ("a", f"{NEXT}<|channel|>final <|constrain|>json<|message|>", "{}")),
        (f"{ANALYSIS}a", None),
        (f"{ANALYSIS}a{NEXT}<|channel|>commentary to=functions.f<|message|>{{}}<|call|>", None),
        (f"{ANALYSIS}a{NEXT}{FINAL}b{NEXT}{ANALYSIS}c", None),
        ("Yes", None),
        ("", None),
    ],
)  # fmt: skip
def test_channels(text: str, parts: tuple[str, str, str] | None, special: tuple[str, ...]) -> None:
    assert split(*gptoss(special), text) == parts


def test_a_channel_spelled_out_in_a_thought_is_text() -> None:
    tokenizer, fmt = gptoss()
    spelled = [token for letter in FINAL for token in tokenizer.encode(letter)]
    head = render_prompt(tokenizer, "Hi")
    token_ids = [*head, *tokenizer.encode(ANALYSIS + "a"), *spelled]
    assert split_spans(token_ids, len(head), tokenizer, fmt) is None
    token_ids += tokenizer.encode(f"{NEXT}{FINAL}b")
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert decode(token_ids[spans.closing :], tokenizer) == "b"


@settings(max_examples=60, deadline=None)
@given(
    thinking=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    response=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    junk=st.lists(st.integers(3, 258), max_size=6),
)
def test_a_marker_in_several_bytes_is_found_among_broken_characters(
    thinking: str, response: str, junk: list[int]
) -> None:
    """Neither broken bytes nor private characters hide a marker of several tokens a character."""
    tokenizer = tiny_tokenizer("{{ messages[0].content + ':◁think▷' }}", SPECIAL[:3])
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    closer = tokenizer.encode("◁/think▷")
    before, after = tokenizer.encode(thinking + "."), tokenizer.encode("." + response)
    token_ids = [*head, *before, *closer, *after, *junk]
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    if "◁/think▷" in response:
        return
    assert token_ids[spans.thinking : spans.closing][: len(closer)] == closer
    assert spans.thinking == len(head) + len(before)


PIECES = (
    "<think>", "</think>", "\n", " ", "é", "◁think▷", "x", "\U000f0000", "[THINK]", ANALYSIS, NEXT,
    FINAL, "<|channel|>", "<|message|>", "<|end|>", "<|im_end|>", "<|channel>thought", "<channel|>",
)  # fmt: skip
FAMILIES = (
    "qwen3",
    "deepseek_r1_distill",
    "gptoss",
    "gemma4",
    "muse_glimmer",
    "llama3_1",
    "glm4moe",
)
HOSTILE = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=10)


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    special = SPECIAL[:3] if name == "llama3_1" else SPECIAL
    tokenizer = tiny_tokenizer(template, (*special, *HARMONY[:5]))
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


TOKENIZERS = {name: family_tokenizer(name) for name in FAMILIES}
FORMATS = {name: ThinkingFormat.from_tokenizer(t) for name, t in TOKENIZERS.items()}


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(FAMILIES), prompt=HOSTILE, written=HOSTILE)
def test_spans_partition_any_trace_of_any_family(
    name: str, prompt: list[str], written: list[str]
) -> None:
    tokenizer, fmt = TOKENIZERS[name], FORMATS[name]
    user, text = ("".join(pieces).replace("\ufffd", "") for pieces in (prompt, written))
    try:
        head = render_prompt(tokenizer, user)
    except RefusalCliffError as error:
        assert has_surrogate(user)
        assert "surrogate" in str(error)
        return
    token_ids = head + tokenizer.encode(text.encode("utf-8", "replace").decode())
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    if spans is None:
        assert fmt.thinks
        return
    assert 0 <= spans.prompt <= spans.thinking < spans.closing <= spans.total == len(token_ids)
    ends = (0, spans.prompt, spans.thinking, spans.closing, spans.total)
    parts = [decode(token_ids[a:b], tokenizer) for a, b in pairwise(ends)]
    assert "".join(parts) == decode(token_ids, tokenizer)
    if fmt.thinks:
        assert fmt.closer not in parts[3]
        assert fmt.opener not in parts[3]
    if spans.closing <= len(head):
        assert spans.prompt == spans.thinking
        assert decode(token_ids[spans.thinking : len(head)], tokenizer) in fmt.tail


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FAMILIES), thinking=HOSTILE, response=HOSTILE)
def test_text_only_traces_are_split_as_if_generated(
    name: str, thinking: list[str], response: list[str]
) -> None:
    tokenizer, fmt = TOKENIZERS[name], FORMATS[name]
    thought, answer = ("".join(pieces) for pieces in (thinking, response))
    try:
        token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi", thought, answer)
    except RefusalCliffError as error:
        said = "surrogate" if has_surrogate(thought + answer) else "has no thinking"
        assert said in str(error)
        return
    text = decode(token_ids, tokenizer)
    assert text.endswith(fmt.completion(thought, answer))
    assert spans == split_spans(token_ids, len(render_prompt(tokenizer, "Hi")), tokenizer, fmt)
    if spans is None:
        assert fmt.opener in answer


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("unit", ["a ", "é", "</think>", "<think>", "\n", FINAL, ANALYSIS])
def test_a_hundred_thousand_tokens_take_about_a_second(name: str, unit: str) -> None:
    tokenizer, fmt = TOKENIZERS[name], FORMATS[name]
    head = render_prompt(tokenizer, "Hi")
    piece = tokenizer.encode(unit)
    generated = piece * (100_000 // len(piece))
    closing = tokenizer.encode(fmt.closing + "Yes")
    began = process_time()
    spans = split_spans([*head, *generated, *closing], len(head), tokenizer, fmt)
    assert process_time() - began < 5
    assert spans is not None
    if fmt.thinks:
        assert decode(([*head, *generated, *closing])[spans.closing :], tokenizer) == "Yes"


def test_a_hundred_thousand_broken_bytes_around_a_marker_in_several_bytes() -> None:
    tokenizer = tiny_tokenizer("{{ messages[0].content + ':◁think▷' }}", SPECIAL[:3])
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head, closer = render_prompt(tokenizer, "Hi"), tokenizer.encode("◁/think▷")
    broken = tokenizer.encode("é")[:1] * 100_000
    began = process_time()
    spans = split_spans([*head, *broken, *closer], len(head), tokenizer, fmt)
    assert process_time() - began < 5
    assert spans is not None
    assert spans.thinking == len(head) + len(broken)
