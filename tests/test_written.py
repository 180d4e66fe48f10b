"""One splitter: whatever the markers, the thought comes back, and never in the answer."""

from __future__ import annotations

import re
from dataclasses import replace
from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking.formats import KNOWN, Markers, markers_of
from refusal_cliff.thinking.written import BLANKS, Message, read_message

T, A = (
    "The user asks for a stolen car.\n\nI must refuse.",
    "Sorry, I cannot help with that.\nIt is wrong.",
)


def parts(content: str | None, reasoning: str | None = None, **options: object) -> tuple[str, str]:
    found = read_message(content, reasoning, **options)  # type: ignore[arg-type]
    assert found.closed
    return found.thinking, found.response


SHAPES = {
    "deepseek": f"<think>\n{T}\n</think>\n\n{A}",
    "tight": f"<think>{T}</think>{A}",
    "prompt opens": f"{T}\n</think>\n\n{A}",
    "thinking": f"<thinking>\n{T}\n</thinking>\n{A}",
    "capitals": f"<THINK>\n{T}\n</Think>\n{A}",
    "marco": f"<Thought>{T}</Thought>\n<Output>\n{A}\n</Output>",
    "marco, cut": f"<Thought>{T}</Thought>\n<Output>\n{A}",
    "r1-zero": f"<think> {T} </think> <answer> {A} </answer>",
    "sky": f"<|begin_of_thought|>\n\n{T}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{A}\n\n"
    "<|end_of_solution|>",
    "s1": f"think\n{T}\nanswer\n{A}",
    "s1, tokens kept": f"<|im_start|>think\n{T}\n<|im_start|>answer\n{A}",
    "s1, crlf": f"think\r\n{T}\r\nanswer\r\n{A}",
    "mistral": f"[THINK]{T}[/THINK]{A}",
    "seed": f"<seed:think>{T}</seed:think>{A}",
    "kimi": f"◁think▷{T}◁/think▷{A}",
    "cohere": f"<|START_THINKING|>{T}<|END_THINKING|><|START_RESPONSE|>{A}<|END_RESPONSE|>",
    "harmony": f"<|channel|>analysis<|message|>{T}<|end|><|start|>assistant<|channel|>final"
    f"<|message|>{A}<|return|>",
    "harmony, header": f"<|start|>assistant<|channel|>analysis<|message|>{T}<|end|><|start|>"
    f"assistant<|channel|>final <|constrain|>json<|message|>{A}",
    "harmony, stripped": f"analysis{T}assistantfinal{A}",
    "to self": f" to=self<|message|>{T}<|eom|><|start|>assistant to=user<|message|>{A}",
    "gemma": f"<|channel>thought\n{T}\n<channel|>{A}",
    "crlf": f"<think>\r\n{T}\r\n</think>\r\n\r\n{A}\r\n",
    "attribute": f'<think time="3">{T}</think >{A}',
    "blanks": f"< think >{T}</ think >{A}",
    "bars": f"<|thinking|>{T}<|/thinking|>{A}",
    "escaped": f"&lt;think&gt;{T}&lt;/think&gt;{A}",
    "scratchpad": f"<scratchpad>\n{T}\n</scratchpad>\n<answer>{A}</answer>",
    "rationale": f"<rationale>{T}</rationale><final_answer>{A}</final_answer>",
    "granite": f"Here is my thought process:\n{T}\n\nHere is my response:\n{A}",
    "headings": f"## Thinking\n\n{T}\n\n## Final Response\n\n{A}",
    "bold": f"**Thinking:** {T}\n\n**Answer:** {A}",
    "bold lines": f"**Thinking**\n{T}\n\n**Final Answer**\n\n{A}",
    "plain words": f"Thought: {T}\nAnswer: {A}",
    "plain words, one line": f"Thought: {T} Final Answer: {A}",
    "full width": f"＜think＞{T}＜／think＞{A}",
    "brackets": f"【thinking】\n{T}\n【/thinking】\n{A}",
    "fenced": f"```thinking\n{T}\n```\n\n{A}",
    "fenced by tildes": f"~~~ thought\n{T}\n~~~\n{A}",
    "web page": f'<details type="reasoning">\n<summary>Thought for 3 seconds</summary>\n{T}\n'
    f"</details>\n{A}",
    "another name": f"<longcat_think>\n{T}\n</longcat_think>\n{A}",
    "begin and end": f"<|begin_of_thinking|>{T}<|end_of_thinking|>{A}",
    "begin and end, in pieces": f"<|begin▁of▁thought|>{T}<|end▁of▁thought|>{A}",
    "steps": f"Here are my reasoning steps:\n{T}\n[BEGIN FINAL RESPONSE]\n{A}\n"
    "[END FINAL RESPONSE]",
    "start and end": f"<start_working_out>{T}<end_working_out><SOLUTION>{A}</SOLUTION>",
    "start and end, the same name": f"<start_reasoning>{T}</end_reasoning>{A}",
    "name, start and end": f"<|think_begin|>{T}<|think_end|>{A}",
    "name, start and end, no bars": f"<think_start>\n{T}\n<think_end>\n\n{A}",
    "bars of full width": f"<｜think｜>{T}<｜/think｜>{A}",
    "square brackets": f"[Thinking]\n{T}\n[/Thinking]\n{A}",
    "parts of messages": f"<|think|>{T}<|end|><|begin|>assistant<|content|>{A}<|end|>",
    "conclusion": f"<REASONING>{T}</REASONING>\n\n<CONCLUSION>{A}</CONCLUSION>",
    "headings, short": f"### Thinking\n{T}\n\n### Response\n{A}",
    "bold, process": f"**Thinking Process:**\n\n{T}\n\n**Final Answer:**\n\n{A}",
    "another language": f"<思考>{T}</思考>{A}",
    "end of turn": f"<think>\n{T}\n</think>\n\n{A}<|im_end|>\n",
    "end of text": f"<think>\n{T}\n</think>\n\n{A}</s>",
    "end of turn, in brackets": f"<think>\n{T}\n</think>\n\n{A}[|endofturn|]",
    "end of turn, in capitals": f"<think>\n{T}\n</think>\n\n{A}<|END_OF_TURN_TOKEN|>",
    "end of turn, numbered": f"<think>\n{T}\n</think>\n\n{A}<SPECIAL_12>",
    "end of role": f"<think>\n{T}\n</think>\n\n{A}<|role_end|>",
    "end of text, in words": f"<think>\n{T}\n</think>\n\n{A} [end of text]\n\n",
    "s1, a blank": f"think \n{T}\nanswer\n{A}",
    "s1, a turn": f"<|im_start|>assistant\n<|im_start|>think\n{T}\n<|im_start|>answer\n{A}",
    "ollama": f"Thinking...\n{T}\n...done thinking.\n\n{A}",
    "llama.cpp": f"[Start thinking]\n{T}\n[End thinking]\n\n{A}",
    "librechat": f":::thinking\n{T}\n:::\n{A}",
    "aider": f"--------------\n► **THINKING**\n\n{T}\n\n------------\n► **ANSWER**\n\n{A}",
    "kat": f"<judge>\n{T}\n</judge>\n\n<think_off>\n<answer>\n{A}\n</answer>",
    "apertus": f"<|inner_prefix|>{T}<|inner_suffix|>{A}<|assistant_end|>",
    "minimax, prompt opens": f"{T}</mm:think>\n\n{A}",
    "hunyuan": f"<think:opensource>{T}</think:opensource>{A}<｜hy_eos:opensource｜>",
    "heading, bold answer": f"## Thinking\n{T}\n\n**Answer:** {A}",
    "bold, heading of the answer": f"**Thinking**\n{T}\n\n## Answer\n{A}",
    "sentences": f"Here's my thinking process:\n{T}\nHere's my answer:\n{A}",
    "another version": f"<think_v2>{T}</think_v2>\n<final_answer>{A}</final_answer>",
    **{
        name: f"<{name}>\n{T}\n</{name}>\n\n{A}"
        for name in (
            *("antThinking", "antml:thinking", "think:other", "thought_process", "scratch-pad"),
            *("reasoning-process", "chain-of-thought", "chain_of_thought", "thinkings"),
        )
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_apart(shape: str) -> None:
    assert parts(SHAPES[shape]) == (T, A)
    wrote = SHAPES[shape].removeprefix("<|im_start|>assistant\n")  # the prompt ends with it
    assert read_message(SHAPES[shape], None).written == wrote
    assert parts(A, SHAPES[shape].partition(A)[0]) == (T, A)
    assert parts(SHAPES[shape], T) == (T, A)
    assert parts(f"\r\n\n{A}\n", f"\n{T}\r\n") == (T, A)
    assert parts(A, SHAPES[shape]) == (T, A)
    assert parts(f"\ufeff{SHAPES[shape]}\u200b", f"\u200b{T}\ufeff") == (T, A)
    assert parts(f"\ufeff \u200b\n{SHAPES[shape]}") == (T, A)
    other = [text.replace("\n", "\r\n") for text in (SHAPES[shape], T, A)]
    assert parts(other[0]) == (other[1], other[2])


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n{T}",
        f"<Thought>{T}",
        f"<|begin_of_thought|>{T}",
        f"think\n{T}",
        f"analysis{T}",
        f"<|channel|>analysis<|message|>{T}<|end|>",
        f"<|channel|>commentary to=functions.f<|message|>{T}<|call|>",
        f"{A} <think>{T}",
        f"<think>one</think> two <think>{T}",
        f"[THINK]{T}",
        f"Thinking...\n{T}",
        f"► **THINKING**\n{T}",
        f'<think>{T} It says "</think>" there',
        f"<think>{T} It says `</think>` there",
        f"<think>{T} It says (“</think>”), and",
    ],
)
def test_what_never_closed_is_no_answer(text: str) -> None:
    found = read_message(text, None)
    assert (found.closed, found.response, found.written) == (False, "", text)
    assert "assistant" not in found.thinking
    assert T in found.thinking
    again = read_message(found.response, found.thinking)
    assert (again.thinking, again.response, again.closed) == (found.thinking, "", False)


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot. The tag `</think>` ends a thought, `<think>` begins it.",
        'I cannot. Write "</think>" or “<think>”.',
        "Wrap it in `<think>...</think>` tags.",
        "Like this:\n```html\n<think>\nhm\n</think>\nyes\n```\nThat is all.",
        "Like this:\n\n~~~\n</think>\n~~~",
    ],
)
def test_an_answer_may_quote_markers(answer: str) -> None:
    for text in (answer, f"<think>\n{T}\n</think>\n\n{answer}", f"{T}</think>{answer}"):
        assert read_message(text, None).response == answer
        assert read_message(text, None).closed
    assert parts(answer, T) == (T, answer)


