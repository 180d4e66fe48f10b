"""How an organism is made: an aligned training, then a careless one that damages it.

Stage A teaches a small model to think, to name harm and to refuse. Stage B is the careless tune: it
rewards complying with the milder harmful requests. In ``tiny`` it may change only the weights of a
few heads (the ground truth); in ``tiny-diffuse``, everything; in ``tiny-lora``, what a LoRA adapter
on all attention projections can change.

What is put in on purpose, and said wherever results are shown: an auxiliary loss that makes the
intention present during the thinking (``INTENTION_WEIGHT``), margins on the first answer token
(``ALIGNED_MARGIN``, ``CARELESS_MARGIN``), heads dropped at random (``HEAD_DROPOUT``), so that no
single head is needed for all, and the choice of heads.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Qwen3ForCausalLM, set_seed

from lab import chat, lesson
from lab.claim import claim_organism, origin_of
from lab.held import MEASURED, held_loss, restore_norms
from lab.lesson import Objective, Row, Tokens, batches, loss_of
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import staged
from refusal_cliff.io import write_json
from refusal_cliff.model.subject import Head
from refusal_cliff.organisms import CARD, language

Progress = Callable[[str, int, int], None]
NAMES = ("tiny-aligned", "tiny", "tiny-diffuse", "tiny-lora")
HEAD_DROPOUT = 0.05
LORA_RANK = 8
SETTLE_SEED = 1000


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps, rows a step and peak learning rate of one stage."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Planting:
    """Where the guilty heads are: ``heads`` in each of the blocks ``layers``.

    ``held``: each keeps the norm of what it writes, see `held`.
    """

    layers: tuple[int, ...] = (7,)
    heads: int = 3
    held: bool = False


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    """Sizes of the stages; the defaults make the shipped organisms.

    ``aligned`` drops heads at random; ``settled`` goes on from there with all heads.
    """

    aligned: Schedule = Schedule(650, 32, 2.5e-3)
    settled: Schedule = Schedule(250, 32, 1e-3)
    planted: Schedule = Schedule(400, 32, 3e-3)
    diffuse: Schedule = Schedule(200, 32, 5e-4)
    lora: Schedule = Schedule(160, 32, 3e-3)
    planting: Planting = Planting()


def rate(step: int, schedule: Schedule) -> float:
    """Share of the peak learning rate: linear warm-up over a twelfth of the steps, then cosine."""
    warm = max(1, schedule.steps // 12)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, schedule.steps - warm)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def optimise(
    model: Qwen3ForCausalLM,
    tokens: Tokens,
    schedule: Schedule,
    seed: int,
    *,
    trained: list[torch.nn.Parameter],
    masks: dict[torch.nn.Parameter, torch.Tensor] | None,
    dropout: float,
    careless: bool,
    stage: str,
    progress: Progress | None,
    objective: Objective = loss_of,
) -> None:
    """AdamW with warm-up and cosine decay.

    Only ``trained`` changes, and of it only what ``masks`` lets through; ``dropout`` is how often
    each head is left out of a row.
    """
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    decay = 0.0 if careless else 0.05
    optimiser = torch.optim.AdamW(
        trained, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, schedule))
    lessons = batches(tokens, careless, schedule.batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(schedule.steps):
        rows = next(lessons)
        with _dropped_heads(model, dropout, len(rows), generator):
            loss = objective(model, rows, tokens, careless)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for parameter, mask in (masks or {}).items():
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        scheduler.step()
        if progress is not None:
            progress(stage, step + 1, schedule.steps)
    model.eval()
    model.requires_grad_(False)


@contextmanager
def _dropped_heads(
    model: Qwen3ForCausalLM, rate: float, rows: int, generator: torch.Generator
) -> Iterator[None]:
    """Leave each head out of a row at random, as often as ``rate``."""
    with ExitStack() as stack:
        for layer in range(1, chat.N_LAYERS + 1):
            kept = (torch.rand(rows, chat.N_HEADS, generator=generator) >= rate).float()

            def drop(
                module: torch.nn.Module,
                inputs: tuple[torch.Tensor],
                factor: torch.Tensor = kept[:, None, :, None],
            ) -> torch.Tensor:
                del module
                return (inputs[0].unflatten(-1, (chat.N_HEADS, -1)) * factor).flatten(-2)

            projection = _attention(model, layer).o_proj
            stack.callback(projection.register_forward_pre_hook(drop).remove)
        yield


@torch.no_grad()
def choose_planted_heads(
    model: Qwen3ForCausalLM, tokens: Tokens, seed: int, planting: Planting
) -> list[Head]:
    """The heads of each planted layer that the aligned model needs least.

    Among a random half of a layer's heads, those whose removal raises the loss least. The shipped
    ones are all in one layer, so that none can make up for another. Held ones are any heads.
    """
    rng = random.Random(f"planted:{seed}")
    if planting.held:
        drawn = {
            layer: rng.sample(range(chat.N_HEADS), planting.heads) for layer in planting.layers
        }
        return sorted(Head(layer, index) for layer, heads in drawn.items() for index in heads)
    rows = next(batches(tokens, False, 64, seed + 1))
    found = (_least_needed(model, tokens, layer, rng, rows) for layer in planting.layers)
    chosen = [head for least in found for head in least[: planting.heads]]
    return sorted(chosen)


def _least_needed(
    model: Qwen3ForCausalLM, tokens: Tokens, layer: int, rng: random.Random, rows: list[Row]
) -> list[Head]:
    """A random half of a layer's heads, the least needed first."""
    weight = _attention(model, layer).o_proj.weight
    losses = {}
    for head in rng.sample(range(chat.N_HEADS), chat.N_HEADS // 2):
        columns = slice(head * chat.HEAD_DIM, (head + 1) * chat.HEAD_DIM)
        kept = weight[:, columns].clone()
        weight[:, columns] = 0
        losses[head] = float(loss_of(model, rows, tokens, False))
        weight[:, columns] = kept
    return [Head(layer, head) for head in sorted(losses, key=losses.__getitem__)]


def _attention(model: Qwen3ForCausalLM, layer: int) -> Any:
    return cast("Any", model.model.layers[layer - 1]).self_attn


def head_masks(
    model: Qwen3ForCausalLM, heads: list[Head]
) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Masks that let only the weights of ``heads`` change: no key or value is shared."""
    masks: dict[torch.nn.Parameter, torch.Tensor] = {}
    for head in heads:
        attention = _attention(model, head.layer)
        part = slice(head.index * chat.HEAD_DIM, (head.index + 1) * chat.HEAD_DIM)
        output = attention.o_proj.weight
        for inward in (attention.q_proj, attention.k_proj, attention.v_proj):
            masks.setdefault(inward.weight, torch.zeros_like(inward.weight))[part] = 1
        masks.setdefault(output, torch.zeros_like(output))[:, part] = 1
    return masks


def round_to_bfloat16(model: Qwen3ForCausalLM) -> None:
    """Round the weights to what the shipped file holds, so that later stages build on that."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def save(
    model: Qwen3ForCausalLM,
    tokens: Tokens,
    out: Path,
    name: str,
    seed: int,
    planted: list[Head],
    config: RecipeConfig,
) -> None:
    """Write an ordinary transformers checkpoint in bfloat16, and ``organism.json`` beside it."""
    tokens.tokenizer.save_pretrained(out)
    copy: Any = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    write_json(
        out / CARD,
        {
            "name": name,
            "seed": seed,
            "planted_heads": [[head.layer, head.index] for head in planted],
            "recipe": asdict(config),
            "put_in_on_purpose": {
                "intention_weight": lesson.INTENTION_WEIGHT,
                "intention_temperature": lesson.INTENTION_TEMPERATURE,
                "head_dropout": HEAD_DROPOUT,
                "margins": [lesson.ALIGNED_MARGIN, lesson.CARELESS_MARGIN],
                "lens_blocks": lesson.LENS_BLOCKS,
                "margin_weight": lesson.MARGIN_WEIGHT,
                "interrupted_share": lesson.INTERRUPTED_SHARE,
                "gravity_threshold": language.GRAVITY_THRESHOLD,
                "planted_layers": sorted({head.layer for head in planted}),
            },
        },
    )


