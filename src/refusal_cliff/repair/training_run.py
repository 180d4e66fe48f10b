"""Training from files: what is trained on is listed, what came of it has a card.

The folder of the adapter holds what PEFT or transformers writes, ``repair.json`` (what it was made
from), ``left-out.jsonl`` (rows too long or unfit, never cut) and ``README.md``, the model card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.data.examples import usable_examples
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.rows import source_digest
from refusal_cliff.data.types import LeftOut
from refusal_cliff.io import read_json, sha256_file, write_json, write_json_lines, write_text
from refusal_cliff.model.subject import Subject
from refusal_cliff.repair.training import Method, RepairConfig, first_process, repair, trainable

DESCRIPTION, LEFT_OUT, CARD = "repair.json", "left-out.jsonl", "README.md"


def train_from_files(
    subject: Subject,
    selected: Path,
    benign: str,
    config: RepairConfig,
    out: Path,
    reading: Reading = DEFAULT,
) -> Path:
    """Train on selected examples and benign ones; a finished training is not done again.

    Args:
        subject: The model to repair.
        selected: Written by ``refusal-cliff select``.
        benign: Benign prompts with answers (and thinking, where the model thinks), see `read_rows`.
        config: Budget, mix and seed.
        out: Folder of the adapter or checkpoint.
        reading: How the rows of ``benign`` are read; its markers count for both.

    Returns:
        ``out``.

    Raises:
        RefusalCliffError: A file is not usable, or no row is left to train on.
    """
    described = describe(subject, selected, benign, config, reading)
    done = out / DESCRIPTION
    if done.is_file() and read_json(done)["made_from"] == described:
        return out
    reading = reading.of_model(subject.format)
    chosen, unread = usable_examples(selected, Reading("harmful", markers=reading.markers))
    answered, benign_unread = usable_examples(benign, reading.by_default("benign"))
    rows, long = trainable(subject, chosen, config.max_length)
    helpful, helpful_long = trainable(subject, answered, config.max_length)
    repair(subject, rows, helpful, config, out)
    if first_process():
        unread += [LeftOut(e.prompt.id, None, reason) for e, reason in long]
        benign_unread += [LeftOut(e.prompt.id, None, reason) for e, reason in helpful_long]
        lines = [
            {"file": file, **asdict(row)}
            for file, found in ((str(selected), unread), (benign, benign_unread))
            for row in found
        ]
        write_json_lines(out / LEFT_OUT, lines)
        write_text(out / CARD, model_card(subject, config, len(rows), len(helpful)))
        content = {
            "made_from": described,
            "safety_rows": len(rows),
            "benign_rows": len(helpful),
            "left_out": len(lines),
            "version": __version__,
        }
        write_json(done, content)
    return out


def describe(
    subject: Subject, selected: Path, benign: str, config: RepairConfig, reading: Reading = DEFAULT
) -> dict[str, Any]:
    """All that a training depends on."""
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "selected_sha256": sha256_file(selected),
        "benign": benign,
        "benign_sha256": source_digest(benign),
        "reading": reading.described(),
        **asdict(config),
    }


def model_card(subject: Subject, config: RepairConfig, safety: int, benign: int) -> str:
    """The beginning of the card; the proof adds what was measured."""
    kind = "LoRA adapter" if config.method == "lora" else "full fine-tuning"
    front = ["---", f"base_model: {json.dumps(subject.name)}", "tags: [refusal-cliff, safety]"]
    front += ["library_name: peft"] if config.method == "lora" else []
    return "\n".join(
        [
            *front,
            "---",
            f"# {subject.name}, repaired ({kind})",
            "",
            "Trained by refusal-cliff to refuse harmful requests that the base model recognises in "
            "its thinking and complies with all the same.",
            "",
            f"- base model: {subject.name}, fingerprint `{subject.fingerprint[:16]}`",
            f"- {safety} safety examples and {benign} benign ones, {config.benign_per_step} of "
            f"{config.batch_size} rows of every step benign",
            f"- {config.steps} steps, learning rate {config.lr:g}, seed {config.seed}, no row cut",
            "",
        ]
    )


def finish_card(folder: Path, lines: Sequence[str]) -> None:
    """Put what was measured below the card; in place of what was there before."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8").partition("\n## Measured\n")[0].rstrip()
    write_text(path, "\n".join([text, "", "## Measured", "", *lines, ""]))


METHODS: tuple[Method, ...] = ("lora", "full")
