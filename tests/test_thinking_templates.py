"""Every chat template that ships with TRL is read as its model family writes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import trl
from tiny_chat import SPECIAL, tiny_tokenizer
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import add_response_schema, glm4moe_schema

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.thinking import (
    ThinkingFormat,
    render_prompt,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
TAG = re.compile(r"<\|?[\w/:｜▁]+\|?>")
NONE = ("", "", False)
SELF, PROMPT = ("<think>", "</think>", False), ("<think>", "</think>", True)
GEMMA = ("<|channel>thought", "<channel|>", False)
HARMONY = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    False,
)
MUSE = (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>", False)
# (opener, closer, opened by the prompt), closing tokens as text; a `_training` variant is equal.
CHATML = "<|im_end|>\n<|im_start|>assistant\n"
LLAMA = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA_2 = "<end_of_turn>\n<start_of_turn>model\n"
COHERE = "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
PHI = "<|end|>\n<|assistant|>\n"
BLANK_LINE = "\n</think>\n\n"
THOUGHT_CHANNEL = "\n<channel|>"
EXPECTED: dict[str, tuple[tuple[str, str, bool], str]] = {
    "cohere": (NONE, COHERE),
    "cohere2": (NONE, COHERE + "<|START_RESPONSE|>"),
    "deepseek_r1_distill": (PROMPT, BLANK_LINE),
    "deepseekv3": (PROMPT, BLANK_LINE),
    "diffusion_gemma": (GEMMA, THOUGHT_CHANNEL),
    "gemma": (NONE, GEMMA_2),
    "gemma3": (NONE, GEMMA_2),
    "gemma4": (GEMMA, THOUGHT_CHANNEL),
    "gemma4_v2": (GEMMA, THOUGHT_CHANNEL),
    "gemma4_v3": (GEMMA, THOUGHT_CHANNEL),
    "gemma4_v4": (GEMMA, THOUGHT_CHANNEL),
    "gemma4_v5": (GEMMA, THOUGHT_CHANNEL),
    "glm4moe": (SELF, "</think>\n"),
    "gptoss": (HARMONY, HARMONY[1]),
    "idefics3": (NONE, "<end_of_utterance>\nAssistant:"),
    "lfm2": (NONE, CHATML),
    "lfm2_2_5": (SELF, "</think>"),
    "lfm2_2_5_v2": (SELF, "</think>"),
    "lfm2_2_5_vl": (SELF, "</think>"),
    "lfm2_v2": (NONE, CHATML),
    "llama3": (NONE, LLAMA),
    "llama3_1": (NONE, LLAMA),
    "llama3_2": (NONE, LLAMA),
    "llava_next": (NONE, " [/INST]"),
    "muse_glimmer": (MUSE, MUSE[1]),
    "nemotron_3_5_lightning": (PROMPT, "</think>"),
    "nemotron_3_nano": (PROMPT, "\n</think>\n"),
    "nemotron_3_super": (PROMPT, "\n</think>\n"),
    "nemotron_3_ultra": (PROMPT, "</think>"),
    "phi3": (NONE, PHI),
    "phi3_5": (NONE, PHI),
    "qwen2_5": (NONE, CHATML),
    "qwen2_5_vl": (NONE, CHATML),
    "qwen3": (SELF, BLANK_LINE),
    "qwen3_5_nothink": (PROMPT, BLANK_LINE),
    "qwen3_5_think": (PROMPT, BLANK_LINE),
    "qwen3_6": (PROMPT, BLANK_LINE),
    "qwen3_8": (PROMPT, BLANK_LINE),
    "qwen3_instruct_2507": (NONE, CHATML),
    "qwen3_vl": (NONE, CHATML),
    "smolvlm": (NONE, "<end_of_utterance>\nAssistant:"),
}


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_of(name: str, *, with_tags: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer in which each tag of the template is a token of its own, or none is."""
    text = template(name)
    tags = sorted({*TAG.findall(text)} - set(SPECIAL)) if with_tags else []
    thinks = SPECIAL[3:] if with_tags and "think>" in text else ()
    tokenizer = tiny_tokenizer(text, (*SPECIAL[:3], *thinks, *tags))
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def family(name: str) -> str:
    return name.removesuffix("_training")


def test_the_table_has_every_template() -> None:
    assert {family(name) for name in NAMES} == set(EXPECTED)