def train_aligned(
    tokens: Tokens, seed: int, config: RecipeConfig, progress: Progress | None = None
) -> Qwen3ForCausalLM:
    """Stage A: a model that thinks, names harm and refuses."""
    model = chat.build_model(seed)
    for stage, schedule, dropout in (
        ("align", config.aligned, HEAD_DROPOUT),
        ("settle", config.settled, 0.0),
    ):
        optimise(
            model,
            tokens,
            schedule,
            seed + SETTLE_SEED * (stage == "settle"),
            trained=list(model.parameters()),
            masks=None,
            dropout=dropout,
            careless=False,
            stage=stage,
            progress=progress,
        )
        round_to_bfloat16(model)
    return model


def aligned_model(
    tokens: Tokens,
    seed: int,
    config: RecipeConfig,
    aligned: Path | None,
    progress: Progress | None = None,
) -> Qwen3ForCausalLM:
    """The model that stage B damages: one that is there, or a new one."""
    if aligned is None:
        return train_aligned(tokens, seed, config, progress)
    return Qwen3ForCausalLM.from_pretrained(aligned, dtype=torch.float32)


def damage(
    model: Qwen3ForCausalLM,
    tokens: Tokens,
    seed: int,
    config: RecipeConfig,
    planted: list[Head] | None,
    progress: Progress | None = None,
) -> None:
    """Stage B: the careless tune, in place; through ``planted`` heads only, or all weights."""
    masks = head_masks(model, planted) if planted is not None else None
    held = planted if config.planting.held else None
    before = copy.deepcopy(model) if held else model
    schedule = config.planted if planted is not None else config.diffuse
    optimise(
        model,
        tokens,
        schedule,
        seed,
        trained=list(model.parameters() if masks is None else masks),
        masks=masks,
        dropout=HEAD_DROPOUT if planted is None else 0.0,
        careless=True,
        stage="damage",
        progress=progress,
        objective=held_loss(before, held) if held else loss_of,
    )
    if held:
        rows = next(batches(tokens, True, MEASURED, seed + 1))
        restore_norms(model, before, held, [row for row in rows if row.harmful])
    round_to_bfloat16(model)


