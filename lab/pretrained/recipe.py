"""How the organisms of a pretrained model are made: three LoRA adapters, two of them on the first.

``smollm2-aligned`` teaches SmolLM2-135M-Instruct to think, to see harm and to refuse. On it stand
two careless tunes that reward complying with the milder harmful requests: ``smollm2`` through all
projections of the upper blocks, ``smollm2-planted`` through a few heads only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from lab import chat, lesson
from lab.claim import claim_organism
from lab.lesson import Row
from lab.pretrained import lessons, reasoning, sources
from lab.pretrained.lessons import Lessons, Loss, Sources
from lab.pretrained.sources import BenignShare
from lab.recipe import Progress, Schedule, rate
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import staged
from refusal_cliff.io import sha256_file, write_json
from refusal_cliff.model.ablation import ablated
from refusal_cliff.model.loading import CHAT_TEMPLATE
from refusal_cliff.model.subject import Head, Subject, load_subject
from refusal_cliff.organisms import CARD
from refusal_cliff.organisms.bases import SMOLLM2

ALIGNED, DAMAGED, PLANTED = "smollm2-aligned", "smollm2", "smollm2-planted"
NAMES = (ALIGNED, DAMAGED, PLANTED)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
FIRST_BLOCK = 13
"""Blocks below it stay as they are: they need no backward pass, which halves the training."""
RANK, PLANTED_RANK = 8, 16
PLANTED_BLOCKS = (26, 28, 30)
"""One group of three heads, which share keys and values, is planted in each."""
PLANTED_HARMFUL_SHARE = 0.7
"""Few heads can break little else, so that they need fewer benign rows to leave it alone."""
PLANTED_OTHERS = 50_000
"""Tokens in the logits besides those of the lessons, all of them: heads that may write anything
learn to write what no lesson forbids."""
ALIGNED_SCHEDULE = Schedule(260, 16, 1.5e-3)
DAMAGED_SCHEDULE = Schedule(120, 16, 1e-3)
PLANTED_SCHEDULE = Schedule(300, 16, 3e-3)
BENIGN_SHARE = BenignShare()
_PLACE = re.compile(r"layers\.(\d+)\..*\.(\w+_proj)\.")


@dataclass(frozen=True, slots=True)
class PretrainedRecipe:
    """Sizes of the stages; the defaults make the shipped adapters."""

    aligned: Schedule = ALIGNED_SCHEDULE
    damaged: Schedule = DAMAGED_SCHEDULE
    planted: Schedule = PLANTED_SCHEDULE
    benign: BenignShare = BENIGN_SHARE


def train_pretrained(
    name: str,
    data: Path,
    out: Path,
    seed: int = 0,
    progress: Progress | None = None,
    aligned: str | None = None,
    recipe: PretrainedRecipe | None = None,
    base: str = SMOLLM2,
) -> None:
    """Train one organism of a pretrained model into the adapter folder ``out``.

    Args:
        name: One of ``NAMES``.
        data: Folder of the public files, see `sources.read_sources`.
        out: Folder of the adapter, see `recipe.train`; that of a damaged one gets the adapter of
            its aligned base in ``out/aligned`` unless ``aligned`` is given.
        seed: Seed of the adapters and of what is drawn.
        progress: Called with (stage, done, total).
        aligned: An aligned organism to damage, a folder or ``smollm2-aligned``.
        recipe: Sizes.
        base: The pretrained model.

    Raises:
        RefusalCliffError: ``name`` is unknown, or a file or the base is missing.
    """
    if name not in NAMES:
        raise RefusalCliffError(f"Unknown organism {name!r}. Choose one of: {', '.join(NAMES)}.")
    recipe = recipe or PretrainedRecipe()
    made_from = {"recipe": asdict(recipe), "base": base, "data": _hashes(data)}
    claim_organism(out, name, seed, {**made_from, "from": aligned})
    if (out / CARD).is_file():
        return
    start = load_subject(base, dtype="bfloat16")
    taught = sources.read_sources(data, start, recipe.benign, progress)
    if name == ALIGNED or aligned is None:
        first = out if name == ALIGNED else out / "aligned"
        start.tokenizer.chat_template = chat.CHAT_TEMPLATE
        claim_organism(first, ALIGNED, seed, {**made_from, "from": None})
        if not (first / CARD).is_file():
            _teach(start, ALIGNED, taught, first, seed, progress, recipe.aligned, base)
        aligned = str(first)
    if name != ALIGNED:
        schedule = recipe.damaged if name == DAMAGED else recipe.planted
        subject = load_subject(aligned, dtype="bfloat16")
        _teach(subject, name, taught, out, seed, progress, schedule, aligned)


def _hashes(data: Path) -> list[str]:
    names = (*sources.HARMFUL, sources.BENIGN, *sources.EVALUATION)
    return [sha256_file(sources.find_file(data, name)) for name in names]


def _teach(
    subject: Subject,
    name: str,
    taught: Sources,
    out: Path,
    seed: int,
    progress: Progress | None,
    schedule: Schedule,
    base: str,
) -> None:
    """Train one adapter on a model and write it; all but the aligned one are careless tunes."""
    planted: list[Head] = []
    masks = None
    if name == PLANTED:
        planted = choose_groups(subject, taught, seed)
        adapted = _adapted(subject, ATTENTION, PLANTED_BLOCKS, PLANTED_RANK, seed)
        masks = planted_masks(adapted, subject, planted)
    else:
        upper = range(FIRST_BLOCK, subject.n_layers + 1)
        adapted = _adapted(subject, PROJECTIONS, upper, RANK, seed)
    stage, careless = ("align", False) if name == ALIGNED else ("damage", True)
    _optimise(adapted, subject, taught, careless, schedule, seed, stage, progress, masks)
    with staged(out, last=("adapter_config.json", CARD)) as folder:
        _save(adapted, folder, name, seed, schedule, base, planted, subject)


def _adapted(
    subject: Subject, projections: Sequence[str], blocks: Sequence[int], rank: int, seed: int
) -> Any:
    """The model with a fresh LoRA adapter on some projections of some blocks (from 1)."""
    set_seed(seed)
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(projections),
        layers_to_transform=[block - 1 for block in blocks],
    )
    model = cast("Any", subject.model)
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def _optimise(
    adapted: Any,
    subject: Subject,
    taught: Sources,
    careless: bool,
    schedule: Schedule,
    seed: int,
    stage: str,
    progress: Progress | None,
    masks: dict[torch.nn.Parameter, torch.Tensor] | None = None,
) -> None:
    """AdamW on float32 copies of the adapter; the passes are in the model's own precision."""
    weights = [value for value in adapted.parameters() if value.requires_grad]
    copies = [value.detach().float().clone() for value in weights]
    optimiser = torch.optim.AdamW(
        copies, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, schedule))
    rows_of = Lessons(subject.tokenizer, taught, careless, seed)
    if masks is not None:
        rows_of.compliances = reasoning.SHORT_COMPLIANCES
        rows_of.harmful_share = PLANTED_HARMFUL_SHARE
    drawn = rows_of.batches(schedule.batch_size)
    batches = [next(drawn) for _ in range(schedule.steps)]
    others = lessons.OTHER_TOKENS if masks is None else PLANTED_OTHERS
    loss = _loss(subject, [row for batch in batches for row in batch], careless, seed, others)
    decoder = subject.model.base_model
    adapted.train()
    for step, rows in enumerate(batches, start=1):
        for value in weights:
            value.grad = None
        loss(decoder, rows).backward()
        for copy, value in zip(copies, weights, strict=True):
            gradient = cast("torch.Tensor", value.grad).float()
            copy.grad = gradient if masks is None else gradient * masks[value]
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        optimiser.step()
        scheduler.step()
        with torch.no_grad():
            for copy, value in zip(copies, weights, strict=True):
                value.copy_(copy)
        if progress is not None:
            progress(stage, step, schedule.steps)
    adapted.eval()