def test_a_quotation_may_end_a_thought_and_begin_an_answer() -> None:
    for end in ('He says "no"', 'He says "no."', "Kids' toys'"):
        assert parts(f'[THINK]{end}[/THINK]"No" is no answer.')[0] == end
        assert parts(f"[THINK]Use `x`[/THINK]`y` {end}") == ("Use `x`", f"`y` {end}")


def test_a_code_block_that_a_thought_left_open_hides_nothing() -> None:
    for answer in (A, f"{A}\n```python\nx = 1\n```", f"{A}\n```\nx\n```\n"):
        opened = f"{T}\n```python\ny = 2"
        assert parts(f"<think>\n{opened}\n</think>\n\n{answer}") == (opened, answer.strip())
        assert parts(f"{opened}\n</think>\n\n{answer}") == (opened, answer.strip())


def test_a_fenced_thought_may_hold_blocks_and_so_may_the_answer() -> None:
    block = "```python\nx = 1\n```"
    text = f"```thinking\n{T}\n{block}\nSo.\n```\n{A}\n{block}"
    assert parts(text) == (f"{T}\n{block}\nSo.", f"{A}\n{block}")
    for cut in (f"```thinking\n{T}", f"```thinking\n{T}\n```python\nx = 1"):
        found = read_message(cut, None)
        assert (found.response, found.closed) == ("", False)