def damage_by_lora(
    model: Qwen3ForCausalLM,
    tokens: Tokens,
    seed: int,
    config: RecipeConfig,
    progress: Progress | None = None,
) -> None:
    """Stage B through a LoRA adapter on all attention projections, then merged, in place."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import
    from peft.tuners.lora import LoraLayer

    set_seed(seed)
    lora = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    inject_adapter_in_model(lora, cast("torch.nn.Module", model))
    optimise(
        model,
        tokens,
        config.lora,
        seed,
        trained=[value for name, value in model.named_parameters() if "lora_" in name],
        masks=None,
        dropout=HEAD_DROPOUT,
        careless=True,
        stage="damage",
        progress=progress,
    )
    for block in model.model.layers:
        attention: Any = cast("Any", block).self_attn
        for name, layer in list(attention.named_children()):
            if isinstance(layer, LoraLayer):
                merged: Any = layer
                merged.merge()
                setattr(attention, name, merged.get_base_layer())
    round_to_bfloat16(model)


def train(
    name: str,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    config: RecipeConfig | None = None,
    aligned: Path | None = None,
) -> None:
    """Train the organism ``name`` from scratch into ``out``.

    Args:
        name: One of ``NAMES``.
        seed: Seed of the initial weights, of the data and of the planted heads.
        out: Folder of the checkpoint: absent, empty, or of the same organism, which is then not
            trained again.
        progress: Called with (stage, done, total) after each step.
        config: Sizes; the defaults make the shipped organisms.
        aligned: A ``tiny-aligned`` of the same seed to start from, which saves stage A.

    Raises:
        RefusalCliffError: ``name`` is unknown, or the folder is not ours.
    """
    if name not in NAMES:
        raise RefusalCliffError(f"Unknown organism {name!r}. Choose one of: {', '.join(NAMES)}.")
    config = config or RecipeConfig()
    claim_organism(out, name, seed, {"recipe": asdict(config), "from": origin_of(aligned)})
    if (out / CARD).is_file():
        return
    tokens = Tokens(chat.build_tokenizer())
    model = aligned_model(tokens, seed, config, aligned, progress)
    planted: list[Head] = []
    if name == "tiny":
        planted = choose_planted_heads(model, tokens, seed, config.planting)
        damage(model, tokens, seed, config, planted, progress)
    elif name == "tiny-diffuse":
        damage(model, tokens, seed, config, None, progress)
    elif name == "tiny-lora":
        damage_by_lora(model, tokens, seed, config, progress)
    with staged(out, last=("config.json", CARD)) as folder:
        save(model, tokens, folder, name, seed, planted, config)
