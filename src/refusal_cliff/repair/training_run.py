"""Training from files: what is trained on is listed, what came of it has a card.

The folder of the adapter holds ``train.json`` (what it is made from, written before the training),
what PEFT or transformers writes, ``left-out.jsonl`` (rows too long or unfit, never cut),
``README.md``, the model card, and last ``repair.json``, which says that all is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from refusal_cliff import __version__
from refusal_cliff.data.examples import usable_examples
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.folders import require_output, require_same
from refusal_cliff.io import without_folder, write_text
from refusal_cliff.model.adapters import HOW_TO_LOAD
from refusal_cliff.model.subject import Subject
from refusal_cliff.progress import Watch
from refusal_cliff.repair.plan import made_from, settings, training_plan
from refusal_cliff.repair.training import COMMAND, Told, repair, trainable
from refusal_cliff.settings import RepairConfig
from refusal_cliff.sharded import claim_together

REPORT, LEFT_OUT, CARD = "repair.json", "left-out.jsonl", "README.md"


def train_from_files(
    subject: Subject,
    selected: Path,
    benign: str,
    config: RepairConfig,
    out: Path,
    reading: Reading = DEFAULT,
    told: Told | None = None,
) -> Path:
    """Train on selected examples and benign ones; a finished training is not done again.

    Args:
        subject: The model to repair.
        selected: Written by ``refusal-cliff select``.
        benign: Benign prompts with answers (and thinking, where the model thinks), see `read_rows`.
        config: Budget, mix and seed.
        out: Folder of the adapter or checkpoint.
        reading: How the rows of ``benign`` are read; its markers count for both.
        told: As for `repair`.

    Returns:
        ``out``.

    Raises:
        RefusalCliffError: A file is not usable, or no row is left to train on.
    """
    require_output(out, COMMAND, (selected, benign))
    reading = reading.of_model(subject.format)
    chosen, unread = usable_examples(selected, Reading("harmful", markers=reading.markers))
    answered, benign_unread = usable_examples(benign, reading.by_default("benign"))
    rows, long = trainable(subject, chosen, config.max_length)
    helpful, helpful_long = trainable(subject, answered, config.max_length)
    origin = made_from(subject, rows, helpful, config)
    left_out = (str(selected), [*unread, *long]), (benign, [*benign_unread, *helpful_long])
    lines = [
        json.dumps({"file": file, **asdict(row)}) + "\n"
        for file, found in left_out
        for row in found
    ]
    report = {
        "made_from": origin,
        "safety_rows": len(rows),
        "benign_rows": len(helpful),
        "left_out": len(lines),
        "version": __version__,
    }
    beside = {
        LEFT_OUT: "".join(lines),
        CARD: model_card(subject, config, len(rows), len(helpful)),
        REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n",
    }
    claim_together(out, COMMAND, origin, "a training")
    finished = (out / REPORT).is_file() and any(out.glob("*.safetensors"))
    return out if finished else repair(subject, rows, helpful, config, out, beside, told)


def steps_to(watch: Watch) -> Told:
    """Tell a `Watch` the steps of a training and the loss of the last one."""
    watch("steps of training", 0, None)
    return lambda step, steps, loss: watch("steps of training", step, steps, f"loss {loss:.3f}")


def check_out(out: Path, config: RepairConfig, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a folder that cannot take this training, as far as that is known before any work.

    Raises:
        RefusalCliffError: It is not ours, or holds a training with other settings.
    """
    require_output(out, COMMAND, inputs)
    require_same(out, COMMAND, settings(config), "a training")


def model_card(subject: Subject, config: RepairConfig, safety: int, benign: int) -> str:
    """The beginning of the card; the proof adds what was measured."""
    kind = "LoRA adapter" if config.method == "lora" else "full fine-tuning"
    name = without_folder(subject.name)
    front = ["---", f"base_model: {json.dumps(name)}", "tags: [refusal-cliff, safety]"]
    front += ["library_name: peft"] if config.method == "lora" else []
    return "\n".join(
        [
            *front,
            "---",
            f"# {name}, repaired ({kind})",
            "",
            "Trained by refusal-cliff to refuse harmful requests that the base model recognises in "
            "its thinking and complies with all the same.",
            "",
            f"- base model: {name}, fingerprint `{subject.fingerprint[:16]}`",
            f"- {safety} safety examples and {benign} benign ones, {config.benign_per_step} of "
            f"{config.batch_size} rows of every step benign",
            f"- {_seen(config, safety, benign)}",
            f"- {config.steps} steps, learning rate {config.lr:g}, seed {config.seed}, no row cut",
            *([f"- LoRA rank {config.lora_r}", "", HOW_TO_LOAD] if config.method == "lora" else []),
            "",
        ]
    )


def _seen(config: RepairConfig, safety: int, benign: int) -> str:
    """How many of the examples the steps come to: few steps do not reach all of them."""
    plan = set(training_plan(safety, benign, config))
    helpful = sum(is_benign for is_benign, _ in plan)
    return f"of these, the steps reach {len(plan) - helpful} safety examples and {helpful} benign"


def finish_card(folder: Path, lines: Sequence[str]) -> None:
    """Put what was measured below the card; in place of what was there before."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8").partition("\n## Measured\n")[0].rstrip()
    write_text(path, "\n".join([text, "", "## Measured", "", *lines, ""]))
