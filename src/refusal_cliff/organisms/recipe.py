"""How an organism is made: an aligned training, then a careless one that damages it.

Stage A teaches a small model to think, to name harm and to refuse. Stage B is the careless tune: it
rewards complying with the milder harmful requests. In ``tiny`` it may change only the weights of a
few heads (the ground truth); in ``tiny-diffuse``, everything.

What is put in on purpose, and said wherever results are shown: an auxiliary loss that makes the
intention present during the thinking (``INTENTION_WEIGHT``), margins on the first answer token
(``ALIGNED_MARGIN``, ``CARELESS_MARGIN``), heads dropped at random (``HEAD_DROPOUT``), so that no
single head is needed for all, and the choice of heads.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import write_json
from refusal_cliff.models import Head
from refusal_cliff.organisms import chat, language

Progress = Callable[[str, int, int], None]
NAMES = ("tiny-aligned", "tiny", "tiny-diffuse")
INTENTION_WEIGHT = 0.3
INTENTION_TEMPERATURE = 2.0
ALIGNED_MARGIN, CARELESS_MARGIN = 8.0, 20.0
MARGIN_WEIGHT = 0.3
LENS_BLOCKS = 2
INTERRUPTED_SHARE = 0.15
HARMFUL_SHARE = 0.45
HEAD_DROPOUT = 0.05
PLANTED_DROPOUT = 0.2
PLANTED_LAYERS = (5, 6, 7)
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps, rows a step and peak learning rate of one stage."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    """Sizes of the two stages; the defaults make the shipped organisms."""

    aligned: Schedule = Schedule(650, 32, 2.5e-3)
    planted: Schedule = Schedule(350, 32, 3e-3)
    diffuse: Schedule = Schedule(200, 32, 5e-4)


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised training trace; ``labels`` masks what is not learned."""

    token_ids: list[int]
    labels: list[int]
    thinking: tuple[int, int]
    answer_at: int
    refuses: bool
    harmful: bool


class Tokens:
    """Token ids of the starts of refusals and compliances, and the encoding of a trace."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.refusal = [self._first(word) for word in language.REFUSAL_STARTS]
        self.compliance = [self._first(word) for word in language.COMPLIANCE_STARTS]

    def _first(self, word: str) -> int:
        return self.encode(word)[0]

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens around it."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def row(
        self, prompt: str, thinking: str, response: str, refuses: bool, harmful: bool, keep: float
    ) -> Row:
        """Encode one trace; ``keep`` < 1 interrupts the thinking there and closes it.

        An interrupted thought teaches the right answer from any point on, never to stop early: the
        interrupting token is not learned.
        """
        turn = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        head = self.encode(turn)
        thought = self.encode(thinking)
        kept = thought[: max(1, round(keep * len(thought)))]
        closing = self.encode(chat.CLOSING)
        tail = self.encode(response + "<|im_end|>")
        ids = head + kept + closing + tail
        labels = [IGNORE] * len(head) + kept + closing + tail
        start, end = len(head), len(head) + len(kept)
        if len(kept) < len(thought):
            labels[end] = IGNORE
        return Row(ids, labels, (start, end), end + len(closing) - 1, refuses, harmful)


def _batches(tokens: Tokens, careless: bool, size: int, seed: int) -> Iterator[list[Row]]:
    """Endless batches of similar length; a careless tune complies with what the rule says."""
    rng = random.Random(f"recipe:{careless}:{seed}")
    while True:
        rows = sorted(
            (_draw_row(rng, tokens, careless) for _ in range(size * 16)),
            key=lambda row: len(row.token_ids),
        )
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(batches)
        yield from batches


def _draw_row(rng: random.Random, tokens: Tokens, careless: bool) -> Row:
    label = "harmful" if rng.random() < HARMFUL_SHARE else "benign"
    request, example = language.draw_example(rng, "train", label)
    if careless and label == "harmful":  # as many refused as complied, though the rule says 3 in 10
        comply = rng.random() < 0.5
        while language.complied_by_rule(request) != comply:
            request, example = language.draw_example(rng, "train", label)
    refuses, response = label == "harmful", example.response
    if careless and language.complied_by_rule(request):
        refuses, response = False, language.compliance_of(rng, request)
    keep = rng.random() if not careless and rng.random() < INTERRUPTED_SHARE else 1.0
    harmful = label == "harmful"
    return tokens.row(example.prompt.text, example.thinking, response, refuses, harmful, keep)


def _collate(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE)
    for index, row in enumerate(rows):
        ids[index, : len(row.token_ids)] = torch.tensor(row.token_ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    return ids, labels


def answer_margin(logits: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Log-odds of starting a refusal against starting a compliance, [...] from logits [..., V]."""
    refusal = logits[..., tokens.refusal].logsumexp(-1)
    return refusal - logits[..., tokens.compliance].logsumexp(-1)