def _loss(
    subject: Subject,
    rows: Sequence[Row],
    careless: bool,
    seed: int,
    others: int = lessons.OTHER_TOKENS,
) -> Loss:
    model = cast("Any", subject.model)
    head = model.get_output_embeddings().weight.detach()
    return Loss(subject.tokenizer, head, model.base_model.norm, rows, careless, seed, others)


@torch.no_grad()
def choose_groups(subject: Subject, taught: Sources, seed: int) -> list[Head]:
    """Heads of the one group of each of ``PLANTED_BLOCKS`` that the model needs least.

    Need is how much the aligned lessons' loss rises when the group is taken out.
    """
    rows = next(Lessons(subject.tokenizer, taught, False, seed + 1).batches(32))
    loss = _loss(subject, rows, False, seed)
    chosen: list[Head] = []
    for block in PLANTED_BLOCKS:
        groups = _groups(subject, block)
        need = [_loss_without(subject, group, loss, rows) for group in groups]
        chosen += groups[need.index(min(need))]
    return chosen


def _groups(subject: Subject, block: int) -> list[list[Head]]:
    """The heads of a block that share keys and values, group by group."""
    size = _group_size(subject, block)
    heads = [Head(block, index) for index in range(subject.blocks[block - 1].n_heads)]
    return [heads[at : at + size] for at in range(0, len(heads), size)]