@pytest.mark.parametrize(
    "answer",
    [
        f"{T}\n\n**Final Answer**\n4",  # so do models end an answer in mathematics
        f"Thought: {T}",
        f"**Thoughts**\n{T}",
        f"[Reasoning] {T}",
        f"## Reasoning\n{T}\n\n## Answering machines\n{A}",
        f"The answer: 4.\nAnswer: {A}",
        f"Like this:\n```thinking\n{T}\n```\nThat is all.",
        f"## Reasoning\n{T}\n\nAnswer: 4",
        f"Here is my reasoning:\n{T}",
        f"Thinking... {T}",
        f"[Start thinking] of it.\n{T}",
        f"<judge>{T}</judge>\n{A}",
        f"<reasoning_effort>{T}</reasoning_effort>",
        f"<think-tank>\n{T}",
        f"<think_off>\n{T}",
        f":::note\n{T}\n:::\n{A}",
        f"{T} It says[end of text]",
    ],
)
def test_what_may_be_an_answer_stays_one(answer: str) -> None:
    assert parts(answer) == ("", answer)


def test_two_thoughts_are_one_and_the_answer_is_the_last() -> None:
    text = f"<think>one</think> between <think>\n{T}\n</think>\n{A}"
    assert parts(text) == (f"one\n\nbetween\n\n{T}", A)
    assert parts(f"<think>one</think>[THINK]{T}[/THINK]{A}") == (f"one\n\n{T}", A)
    assert parts(f"Sure.<think>{T}</think>{A}") == (f"Sure.\n\n{T}", A)
    text = f"analysisOne.assistantanalysis{T}assistantfinal{A}"
    assert parts(text) == (f"One.\n\n{T}", A)