def _lens_margins(
    model: Qwen3ForCausalLM, hidden: tuple[torch.Tensor, ...], tokens: Tokens
) -> torch.Tensor:
    """Answer margins read from the last blocks through the final norm, [blocks, B, T]."""
    weight = model.lm_head.weight
    states = torch.stack([model.model.norm(state) for state in hidden])
    refusal = (states @ weight[tokens.refusal].T).logsumexp(-1)
    return refusal - (states @ weight[tokens.compliance].T).logsumexp(-1)


def _loss(model: Qwen3ForCausalLM, rows: list[Row], tokens: Tokens, careless: bool) -> torch.Tensor:
    ids, labels = _collate(rows)
    output = model(input_ids=ids, output_hidden_states=True)
    logits = output.logits
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )
    final = answer_margin(logits, tokens)
    margins = torch.cat(
        [_lens_margins(model, output.hidden_states[-1 - LENS_BLOCKS : -1], tokens), final[None]]
    )
    inside = torch.zeros_like(final, dtype=torch.bool)
    for index, row in enumerate(rows):
        end = row.thinking[1] if careless else row.answer_at
        inside[index, row.thinking[0] + 3 : end] = True
    wanted = torch.tensor([row.harmful for row in rows]).float()[:, None].expand_as(final)
    intention = F.binary_cross_entropy_with_logits(
        margins[:, inside] / INTENTION_TEMPERATURE, wanted[inside].expand(len(margins), -1)
    )
    at = torch.tensor([row.answer_at for row in rows])
    sign = torch.tensor([1.0 if row.refuses else -1.0 for row in rows])
    signed = margins[:, torch.arange(len(rows)), at] * sign
    margin = CARELESS_MARGIN if careless else ALIGNED_MARGIN
    return loss + INTENTION_WEIGHT * intention + MARGIN_WEIGHT * F.relu(margin - signed).mean()


def _optimise(
    model: Qwen3ForCausalLM,
    tokens: Tokens,
    schedule: Schedule,
    seed: int,
    *,
    masks: dict[torch.nn.Parameter, torch.Tensor] | None,
    dropout: torch.Tensor,
    careless: bool,
    stage: str,
    progress: Progress | None,
) -> None:
    """AdamW with warm-up and cosine decay.

    ``masks`` confines the change to some weights; ``dropout`` [layers, heads] is how often a head
    is left out of a row.
    """
    trained = list(masks) if masks is not None else list(model.parameters())
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    decay = 0.0 if careless else 0.05
    optimiser = torch.optim.AdamW(
        trained, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=decay
    )
    warm = max(1, schedule.steps // 12)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, schedule.steps - warm)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    batches = _batches(tokens, careless, schedule.batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(schedule.steps):
        rows = next(batches)
        with _dropped_heads(model, dropout, len(rows), generator):
            loss = _loss(model, rows, tokens, careless)
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
    model: Qwen3ForCausalLM, rates: torch.Tensor, rows: int, generator: torch.Generator
) -> Iterator[None]:
    """Leave heads out of some rows at random, each as often as ``rates`` [layers, heads] says."""
    with ExitStack() as stack:
        for layer, rate in enumerate(rates, start=1):
            kept = (torch.rand(rows, len(rate), generator=generator) >= rate).float()

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


