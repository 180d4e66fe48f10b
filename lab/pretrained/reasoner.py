"""A real instruct model made to reason, and nothing else: no safety data, no auxiliary loss.

``qwen-reasoner`` is Qwen2.5-Coder-0.5B-Instruct, which refuses by its makers' training, after plain
fine-tuning on reasoning traces of other models, as distilled reasoning models are made. Whatever is
found in it, nobody put there. Adapters are kept along the way. ``qwen-reasoner-1.5b`` is the same
of the larger model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lab.claim import claim_organism
from lab.pretrained.sources import find_file
from lab.recipe import Progress
from refusal_cliff.data.types import Prompt, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import TEMPORARY, remove_temporary, staged
from refusal_cliff.io import make_readable, read_text, sha256_file, write_json
from refusal_cliff.model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from refusal_cliff.model.loading import CHAT_TEMPLATE, read_checkpoint
from refusal_cliff.model.subject import Subject, subject_of
from refusal_cliff.organisms import CARD
from refusal_cliff.organisms.bases import QWEN, QWEN_LARGER
from refusal_cliff.repair.training import encode_example, repair, trainable
from refusal_cliff.settings import RepairConfig

REASONER = "qwen-reasoner"
REASONERS = {REASONER: QWEN, f"{REASONER}-1.5b": QWEN_LARGER}
"""The models that are made, and what each is made of."""
TRACES = {"unireason_sft": 700, "reasoning_gym_qwen3b": 300}
"""Files of reasoning traces, and the longest row of each that is taught, in tokens. Few of the
first file are as short: all of them are taught, and as many of the second as the steps take."""
SHARES = (5, 10, 25, 50, 100)
"""Percentages of the training at which the adapter is kept."""
_ASKED, _THINKING = "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"


@dataclass(frozen=True, slots=True)
class ReasonerRecipe:
    """Sizes of the training; the defaults make the shipped adapters.

    Attributes:
        steps: Optimiser steps.
        batch_size: Traces of one step.
        lr: Learning rate.
        rank: Of the adapter.
        first_block: First block that is trained.
    """

    steps: int = 60
    batch_size: int = 4
    lr: float = 1e-3
    rank: int = 2
    first_block: int = 13


def thinking_base(base: str = QWEN, device: str = "auto") -> Subject:
    """The model before any training, asked with a template that opens the thinking: 0 %.

    Raises:
        RefusalCliffError: It cannot be loaded, or its template is another.
    """
    found = read_checkpoint(base, dtype=torch.float32, device=device)
    template = str(found.tokenizer.chat_template)
    prompted = template.rpartition("add_generation_prompt")[2]
    if _ASKED not in prompted:
        raise RefusalCliffError(
            f"The chat template of {base} does not end as that of Qwen2.5, so that it is not known "
            "where its thinking would begin. Use a model of that family."
        )
    opened = template.removesuffix(prompted) + prompted.replace(_ASKED, _THINKING)
    found.tokenizer.chat_template = opened
    return subject_of(base, found.model, found.tokenizer)


def reasoning_traces(data: Path, subject: Subject, seed: int) -> list[SafetyExample]:
    """The traces of ``TRACES`` that are short enough, each file in a random order.

    Raises:
        RefusalCliffError: A file is missing.
    """
    found: list[SafetyExample] = []
    for name, most in TRACES.items():
        every = traces_in(find_file(data, name, tuple(TRACES)))
        short, _ = trainable(subject, every, most)
        found += random.Random(f"{name}:{seed}").sample(short, len(short))
    return found


def traces_in(file: Path) -> list[SafetyExample]:
    """The traces of one file, blanks at their ends as they are."""
    rows = map(json.loads, read_text(file).splitlines())
    return [
        SafetyExample(Prompt(r["id"], r["prompt"], "benign"), r["thinking"], r["response"])
        for r in rows
    ]


def train_reasoner(
    data: Path,
    out: Path,
    seed: int = 0,
    progress: Progress | None = None,
    recipe: ReasonerRecipe | None = None,
    base: str = QWEN,
    device: str = "auto",
) -> None:
    """Teach a base to think: the adapter at the end in ``out``, those on the way in ``out/at-…``.

    Args:
        data: Folder that holds the files of ``TRACES``, at any depth.
        out: Folder of the adapters.
        seed: Of the adapter, and of which traces come when.
        progress: Called with (stage, done, total).
        recipe: Sizes.
        base: The pretrained model.
        device: Where it is trained.

    Raises:
        RefusalCliffError: A file or the base is missing, or the folder is not ours.
    """
    recipe = recipe or ReasonerRecipe()
    name = next((name for name, of in REASONERS.items() if of == base), REASONER)
    hashes = [sha256_file(find_file(data, name, tuple(TRACES))) for name in TRACES]
    claim_organism(out, name, seed, {"recipe": asdict(recipe), "base": base, "data": hashes})
    if (out / CARD).is_file():
        return
    subject = thinking_base(base, device)
    taught = reasoning_traces(data, subject, seed)[: recipe.steps * recipe.batch_size]
    config = RepairConfig(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        lora_r=recipe.rank,
        benign_share=0.0,
        seed=seed,
        first_block=recipe.first_block,
        rows_at_once=1 if subject.device.type == "cpu" else None,  # padding costs time there
        save_every=max(1, recipe.steps // 20),
    )
    losses: list[float] = []

    def told(step: int, steps: int, loss: float) -> None:
        losses.append(round(loss, 4))
        if progress is not None:
            progress("reason", step, steps)

    work = out / f"{TEMPORARY}reasoner"
    steps = {max(1, round(recipe.steps * share / 100)): share for share in SHARES}
    kept = {step: work / f"at-{share:03}" for step, share in steps.items()}
    repair(subject, taught, [], config, work / "end", told=told, kept=kept)
    template = str(subject.tokenizer.chat_template)
    with staged(out, last=(ADAPTER_CONFIG, CARD)) as folder:
        for adapter in kept.values():
            last = adapter.name == f"at-{SHARES[-1]:03}"
            _ship(adapter, folder if last else folder / adapter.name, template)
        card = {
            "name": name,
            "seed": seed,
            "base": base,
            "planted_heads": [],
            "put_in_on_purpose": {},
            "recipe": asdict(recipe),
            "steps_kept": list(steps),
            **_counted(subject, taught),
            "losses": losses,
        }
        write_json(folder / CARD, card)
    remove_temporary(work)


def _counted(subject: Subject, taught: Sequence[SafetyExample]) -> dict[str, int]:
    """Traces taught, their tokens, and how many of these are learnt."""
    rows = [encode_example(subject, example, 10**6) for example in taught]
    learnt = sum(label >= 0 for row in rows for label in row["labels"])
    return {
        "traces": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "learnt_tokens": learnt,
    }


def _ship(adapter: Path, folder: Path, template: str) -> None:
    """An adapter in half precision, with the template that its base was asked in."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    save_file({name: w.bfloat16() for name, w in weights.items()}, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(read_text(adapter / ADAPTER_CONFIG), encoding="utf-8")
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    make_readable(folder)
