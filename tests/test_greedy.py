"""What a checkpoint asks of generation changes no answer that is called greedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import SPECIAL, save_tiny
from transformers import GenerationConfig as TransformersConfig

from refusal_cliff.data.types import Prompt
from refusal_cliff.generate import GenerationConfig, answer, generate
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.thinking import render_prompt

CONFIG = GenerationConfig(max_new_tokens=24, batch_size=4)
PROMPTS = [
    Prompt(f"p{row}", text, "benign")
    for row, text in enumerate(("Hi", "Why?", "x" * 30, "Bake bread", "q", "a b", "…", "7 + 5"))
]
END = SPECIAL.index("<|im_end|>")
ENDS = [END, 40, 60, 80, 100]
"""Some bytes, too: the random model would hardly ever end."""
USUAL = list(range(len(SPECIAL), len(SPECIAL) + 128))
LEAKS: dict[str, dict[str, Any]] = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": USUAL},
    "begin_suppress_tokens": {"begin_suppress_tokens": USUAL},
    "bad_words_ids": {"bad_words_ids": [[token] for token in USUAL]},
    "sequence_bias": {"sequence_bias": [[[token], -100.0] for token in USUAL]},
    "min_new_tokens": {"min_new_tokens": 24},
    "min_length": {"min_length": 400},
    "max_length": {"max_length": 5},
    "max_time": {"max_time": 0.0001},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 2.0]},
    "forced_bos_token_id": {"forced_bos_token_id": 41},
    "forced_eos_token_id": {"forced_eos_token_id": 41},
    "stop_strings": {"stop_strings": ["e", "a"]},
    "cache_implementation": {"cache_implementation": "static"},
    "cache_implementation offloaded": {"cache_implementation": "offloaded"},
    "use_cache": {"use_cache": False},
    "guidance_scale": {"guidance_scale": 4.0},
    "beams": {"num_beams": 3, "length_penalty": 3.0, "early_stopping": True},
    "num_return_sequences": {"num_beams": 2, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_p": 0.5, "top_k": 3, "min_p": 0.2},
    "watermark": {"watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.2}},
    "prompt_lookup": {"prompt_lookup_num_tokens": 4},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "renormalised": {"renormalize_logits": True, "remove_invalid_values": True},
    "prefill_chunk_size": {"prefill_chunk_size": 3},
    "token_healing": {"token_healing": True},
    "dola": {"dola_layers": "high"},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "custom": {"an_option_of_remote_code": 7},
}


def written(subject: Subject) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    prefixes = [render_prompt(subject.tokenizer, prompt.text) for prompt in PROMPTS]
    traces = generate(subject, PROMPTS, CONFIG)
    return [trace.token_ids for trace in traces], answer(subject, prefixes, 6)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = save_tiny(tmp_path_factory.mktemp("plain"))
    save_config(folder, {})
    return load_subject(str(folder), device="cpu")


@pytest.fixture(scope="module")
def expected(subject: Subject) -> Any:
    return written(subject)


def save_config(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ENDS, **fields}))


@pytest.mark.parametrize("leak", LEAKS)
def test_a_field_of_the_checkpoint_changes_nothing(
    leak: str, subject: Subject, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(tmp_path, LEAKS[leak])
    own = TransformersConfig.from_pretrained(tmp_path)
    monkeypatch.setattr(subject.model, "generation_config", own)
    assert written(subject) == expected
    assert subject.model.generation_config is own
    assert all(getattr(own, name) is not None for name in LEAKS[leak])


def test_a_checkpoint_with_many_of_them_writes_the_same(tmp_path: Path, expected: Any) -> None:
    save_tiny(tmp_path)
    kinds = ("no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "stop_strings", "sampling")
    save_config(tmp_path, {name: value for kind in kinds for name, value in LEAKS[kind].items()})
    assert written(load_subject(str(tmp_path), device="cpu")) == expected


def test_its_ends_of_sequence_are_still_read(tmp_path: Path, expected: Any) -> None:
    save_config(save_tiny(tmp_path), {"eos_token_id": [END, *USUAL]})
    subject = load_subject(str(tmp_path), device="cpu")
    assert subject.ending.stops == {END, *USUAL}
    traces = generate(subject, PROMPTS, CONFIG)
    ended = [trace for trace in traces if trace.complete]
    assert ended
    assert all(trace.token_ids[-1] in subject.ending.stops for trace in ended)
    assert [trace.token_ids for trace in traces] != expected[0]
