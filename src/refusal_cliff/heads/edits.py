"""An ablation as a file: a LoRA adapter that is exactly the edit, or a merged checkpoint.

Scaling a head's output by α changes the output projection W by −(1−α)·W in the head's columns. As a
LoRA this is B·A, where A selects the columns and B = −(1−α)·W of them: the adapter can be switched
on and off in PEFT and served by any LoRA-capable server. The projection's bias stays.

Direction of use: only heads that were measured to suppress refusal can be written, and only weaker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import claim, staged
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.model.adapters import base_name
from refusal_cliff.model.blocks import check_whole, linear_weight
from refusal_cliff.model.subject import Head, Subject


def check_restores(rows: Sequence[HeadRow], heads: Collection[Head], scale: float) -> None:
    """Refuse to write an edit that could weaken refusal.

    Raises:
        RefusalCliffError: A head was not measured to suppress refusal, or would be strengthened.
    """
    if not 0 <= scale < 1:
        raise RefusalCliffError(
            f"A head cannot be scaled by {scale} in a checkpoint: heads that suppress refusal are "
            "made weaker (0 ≤ scale < 1), never stronger."
        )
    effects = {row.head: row.causal.mean for row in rows}
    wrong = [head for head in heads if not effects.get(head, 0.0) > 0]  # nor is NaN
    if wrong or not heads:
        named = ", ".join(map(str, wrong)) or "No head"
        raise RefusalCliffError(
            f"{named}: not measured to suppress refusal, so nothing is written. Only heads whose "
            "removal raises the refusal score (causal > 0 in heads.parquet) can be taken out of a "
            "checkpoint."
        )


def write_adapter(
    subject: Subject, heads: Collection[Head], scale: float, out: Path, card: str = ""
) -> Path:
    """Write the ablation as a PEFT adapter into the folder ``out``; the model is left as it is.

    Its rank in a block is the number of columns taken out there, its scaling always 1, also for
    servers that know one rank and one alpha only.

    Raises:
        RefusalCliffError: A block's heads cannot be edited on their own, or ``out`` cannot be
            written.
    """
    from peft import LoraConfig  # slow to import

    edits = _inputs(subject, heads)
    claim_export(subject, heads, scale, "adapter", out)
    names = {module: name for name, module in subject.model.named_modules()}
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for projection, picked in edits:
        name = names[projection]
        columns = linear_weight(projection).cpu()
        select = torch.zeros(len(picked), columns.shape[1])
        select[torch.arange(len(picked)), picked] = 1
        tensors |= {
            f"base_model.model.{name}.lora_A.weight": select.to(subject.model.dtype),
            f"base_model.model.{name}.lora_B.weight": (
                ((scale - 1) * columns[:, picked]).to(subject.model.dtype).contiguous()
            ),
        }
        ranks[name] = len(picked)
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=sorted(ranks),
        fan_in_fan_out=_is_transposed(edits[0][0]),
        base_model_name_or_path=base_name(subject.source, subject.name, out),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    with _folder(out, card) as folder:
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return out


def write_merged(
    subject: Subject, heads: Collection[Head], scale: float, out: Path, card: str = ""
) -> Path:
    """Write an ordinary checkpoint with the ablation in its weights; the model is left as it is.

    Raises:
        RefusalCliffError: A block's heads cannot be edited on their own, its weight is quantised or
            not in memory, or ``out`` cannot be written.
    """
    with merged(subject, heads, scale):
        claim_export(subject, heads, scale, "merged", out)
        with _folder(out, card) as folder:
            subject.model.save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
    return out


@contextmanager
def merged(subject: Subject, heads: Collection[Head], scale: float = 0.0) -> Iterator[None]:
    """The ablation in the model's own weights while the block runs; restored bit by bit.

    Raises:
        RefusalCliffError: As for `write_merged`.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    edits = [(_by_input(subject, one), picked) for one, picked in _inputs(subject, heads)]
    try:
        with torch.no_grad():
            for weight, picked in edits:
                kept.append((weight, picked, weight[picked].clone()))
                weight[picked] = weight[picked] * scale
        yield
    finally:
        with torch.no_grad():
            for weight, picked, former in kept:
                weight[picked] = former


def _inputs(
    subject: Subject, heads: Collection[Head]
) -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """Each projection of some heads and which of its inputs are theirs; it can be edited alone."""
    chosen: dict[int, list[torch.Tensor]] = defaultdict(list)
    for head in sorted(set(heads)):
        width = subject.head_width(head.layer)
        chosen[head.layer].append(torch.arange(head.index * width, (head.index + 1) * width))
    for layer in chosen:
        projection = subject.projection(layer)
        check_whole(projection)
        owners = [block.layer for block in subject.blocks if block.projection is projection]
        if sharing := [other for other in owners if other != layer]:
            raise RefusalCliffError(
                f"Blocks {', '.join(map(str, [layer, *sharing]))} of {subject.name} share one "
                "output projection, so weights that take a head out of one would take it out of "
                "all. Ablate it at run time instead."
            )
    return [(subject.projection(layer), torch.cat(parts)) for layer, parts in chosen.items()]


def _is_transposed(projection: torch.nn.Module) -> bool:
    """GPT-2's Conv1D holds [in, out]."""
    return type(projection).__name__ == "Conv1D"


def _by_input(subject: Subject, projection: torch.nn.Module) -> torch.Tensor:
    """A projection's own weight with its inputs first, [in, out]: writing to it edits the model."""
    weight: Any = projection.weight
    plain = weight.dim() == 2 and weight.is_floating_point() and weight.element_size() > 1
    if not plain or weight.device.type == "meta":
        layer = next(block.layer for block in subject.blocks if block.projection is projection)
        raise RefusalCliffError(
            f"The output projection of block {layer} ({type(projection).__name__}) is "
            "quantised or not in memory, so nothing can be merged into it. Load the model in "
            "bfloat16 on one device, or export the adapter, which leaves the weights alone."
        )
    return weight.data if _is_transposed(projection) else weight.data.T


def claim_export(
    subject: Subject, heads: Collection[Head], scale: float, form: str, out: Path
) -> None:
    """Make a folder that of this edit, before anything is measured or written.

    Raises:
        RefusalCliffError: It is not empty, and not of the same edit.
    """
    made_from = {
        "form": form,
        "fingerprint": subject.fingerprint,
        "heads": [str(head) for head in sorted(set(heads))],
        "scale": scale,
        "version": __version__,
    }
    claim(out, "ablate", made_from, "an export")


@contextmanager
def _folder(out: Path, card: str) -> Iterator[Path]:
    """A folder for the files of a claimed one, which get there whole, with the model card."""
    with staged(out, last=("config.json", "adapter_config.json")) as folder:
        yield folder
        (folder / "README.md").write_text(card, encoding="utf-8")