@pytest.mark.parametrize("with_tags", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_format_is_found_and_a_completion_splits_into_its_parts(
    name: str, with_tags: bool
) -> None:
    tokenizer = tokenizer_of(name, with_tags=with_tags)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    markers, closing = EXPECTED[family(name)]
    assert (fmt.opener, fmt.closer, fmt.opened_by_prompt) == markers
    assert fmt.thinks == (markers != NONE)
    thought = "Hm, “é”." if fmt.thinks else ""
    head = render_prompt(tokenizer, "Say <b>hello</b>, ◁friend▷")
    assert "Say <b>hello</b>, ◁friend▷" in tokenizer.decode(head)
    written = tokenizer.encode(fmt.completion(thought, "Yes"), add_special_tokens=False)
    token_ids = [*head, *written]
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert thinking_text(tokenizer, token_ids, spans) == thought
    assert tokenizer.decode(token_ids[spans.thinking : spans.closing]) == closing
    assert response_text(tokenizer, token_ids, spans) == "Yes"
    ends = [0, spans.prompt, spans.thinking, spans.closing, spans.total]
    assert ends == sorted(ends)
    parts = [str(tokenizer.decode(token_ids[a:b])) for a, b in pairwise(ends)]
    assert "".join(parts) == tokenizer.decode(token_ids)
    text_only = tokenise_trace(tokenizer, fmt, "Say <b>hello</b>, ◁friend▷", thought, "Yes")
    assert text_only == (token_ids, spans)


@pytest.mark.parametrize("name", [n for n in NAMES if EXPECTED[family(n)][0] != NONE])
def test_an_answer_with_thinking_skipped_has_empty_thinking(name: str) -> None:
    tokenizer = tokenizer_of(name)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi", "", "Yes")
    assert spans is not None
    assert spans.prompt == spans.thinking < spans.closing
    assert response_text(tokenizer, token_ids, spans) == "Yes"


@pytest.mark.parametrize("name", NAMES)
def test_an_output_without_any_marker(name: str) -> None:
    """An answer where the model may answer at once; a thought where the prompt opens it."""
    tokenizer = tokenizer_of(name)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    head = render_prompt(tokenizer, "Hi")
    token_ids = [*head, *tokenizer.encode("Yes", add_special_tokens=False)]
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    if EXPECTED[family(name)][0] in (PROMPT, HARMONY, MUSE):
        assert spans is None
        return
    assert spans is not None
    assert spans.prompt == spans.thinking < spans.closing == len(head)
    tail = str(tokenizer.decode(token_ids[spans.thinking : spans.closing]))
    assert tail == fmt.tail
    assert "Hi" not in tail


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano"])
def test_the_non_thinking_mode_closes_the_thinking_in_the_prompt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi </think>"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    head = tokenizer.encode(str(prompt), add_special_tokens=False)
    token_ids = [*head, *tokenizer.encode("Yes", add_special_tokens=False)]
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert spans.prompt == spans.thinking < spans.closing == len(head)
    assert str(tokenizer.decode(token_ids[spans.thinking : spans.closing])).strip() == "</think>"
    assert response_text(tokenizer, token_ids, spans) == "Yes"


def test_a_template_that_always_closes_the_thinking() -> None:
    tokenizer = tiny_tokenizer("{{ messages[0].content + ':<think>\n\n</think>\n\n' }}")
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert (fmt.thinks, fmt.closed_by_prompt) == (True, True)
    token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi", "", "Yes")
    assert spans is not None
    assert tokenizer.decode(token_ids[spans.thinking : spans.closing]) == "</think>\n\n"
    with pytest.raises(RefusalCliffError, match="closes the thinking in the prompt"):
        fmt.completion("Hm.", "Yes")


@pytest.mark.parametrize(
    ("opener", "closer"),
    [("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"),
     ("<my-notes>", "</my-notes>")],
)  # fmt: skip
@pytest.mark.parametrize("by_prompt", [True, False])
@pytest.mark.parametrize("as_tokens", [True, False])
def test_other_markers(opener: str, closer: str, by_prompt: bool, as_tokens: bool) -> None:
    """Markers are known, or learnt from how the template writes a past thought."""
    text = (
        "{% for m in messages %}{{ m.role }}: "
        f"{{% if m.thinking %}}{{{{ '{opener}' + m.thinking + '{closer}' }}}}{{% endif %}}"
        "{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: " + opener * by_prompt + "' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(text, (*SPECIAL[:3], *((opener, closer) if as_tokens else ())))
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert (fmt.opener, fmt.closer, fmt.opened_by_prompt) == (opener, closer, by_prompt)
    token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi " + closer, "Hm.", "Yes")
    assert spans is not None
    assert thinking_text(tokenizer, token_ids, spans) == "Hm."
    assert response_text(tokenizer, token_ids, spans) == "Yes"


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "gptoss", "gemma4", "lfm2_2_5"])
def test_markers_from_the_response_template(name: str) -> None:
    tokenizer = tokenizer_of(name)
    add_response_schema(tokenizer)
    tokenizer.chat_template = PLAIN
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert (fmt.opener, fmt.closer, fmt.opened_by_prompt) == EXPECTED[name][0]
    assert fmt.completion("", "Yes") == "Yes"


