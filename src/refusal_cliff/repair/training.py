"""Supervised fine-tuning, LoRA or full, on safety examples mixed with benign ones.

TRL's ``SFTTrainer`` trains; the rows are tokenised here, because chat templates drop the thinking
of past turns and TRL cuts long rows. Every selection strategy gets the same number of optimiser
steps and the same benign rows in the same steps. Under ``accelerate launch`` the rows of a step are
shared out among the processes: the steps stay the same.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from refusal_cliff.data.traces import SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import is_storage_error, storage_error
from refusal_cliff.model.adapters import merged
from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.thinking import render_prompt

Method = Literal["lora", "full"]
ADAPTER = "adapter_config.json"
IGNORED_LABEL = -100
WARMUP_SHARE = 0.1
ALPHA_PER_RANK = 2


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """The fixed budget of one repair: ``steps`` optimiser steps of ``batch_size`` rows each.

    ``benign_share`` of the rows of every step are benign; ``max_length`` is in tokens. ``method``
    trains a LoRA adapter or all weights; ``save_every`` so many steps a checkpoint is written, from
    which a killed training goes on (0: none).
    """

    steps: int = 40
    batch_size: int = 16
    lr: float = 2e-3
    lora_r: int = 8
    benign_share: float = 0.5
    seed: int = 0
    max_length: int = 2048
    method: Method = "lora"
    save_every: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.lora_r, self.max_length) < 1:
            raise RefusalCliffError(
                "steps, batch size, LoRA rank and maximal length must each be at least 1."
            )
        if not (0 <= self.benign_share < 1 and self.lr > 0):
            raise RefusalCliffError(
                "The benign share must be at least 0 and below 1, and the learning rate above 0."
            )

    @property
    def benign_per_step(self) -> int:
        """Benign rows in every step; at least one row of a step is a safety example."""
        return min(round(self.batch_size * self.benign_share), self.batch_size - 1)


class TokenRow(TypedDict):
    """One tokenised training row; prompt tokens have the label that the loss ignores."""

    input_ids: list[int]
    labels: list[int]


def repair(
    subject: Subject,
    safety: Sequence[SafetyExample],
    benign: Sequence[SafetyExample],
    config: RepairConfig,
    out: Path,
) -> Path:
    """Train a LoRA adapter on all linear layers, or all weights, and write it to ``out``.

    The subject itself is left as it is. The folder is written whole, in place of an older one.
    Checkpoints stand beside it, in ``<out>.checkpoints``, until it is written.

    Args:
        subject: The model to repair.
        safety: Prompts with the thinking and refusal to be learnt; order does not matter.
        benign: Prompts with helpful answers, which keep the model useful.
        config: Budget, mix and seed; equal inputs give equal adapters on one machine.
        out: Folder of the adapter or checkpoint.

    Returns:
        ``out``.

    Raises:
        RefusalCliffError: A row is too long or loses its thinking, there are no rows, or the
            folder cannot be written.
    """
    rows = _encode_all(subject, "safety", safety, config.max_length)
    benign_rows = _encode_all(subject, "benign", benign, config.max_length)
    plan = training_plan(len(rows), len(benign_rows), config)
    dataset = [benign_rows[index] if is_benign else rows[index] for is_benign, index in plan]
    with _quiet(), _scratch(out, config) as scratch:
        _save(_trained(subject, dataset, config, scratch), out)
    return out


def load_repaired(subject: Subject, adapter: Path) -> Subject:
    """The subject with the adapter merged into its weights; ``subject`` is left as it is.

    A folder that holds no adapter is loaded as a whole checkpoint.

    Raises:
        RefusalCliffError: The adapter is missing or does not fit the subject.
    """
    name = f"{subject.name}+{adapter.name}"
    if (adapter / "config.json").is_file() and not (adapter / ADAPTER).is_file():
        dtype = str(subject.model.dtype).removeprefix("torch.")
        repaired = load_subject(str(adapter), dtype=dtype, device=str(subject.device))
        return replace(repaired, name=name)
    with _quiet():
        try:
            put = merged(copy.deepcopy(subject.model), adapter)
        except RefusalCliffError as error:
            raise RefusalCliffError(
                f"Could not put the adapter {adapter} on {subject.name}: {error}"
            ) from error
        return subject_of(name, put.model, subject.tokenizer, mark=put.mark)


def encode_example(subject: Subject, example: SafetyExample, max_length: int) -> TokenRow:
    """Tokenise prompt, thinking, closing marker, response and end; the prompt is not learnt.

    Raises:
        RefusalCliffError: The row is longer than ``max_length`` or would lose its thinking.
    """
    tokenizer = subject.tokenizer
    prompt = render_prompt(tokenizer, example.prompt.text)
    completion = subject.format.completion(example.thinking, example.response)
    learnt = tokenizer.encode(completion, add_special_tokens=False)
    if example.thinking not in str(tokenizer.decode(learnt)):
        raise RefusalCliffError(
            "the tokenizer does not give its thinking back. Remove what it cannot write."
        )
    learnt = [*learnt, cast("int", tokenizer.eos_token_id)]
    total = len(prompt) + len(learnt)
    if total > max_length:
        raise RefusalCliffError(
            f"it has {total} tokens, more than the maximum of {max_length}. Raise max_length, or "
            "drop the row: it is never cut."
        )
    return {
        "input_ids": [*prompt, *learnt],
        "labels": [*[IGNORED_LABEL] * len(prompt), *learnt],
    }


def training_plan(n_safety: int, n_benign: int, config: RepairConfig) -> list[tuple[bool, int]]:
    """Which row is trained when: (is it benign, index), ``batch_size`` rows a step.

    Both kinds are shuffled by the seed and gone through again and again, each on its own, so
    that the benign rows of a step do not depend on the safety rows.

    Raises:
        RefusalCliffError: There are no rows of a kind that the mix asks for.
    """
    n_helpful = config.benign_per_step
    if n_safety == 0 or (n_benign == 0 and n_helpful > 0):
        kind = "safety" if n_safety == 0 else "benign"
        raise RefusalCliffError(
            f"There are no {kind} examples to train on. Give some"
            + (", or set the benign share to 0." if kind == "benign" else ".")
        )
    safety = _cycle(n_safety, f"safety:{config.seed}")
    benign = _cycle(n_benign, f"benign:{config.seed}")
    plan: list[tuple[bool, int]] = []
    for _ in range(config.steps):
        plan += [(False, next(safety)) for _ in range(config.batch_size - n_helpful)]
        plan += [(True, next(benign)) for _ in range(n_helpful)]
    return plan


def _cycle(n: int, seed: str) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(n), n)


def _encode_all(
    subject: Subject, kind: str, examples: Sequence[SafetyExample], max_length: int
) -> list[TokenRow]:
    return [
        _encode_named(
            subject, f"{kind} example {number} ({example.prompt.id})", example, max_length
        )
        for number, example in enumerate(examples, start=1)
    ]


def _encode_named(subject: Subject, name: str, example: SafetyExample, max_length: int) -> TokenRow:
    try:
        return encode_example(subject, example, max_length)
    except RefusalCliffError as error:
        raise RefusalCliffError(f"Cannot train on {name}: {error}") from error


def trainable(
    subject: Subject, examples: Sequence[SafetyExample], max_length: int
) -> tuple[list[SafetyExample], list[tuple[SafetyExample, str]]]:
    """Examples that can be trained on as they are, and those that cannot, each with the reason.

    No row is ever cut: what a training set lacks is to be seen in the second list.
    """
    kept: list[SafetyExample] = []
    left_out: list[tuple[SafetyExample, str]] = []
    for example in examples:
        try:
            encode_example(subject, example, max_length)
        except RefusalCliffError as error:
            left_out.append((example, str(error)))
        else:
            kept.append(example)
    return kept, left_out


@contextmanager
def _scratch(out: Path, config: RepairConfig) -> Iterator[Path]:
    """The trainer's folder: kept when the training is killed, if it has checkpoints."""
    if not config.save_every:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = out.with_name(f"{out.name}.checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if first_process():
        shutil.rmtree(folder, ignore_errors=True)


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this process writes what several have trained."""
    return int(os.environ.get("RANK", "0")) == 0


def _trained(
    subject: Subject, rows: Sequence[TokenRow], config: RepairConfig, scratch: Path
) -> Any:
    """Train on the rows in their order, one pass, from the last checkpoint; return the trainer."""
    from datasets import Dataset  # slow to import, as are the next two
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _send_telemetry(self) -> None:
            """Report nothing: what a user trains is the user's own business."""

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=ALPHA_PER_RANK * config.lora_r,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = copy.deepcopy(subject.model)
    model.requires_grad_(config.method == "full")
    set_seed(config.seed)
    trainer = Trainer(
        model=model,
        args=_arguments(subject, config, scratch),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=copy.deepcopy(subject.tokenizer),
        peft_config=lora if config.method == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(scratch)))
    return trainer