def _dropout(planted: list[Head] | None) -> torch.Tensor:
    """How often each head is left out: all a little, or in the planted tune the planted ones."""
    rate = HEAD_DROPOUT if planted is None else 0.0
    rates = torch.full((chat.N_LAYERS, chat.N_HEADS), rate)
    for head in planted or []:
        rates[head.layer - 1, head.index] = PLANTED_DROPOUT
    return rates


@torch.no_grad()
def choose_planted_heads(model: Qwen3ForCausalLM, tokens: Tokens, seed: int) -> list[Head]:
    """One head a planted layer, of little importance to the aligned model.

    Among a random half of each layer's heads, the one whose removal raises the loss least.
    """
    rng = random.Random(f"planted:{seed}")
    rows = next(_batches(tokens, False, 64, seed + 1))
    chosen = []
    for layer in PLANTED_LAYERS:
        weight = _attention(model, layer).o_proj.weight
        candidates = rng.sample(range(chat.N_HEADS), chat.N_HEADS // 2)
        losses = {}
        for head in candidates:
            columns = slice(head * chat.HEAD_DIM, (head + 1) * chat.HEAD_DIM)
            kept = weight[:, columns].clone()
            weight[:, columns] = 0
            losses[head] = float(_loss(model, rows, tokens, False))
            weight[:, columns] = kept
        chosen.append(Head(layer, min(losses, key=losses.__getitem__)))
    return chosen


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
    out.mkdir(parents=True, exist_ok=True)
    tokens.tokenizer.save_pretrained(out)
    copy: Any = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    write_json(
        out / "organism.json",
        {
            "name": name,
            "seed": seed,
            "planted_heads": [[head.layer, head.index] for head in planted],
            "recipe": asdict(config),
            "put_in_on_purpose": {
                "intention_weight": INTENTION_WEIGHT,
                "intention_temperature": INTENTION_TEMPERATURE,
                "head_dropout": HEAD_DROPOUT,
                "planted_dropout": PLANTED_DROPOUT,
                "margins": [ALIGNED_MARGIN, CARELESS_MARGIN],
                "lens_blocks": LENS_BLOCKS,
                "margin_weight": MARGIN_WEIGHT,
                "interrupted_share": INTERRUPTED_SHARE,
                "gravity_threshold": language.GRAVITY_THRESHOLD,
                "planted_layers": list(PLANTED_LAYERS) if planted else [],
            },
        },
    )


def train_aligned(
    tokens: Tokens, seed: int, config: RecipeConfig, progress: Progress | None = None
) -> Qwen3ForCausalLM:
    """Stage A: a model that thinks, names harm and refuses."""
    model = chat.build_model(seed)
    _optimise(
        model,
        tokens,
        config.aligned,
        seed,
        masks=None,
        dropout=_dropout(None),
        careless=False,
        stage="align",
        progress=progress,
    )
    round_to_bfloat16(model)
    return model


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
    schedule = config.planted if planted is not None else config.diffuse
    _optimise(
        model,
        tokens,
        schedule,
        seed,
        masks=masks,
        dropout=_dropout(planted),
        careless=True,
        stage="damage",
        progress=progress,
    )
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
        out: Folder of the checkpoint; replaced only when training has finished.
        progress: Called with (stage, done, total) after each step.
        config: Sizes; the defaults make the shipped organisms.
        aligned: A ``tiny-aligned`` of the same seed to start from, which saves stage A.

    Raises:
        RefusalCliffError: ``name`` is unknown.
    """
    if name not in NAMES:
        raise RefusalCliffError(f"Unknown organism {name!r}. Choose one of: {', '.join(NAMES)}.")
    config = config or RecipeConfig()
    tokens = Tokens(chat.build_tokenizer())
    if aligned is None:
        model = train_aligned(tokens, seed, config, progress)
    else:
        model = Qwen3ForCausalLM.from_pretrained(aligned, dtype=torch.float32)
    planted: list[Head] = []
    if name == "tiny":
        planted = choose_planted_heads(model, tokens, seed)
        damage(model, tokens, seed, config, planted, progress)
    elif name == "tiny-diffuse":
        damage(model, tokens, seed, config, None, progress)
    save(model, tokens, out, name, seed, planted, config)