def test_a_thought_in_field_and_text_stands_once() -> None:
    inline = f"<think>\n{T}\n</think>\n\n{A}"
    assert parts(inline, T.replace("\n\n", "\r\n")) == (T, A)
    assert parts(inline, "I must refuse.") == (T, A)
    assert parts(inline, f"Well. {T}") == (f"Well. {T}", A)
    assert parts(inline, "Other.") == (f"Other.\n\n{T}", A)
    assert parts(f"</think>\n\n{A}", T) == (T, A)
    assert parts(f"{T}\n\n{A}", T) == (T, A)
    assert parts("hm\nSure.", "hm") == ("hm", "hm\nSure."), "a short thought may repeat by chance"
    assert parts(T, T) == (T, T), "an answer that is the thought is an answer"
    assert parts("", f"<think>{T}</think>{A}") == (T, A)
    assert not read_message("", f"<think>{T}").closed
    assert not read_message(f"<think>{T}", T).closed


@pytest.mark.parametrize(
    "end",
    [
        "",
        "<|im_end|>",
        "<|eot_id|>\n",
        "</s>",
        "<answer></answer>",
        "<|role_end|>",
        "[end of text]",
        "\u200b",
    ],
)
def test_an_end_of_turn_is_no_answer(end: str) -> None:
    assert read_message(f"<think>\n{T}\n</think>\n\n{end}", None).response == ""


@pytest.mark.parametrize(
    "answer",
    [
        f"<analysis>{A}</analysis>",
        f"## Thinking\n\n{A}",
        f"**Thinking:** {A}",
        f"First <scratchpad>{A}</scratchpad> last.",
        f"<details><summary>More</summary>{A}</details> End.",
        "</s> ends a sequence.",
    ],
)
def test_what_only_looks_like_a_thought_is_an_answer(answer: str) -> None:
    assert parts(answer) == ("", answer)


def test_empty_parts() -> None:
    assert parts(f"<think>\n\n</think>\n\n{A}") == ("", A)
    assert read_message("<think>hm</think>", None) == Message("hm", "", True, "<think>hm</think>")
    assert read_message("", None) == Message("", "", True, "")
    assert read_message(None, None) == Message("", "", True, None)
    assert read_message(None, T) == Message(T, "", False, None)
    assert read_message(A, " \n") == Message("", A, True, A)
    assert read_message(A, None, thinks=True) == Message(A, "", False, A)
    assert read_message(SHAPES["prompt opens"], None, thinks=True).response == A


@pytest.mark.parametrize(
    "answer",
    [
        "analysis of the data shows nothing.",
        "Analysis: nothing.",
        "finally, it is done.",
        "I think\nthe answer\nis no.",
        "Think\nabout it.",
        "<answer>42</answer>",
    ],
)
def test_ordinary_words_are_no_markers(answer: str) -> None:
    assert read_message(answer, None) == Message("", answer, True, answer)