def _arguments(subject: Subject, config: RepairConfig, scratch: Path) -> Any:
    from trl.trainer.sft_config import SFTConfig

    rows, left = divmod(config.batch_size, _world())
    if left or not rows:
        raise RefusalCliffError(
            f"{config.batch_size} rows of a step cannot be shared out among {_world()} processes. "
            "Choose a batch size that is a multiple of their number (--batch-size)."
        )
    return SFTConfig(
        output_dir=str(scratch),
        max_steps=config.steps,
        per_device_train_batch_size=rows,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_SHARE * config.steps,
        optim="adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=subject.device.type == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        save_total_limit=1,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _save(trainer: Any, out: Path) -> None:
    """Write what was trained; where several processes hold parts of it, all of them take part."""
    temporary = out.with_name(f".{out.name}.{os.environ.get('MASTER_PORT', os.getpid())}.tmp")
    try:
        if _world() > 1:
            trainer.save_model(str(temporary))
        else:
            _save_model(trainer, temporary)
        if first_process():
            _replace(temporary, out)
    except Exception as error:
        if isinstance(error, OSError) or is_storage_error(error):
            raise storage_error(out, error) from error
        raise
    finally:
        if first_process():
            shutil.rmtree(temporary, ignore_errors=True)


def _save_model(trainer: Any, folder: Path) -> None:
    if hasattr(trainer.model, "peft_config"):
        trainer.model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        trainer.model.save_pretrained(str(folder))
        trainer.processing_class.save_pretrained(str(folder))


def _replace(temporary: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    os.replace(temporary, out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the chatter of the training libraries; errors are still raised."""
    verbosity = transformers_logging.get_verbosity()
    disabled = logging.root.manager.disable
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
