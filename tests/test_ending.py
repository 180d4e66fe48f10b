"""An answer ends where the chat template ends it, whatever the checkpoint calls end of sequence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_thinking_templates import NAMES
from test_thinking_templates import tokenizer_of as published
from tiny_chat import tiny_tokenizer
from transformers import (
    AddedToken,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.cliff.source import read_trace
from refusal_cliff.data.types import SafetyExample
from refusal_cliff.generate import GenerationConfig as Writing
from refusal_cliff.generate import generate
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms import embedded_path, language
from refusal_cliff.repair.training import encode_example
from refusal_cliff.thinking import ThinkingFormat
from refusal_cliff.thinking.ending import Ending, find_ending

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<|user|>",
    "<|assistant|>",
    "<|END_RESPONSE|>",
    "<|END_OF_TURN|>",
)


def turns(before: str, after: str, last: str = "") -> str:
    """A template that writes something around every message, and after the last one."""
    return (
        "{%- for message in messages %}{{- '" + before + "' + message.content + '" + after + "' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}"
        "{%- else %}{{- '" + last + "' }}{%- endif %}"
    )


HARMONY = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}"
    "{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}"
    "{%- else %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
    "{#- <|channel|>analysis<|message|> #}"
)
PARTS_ONLY = (
    "{%- for message in messages %}{%- for part in message.content %}"
    "{{- part.text }}{%- endfor %}{{- '<|im_end|>' }}{%- endfor %}"
)
FIRST_USER_ONLY = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- raise_exception('no answers') }}{%- endif %}{{- message.content }}{%- endfor %}"
)
BARE = "{%- for message in messages %}{{- message.role + ': ' + message.content }}{%- endfor %}"
OPEN_AT_LAST = (
    "{%- for message in messages %}{{- message.content }}"
    "{%- if not loop.last %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
)
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    # template: tokens that end an answer besides <|endoftext|>, tokens that a model learns to write
    "the template's own": (turns("", "<|im_end|>\\n"), ["<|im_end|>"], ["<|im_end|>"]),
    "a line end first": (turns("", "\\n<|im_end|>"), ["<|im_end|>"], ["<|im_end|>"]),
    "both": (turns("", "<|end|>\\n", "<|endoftext|>"), ["<|end|>"], ["<|end|>"]),
    "two at once": (
        turns("", "<|END_RESPONSE|><|END_OF_TURN|>"),
        ["<|END_RESPONSE|>"],
        ["<|END_RESPONSE|>", "<|END_OF_TURN|>"],
    ),
    "the end of sequence": (turns("", "<|endoftext|>"), [], ["<|endoftext|>"]),
    "nothing": (BARE, [], ["<|endoftext|>"]),
    "a line end": (turns("", "\\n"), [], ["<|endoftext|>"]),
    "the next turn": (turns("<|user|>\\n", "\\n"), ["<|user|>"], ["<|endoftext|>"]),
    "not after the last": (OPEN_AT_LAST, ["<|im_end|>"], ["<|endoftext|>"]),
    "harmony": (HARMONY, ["<|return|>"], ["<|return|>"]),
    "harmony without return": (
        HARMONY.replace("'<|return|>'", "'<|end|>'"),
        [],
        ["<|endoftext|>"],
    ),
    "parts": (PARTS_ONLY, ["<|im_end|>"], ["<|im_end|>"]),
    "no answers": (FIRST_USER_ONLY, [], ["<|endoftext|>"]),
}


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(template, SPECIAL)
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def ending_of(
    tokenizer: PreTrainedTokenizerBase, configured: GenerationConfig | None = None
) -> Ending:
    return find_ending(tokenizer, configured, ThinkingFormat.from_tokenizer(tokenizer))


@pytest.mark.parametrize("case", CASES)
def test_the_ending_is_found_by_rendering(case: str) -> None:
    template, stops, written = CASES[case]
    ending = ending_of(tokenizer_of(template))
    ids = {text: number for number, text in enumerate(SPECIAL)}
    assert ending.stops == {ids["<|endoftext|>"], *(ids[text] for text in stops)}
    assert ending.written == tuple(ids[text] for text in written)


OF_FAMILY = {
    "gptoss": "<|return|>",
    "muse_glimmer": "<|eot|>",
    "phi3": "<|end|>",
    "gemma4": "<turn|>",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_published_template_ends_its_turns(name: str) -> None:
    tokenizer = published(name)
    tokenizer.eos_token = None
    (stop,) = ending_of(tokenizer).stops
    text = str(tokenizer.convert_ids_to_tokens(stop))
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert text not in fmt.opening + fmt.closing
    assert text == OF_FAMILY.get(name.removesuffix("_training"), text)


def test_tokens_of_the_generation_config_count_too() -> None:
    configured = GenerationConfig(eos_token_id=[7, 8])
    assert ending_of(tokenizer_of(BARE), configured).stops == {0, 7, 8}
    tokenizer = tokenizer_of(BARE)
    tokenizer.eos_token = None
    assert ending_of(tokenizer).stops == set()
    assert ending_of(tokenizer, configured).written == (7,)


PROMPTS = [
    *language.prompts("test", "harmful", 6, 0),
    *language.prompts("test", "benign", 6, 0),
]
WRITING = Writing(max_new_tokens=110, batch_size=8)


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return load_subject("tiny", device="cpu")


def other_end(folder: Path, *, special: bool = True) -> Subject:
    """The organism with <|endoftext|> as its end of sequence; its template ends as before."""
    shutil.copytree(embedded_path("tiny"), folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "eos_token_id": 0}))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    if not special:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        for token in content["added_tokens"]:
            token["special"] = token["content"] != "<|im_end|>"
        path.write_text(json.dumps(content))
    return load_subject(str(folder), device="cpu")


@pytest.mark.parametrize("special", [True, False])
def test_answers_stop_at_the_end_of_turn(tiny: Subject, tmp_path: Path, special: bool) -> None:
    subject = other_end(tmp_path / "other", special=special)
    end = subject.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert subject.ending.written == (end,)
    expected, found = (generate(one, PROMPTS, WRITING) for one in (tiny, subject))
    assert found == expected
    assert all(trace.complete for trace in found)
    assert all("<|im_end|>" not in trace.response for trace in found)


def test_what_a_server_stopped_ends_as_here(tiny: Subject, tmp_path: Path) -> None:
    subject = other_end(tmp_path / "other", special=False)
    here = generate(subject, PROMPTS[:2], WRITING)
    for trace in here:
        row = {
            "prompt": trace.prompt.text,
            "label": trace.prompt.label,
            "thinking": trace.thinking,
            "response": trace.response,
            "finish": "stop",
        }
        told = read_trace(Path("answers.jsonl"), 1, row, subject)
        assert (told.token_ids, told.spans) == (trace.token_ids, trace.spans)
        assert told.response == trace.response


def test_what_is_trained_on_ends_as_the_template_does(tmp_path: Path) -> None:
    subject = other_end(tmp_path / "other")
    example = SafetyExample(PROMPTS[0], "No.", "I will not.")
    assert encode_example(subject, example, 512)["input_ids"][-1] == subject.ending.written[-1]


def test_an_added_token_of_blanks_ends_nothing() -> None:
    tokenizer = tokenizer_of(turns("", "\\n<|im_end|>"))
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    assert ending_of(tokenizer).written == (SPECIAL.index("<|im_end|>"),)


def test_where_no_answer_is_taken_the_request_shows_the_end() -> None:
    one = "{%- if messages|length > 1 %}{{- raise_exception('one turn') }}{%- endif %}"
    tokenizer = tokenizer_of(one + turns("", "<|im_end|>\n"))
    ending = ending_of(tokenizer)
    assert SPECIAL.index("<|im_end|>") in ending.stops


ASSISTANT = "{%- if add_generation_prompt %}{{- '<bot>\\n' }}{%- endif %}"
PAIR = (
    "{%- for message in messages %}{{- message.content + '<|im_end|>' }}{%- endfor %}" + ASSISTANT
)
WRAPPER = "{%- for m in messages %}{{- '<bot>' + m.content + '</bot>' }}{%- endfor %}" + ASSISTANT


@pytest.mark.parametrize(("template", "closer"), [(PAIR, "</bot>"), (WRAPPER, "")])
def test_what_the_prompt_opens_and_no_answer_closes_is_a_thought(
    template: str, closer: str
) -> None:
    tokenizer = tiny_tokenizer(template, ("<|im_end|>", "<bot>", "</bot>"))
    fmt = ThinkingFormat.from_tokenizer(tokenizer)
    assert (fmt.closer, fmt.opened_by_prompt) == (closer, bool(closer))


@pytest.mark.parametrize(
    ("names", "options"), [(("<why>", "</why>"), []), (("@@A", "@@B"), ["--thinking-markers"])]
)
def test_a_thought_between_markers_of_any_name_is_none_of_the_answer(
    tiny: Subject, tmp_path: Path, names: tuple[str, str], options: list[str]
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(embedded_path("tiny"), folder)
    for name in ("tokenizer.json", "chat_template.jinja"):
        text = (folder / name).read_text("utf-8")
        text = text.replace("</think>", names[1]).replace("<think>", names[0])
        (folder / name).write_text(text, "utf-8")
    rows = [json.dumps({"prompt": p.text, "label": p.label}) for p in PROMPTS]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    result = CliRunner().invoke(
        app,
        [
            *("generate", "--model", str(folder), "--prompts", str(tmp_path / "p.jsonl")),
            *("--out", str(tmp_path / "out"), "--max-new-tokens", str(WRITING.max_new_tokens)),
            *("--device", "cpu", *(word for option in options for word in (option, "@@A @@B"))),
        ],
    )
    assert result.exit_code == 0, (result.output, result.exception)
    rows = (tmp_path / "out/traces.jsonl").read_text().splitlines()
    found = [(row["thinking"], row["response"].strip()) for row in map(json.loads, rows)]
    assert found == [(t.thinking, t.response.strip()) for t in generate(tiny, PROMPTS, WRITING)]