def test_markers_from_an_unknown_response_template_and_from_a_schema() -> None:
    tokenizer = tiny_tokenizer(PLAIN, SPECIAL[:3])
    fields = {"thinking": {"open": "<a>", "close_pattern": r"</a>\s*"}, "content": {"open": "<b>"}}
    tokenizer.response_template = {"fields": fields, "start_anchor": "assistant: "}
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi", "Hm.", "Yes")
    assert spans is not None
    assert tokenizer.decode(token_ids[spans.thinking : spans.closing]) == "</a><b>"
    fields["thinking"]["close_pattern"] = "</a>|$"
    assert not ThinkingFormat.from_tokenizer(tokenizer).thinks
    tokenizer.response_template = None
    tokenizer.response_schema = glm4moe_schema
    assert ThinkingFormat.from_tokenizer(tokenizer).closer == "</think>"


def test_markers_of_the_vocabulary_alone_may_be_written_or_not() -> None:
    tokenizer = tiny_tokenizer(PLAIN)
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert (fmt.opener, fmt.closer, fmt.opened_by_prompt) == SELF
    assert fmt.completion("", "Yes") == "Yes"
    head = render_prompt(tokenizer, "Hi")
    for text, thought in [("Yes", ""), ("<think>Hm.</think>Yes", "Hm.")]:
        token_ids = [*head, *tokenizer.encode(text, add_special_tokens=False)]
        spans = split_spans(token_ids, len(head), tokenizer, fmt)
        assert spans is not None
        assert thinking_text(tokenizer, token_ids, spans) == thought
        assert response_text(tokenizer, token_ids, spans) == "Yes"


def test_cohere_reasoning_closes_with_the_marker_of_the_response() -> None:
    marks = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>")
    tokenizer = tiny_tokenizer(PLAIN, (*SPECIAL[:3], *marks))
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    token_ids, spans = tokenise_trace(tokenizer, fmt, "Hi", "Hm.", "Yes")
    assert spans is not None
    assert tokenizer.decode(token_ids[spans.thinking : spans.closing]) == "".join(marks[1:])
    head = render_prompt(tokenizer, "Hi")
    token_ids = [*head, *tokenizer.encode(marks[2] + "Yes", add_special_tokens=False)]
    spans = split_spans(token_ids, len(head), tokenizer, fmt)
    assert spans is not None
    assert tokenizer.decode([token_ids[spans.last_closing]]) == marks[2]


def test_a_template_that_takes_a_message_only_as_parts() -> None:
    text = "{% for part in messages[0].content %}{{ '<' + part.text + '>' }}{% endfor %}!"
    tokenizer = tiny_tokenizer(text, SPECIAL[:3])
    assert tokenizer.decode(render_prompt(tokenizer, "Hi")) == "<Hi>!"
    assert tokenizer.decode(render_prompt(tokenizer, "!")) == "<!>!"
    assert ThinkingFormat.from_tokenizer(tokenizer).tail == ">!"


def test_a_template_that_leaves_the_message_out_is_refused() -> None:
    with pytest.raises(RefusalCliffError, match="leaves the user's message out"):
        render_prompt(tiny_tokenizer("Hello"), "Hello")


def test_a_model_without_thinking_has_no_place_for_a_thought() -> None:
    fmt = ThinkingFormat.from_tokenizer(tokenizer_of("llama3"))
    with pytest.raises(RefusalCliffError, match="has no thinking"):
        fmt.completion("Hm.", "Yes")