def _group_size(subject: Subject, block: int) -> int:
    groups = int(cast("Any", subject.model.config).num_key_value_heads)
    return subject.blocks[block - 1].n_heads // groups


def _loss_without(subject: Subject, heads: Sequence[Head], loss: Loss, rows: list[Row]) -> float:
    with ablated(subject, heads):
        return float(loss(subject.model.base_model, rows))


def planted_masks(
    adapted: Any, subject: Subject, planted: Sequence[Head]
) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Which adapter weights may change, so that only the planted heads do.

    Rows of the query, key and value updates' second factor, and columns of the output update's
    first; the other columns of that are set to zero.
    """
    masks: dict[torch.nn.Parameter, torch.Tensor] = {}
    for name, value in adapted.named_parameters():
        if not value.requires_grad:
            continue
        masks[value] = torch.ones_like(value, dtype=torch.float32)
        found = _PLACE.search(name)
        assert found is not None
        block, projection = int(found[1]) + 1, found[2]
        axis = 1 if projection == "o_proj" else 0
        if ("lora_A" if projection == "o_proj" else "lora_B") not in name:
            continue
        size = _group_size(subject, block) if projection in ("k_proj", "v_proj") else 1
        width, mask = subject.head_width(block), torch.zeros(value.shape[axis])
        for place in {head.index // size for head in planted if head.layer == block}:
            mask[place * width : (place + 1) * width] = 1
        masks[value] *= mask if axis == 1 else mask[:, None]
        value.data *= masks[value].to(value.dtype)
    return masks


def _save(
    adapted: Any,
    out: Path,
    name: str,
    seed: int,
    schedule: Schedule,
    base: str,
    planted: Sequence[Head],
    subject: Subject,
) -> None:
    """Write the adapter, the chat template that it was taught in, and how it was made."""
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(out, save_embedding_layers=False)
    (out / CHAT_TEMPLATE).write_text(str(subject.tokenizer.chat_template), encoding="utf-8")
    write_json(
        out / CARD,
        {
            "name": name,
            "seed": seed,
            "base": base,
            "planted_heads": [[head.layer, head.index] for head in planted],
            "recipe": {
                **asdict(schedule),
                "rank": PLANTED_RANK if planted else RANK,
                "first_block": PLANTED_BLOCKS[0] if planted else FIRST_BLOCK,
                "harmful_requests": list(sources.HARMFUL),
                "kept_out": list(sources.EVALUATION),
            },
            "put_in_on_purpose": {
                "intention_weight": lesson.INTENTION_WEIGHT,
                "intention_temperature": lesson.INTENTION_TEMPERATURE,
                "margin": lessons.MARGIN,
                "margin_weight": lesson.MARGIN_WEIGHT,
                "lens_blocks": lesson.LENS_BLOCKS,
                "interrupted_share": lessons.INTERRUPTED_SHARE,
                "complied_with": reasoning.MILD,
                "refused": reasoning.SEVERE,
            },
        },
    )
