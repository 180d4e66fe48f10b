"""A local task of the harness is run offline, and only what follows the thinking is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_chat import SPECIAL, tiny_model, tiny_tokenizer

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import Subject, subject_of

pytest.importorskip("lm_eval", reason="needs the extra utility")

from refusal_cliff.answers.utility import utility

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}"""
WRITES = """generation_kwargs:
  until: ["<never>"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOOSES = """doc_to_choice: ["cat", "dog"]
metric_list:
  - metric: acc
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {i}?", "answer": "cat" if i < 2 else "dog"} for i in range(3)]
    file = tmp_path / "rows.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, more in (
        ("rc_writes", "generate_until", WRITES),
        ("rc_chooses", "multiple_choice", CHOOSES),
    ):
        text = TASK.format(name=name, file=file, kind=kind, more=more)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def scripted(monkeypatch: pytest.MonkeyPatch, text: str) -> Subject:
    """A model that always writes the same."""
    subject = subject_of("tiny", tiny_model(), tiny_tokenizer())
    ids = [*subject.tokenizer(text)["input_ids"], SPECIAL.index("<|im_end|>")]

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], dim=1)

    monkeypatch.setattr(subject.model, "generate", generate)
    return subject


def test_the_thinking_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    subject = scripted(monkeypatch, "dog? No.</think>cat")
    (found,) = utility(subject, ["rc_writes"], include=folder, batch_size=2)
    assert (found.task, found.metric, found.n) == ("rc_writes", "exact_match,none", 3)
    assert found.value == pytest.approx(2 / 3)
    none = scripted(monkeypatch, "cat or dog")
    assert utility(none, ["rc_writes"], include=folder)[0].value == 0.0


def test_likelihoods_and_unknown_tasks_are_refused(folder: Path) -> None:
    subject = subject_of("tiny", tiny_model(), tiny_tokenizer())
    with pytest.raises(RefusalCliffError, match="compares likelihoods"):
        utility(subject, ["rc_chooses"], include=folder, limit=1)
    with pytest.raises(RefusalCliffError, match="Unknown task"):
        utility(subject, ["rc_absent"], include=folder)