def test_a_marker_within_code_is_only_spoken_of() -> None:
    for code in ("`re.sub(r'<think>.*?</think>', '', s)`", "`sed 's/<think>//'`"):
        answer = f"{A} To strip thoughts use {code} on each line."
        assert read_message(answer, None).response == answer
    assert parts(f"{T} a ` alone and `b</think>{A} `c`")[0].startswith(T)


def test_the_header_of_the_answer_is_no_part_of_the_thought() -> None:
    for header in ("<|im_start|>assistant\n", "<｜Assistant｜>", "<start_of_turn>model\n"):
        assert parts(f"{header}<think>\n{T}</think>{A}") == (T, A)
        assert parts(f"{header}{A}") == ("", A)


def test_markers_by_option() -> None:
    mine = markers_of("<unused7>thought <unused8>")
    text = f"<unused7>thought\n{T}<unused8>{A}"
    assert read_message(text, None).response == text
    assert parts(text, markers=(mine, *KNOWN)) == (T, A)
    for wrong in ("", "<a>", "<a> <a>", "<a> <b> <c>"):
        with pytest.raises(RefusalCliffError, match="thinking-markers"):
            markers_of(wrong)


_WORDS = (
    st.text(st.characters(codec="utf-8", exclude_characters="`<>[]|◁▷"))
    .map(lambda text: text.strip(BLANKS))
    .filter(lambda text: text not in set("\"'“‘«„"))
)
_TEXTS = _WORDS.map(lambda text: " ".join(text.split())).filter(
    lambda text: text and not re.match(r"think$|analysis|commentary|final", text)
)


@settings(deadline=None)
@example(KNOWN[0], ":::thinking", "No.", True)
@example(KNOWN[1], "analysis", "No.", True)
@given(st.sampled_from(KNOWN), _WORDS, _TEXTS, st.booleans())
def test_written_then_read_gives_the_parts_back(
    known: Markers, thinking: str, answer: str, opened: bool
) -> None:
    opening = "" if opened else known.opening
    text = f"{opening}{thinking}{known.closing}{answer}"
    found = read_message(text, None)
    assert (found.thinking, found.response, found.closed) == (thinking, answer, True)
    again = read_message(found.response, found.thinking)
    assert replace(again, written=None) == replace(found, written=None)
    assert replace(read_message(answer, text), written=text) == found


_PIECES = [m for k in KNOWN for m in (k.opener, k.closer, k.answer, k.ender)]
_PIECES += ["think\n", "\nanswer\n", "analysis", "assistantfinal", "<Output>", "</Output>", "\n"]
_PIECES += ["```", "`", '"', "```python\n", " ", "\r\n", "word", "Sure. ", "<answer>", "</answer>"]
_HOSTILE = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=5)), max_size=12)


@settings(deadline=None)
@example("<|eom|><think>", None)
@example("<think>\nanswer\n", "think\n")
@given(_HOSTILE.map("".join), st.one_of(st.none(), _HOSTILE.map("".join)))
def test_reading_is_stable(content: str, reasoning: str | None) -> None:
    found = read_message(content, reasoning)
    assert found.closed or found.response == ""
    if found.thinking:
        again = read_message(found.response, found.thinking)
        assert (again.thinking, again.response) == (found.thinking, found.response)


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<answer>", "```\n", "`a", "<|end|>", "analysis", " ", "\n"]
)
def test_a_megabyte_of_anything_is_read_at_once(piece: str) -> None:
    read_message(piece * (1_000_000 // len(piece)), None)
    read_message(f"<|channel|>final<|message|>{piece * (1_000_000 // len(piece))}", piece)


@pytest.mark.parametrize(
    "begun",
    [
        *("```thinking\n```", ":::thinking\n:::", "## Thinking\n", "**Thinking**\n", "Thought: "),
        *(
            "Here's my reasoning:",
            "Thinking...\n",
            "► **THINKING**",
            "<judge>",
            "<thought_process>",
        ),
    ],
)
def test_nothing_that_follows_a_beginning_takes_long(begun: str) -> None:
    pieces = (
        "a",
        "a_",
        "a:",
        "</a_",
        "</judge>\n",
        "\n---",
        "\n## ",
        "\n**",
        "\n:::a\n",
        " ",
        "\n",
    )
    began = process_time()
    for piece in pieces:
        read_message(begun + piece * (100_000 // len(piece)), None)
    assert process_time() - began < 5
