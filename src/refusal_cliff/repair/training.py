"""Supervised fine-tuning, LoRA or full, on safety examples mixed with benign ones.

TRL's ``SFTTrainer`` trains; the rows are tokenised here, because chat templates drop the thinking
of past turns and TRL cuts long rows. Every selection strategy gets the same number of optimiser
steps and the same benign rows in the same steps. Under ``accelerate launch`` the rows of a step are
shared out among the processes: the steps stay the same.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from refusal_cliff.data.types import LeftOut, SafetyExample
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import TEMPORARY, locked, remove_temporary, staged, staging
from refusal_cliff.io import storage_errors
from refusal_cliff.model.adapters import base_name, merged
from refusal_cliff.model.memory import give_back
from refusal_cliff.model.subject import Subject, load_subject, subject_of
from refusal_cliff.repair.checkpoints import Checkpoints, last_complete
from refusal_cliff.repair.loss import IGNORED_LABEL, is_exact, learnt_loss
from refusal_cliff.repair.plan import digest, made_from, training_plan
from refusal_cliff.settings import RepairConfig
from refusal_cliff.sharded import Rank, claim_together, spread_later
from refusal_cliff.thinking import render_prompt

ADAPTER, CHECKPOINT = "adapter_config.json", "config.json"
COMMAND = "train"
Told = Callable[[int, int, float], None]
WARMUP_SHARE = 0.1
ALPHA_PER_RANK = 2
_LINEAR = (nn.Linear, Conv1D)


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
    beside: Mapping[str, str] | None = None,
    told: Told | None = None,
    kept: Mapping[int, Path] | None = None,
) -> Path:
    """Train a LoRA adapter on all linear layers, or all weights, and write it to ``out``.

    The subject itself is left as it is. The folder is claimed before the training by what it is
    made from, see `made_from`; what comes of it is moved in when it is whole. Until then
    checkpoints stand in the folder.

    Args:
        subject: The model to repair.
        safety: Prompts with the thinking and refusal to be learnt; order does not matter.
        benign: Prompts with helpful answers, which keep the model useful.
        config: Budget, mix and seed; equal inputs give equal adapters on one processor.
        out: Folder of the adapter or checkpoint: absent, empty, or of the same training.
        beside: Texts to write beside the weights, by file name; the last one tells that all the
            others are there.
        told: Called after every step with (steps done, steps, loss of the step).
        kept: Folders of what is trained after so many steps, as it is on the way: absent or empty,
            unless a training that was killed wrote them.

    Returns:
        ``out``.

    Raises:
        RefusalCliffError: A row is too long or loses its thinking, there are no rows, or the
            folder is not ours or cannot be written.
    """
    _check_device(subject)
    rows = _encode_all(subject, "safety", safety, config.max_length)
    benign_rows = _encode_all(subject, "benign", benign, config.max_length)
    plan = training_plan(len(rows), len(benign_rows), config)
    dataset = [benign_rows[index] if is_benign else rows[index] for is_benign, index in plan]
    origin = made_from(subject, safety, benign, config)
    claim_together(out, COMMAND, origin, "a training")
    with _quiet(), storage_errors(out), _scratch(out) as scratch:
        trainer = _trained(subject, dataset, config, scratch, origin, told, kept or {})
        _save(trainer, subject, out, beside or {})
        del trainer
    give_back()  # trainers hold themselves, and with them the weights, slopes and optimiser
    return out


def load_repaired(subject: Subject, adapter: Path) -> Subject:
    """The subject with the adapter merged into its weights; ``subject`` is left as it is.

    A folder that holds no adapter is loaded as a whole checkpoint.

    Raises:
        RefusalCliffError: The adapter is missing or does not fit the subject.
    """
    name = f"{subject.name}+{adapter.name}"
    if (adapter / CHECKPOINT).is_file() and not (adapter / ADAPTER).is_file():
        dtype = str(subject.model.dtype).removeprefix("torch.")
        repaired = load_subject(
            str(adapter),
            dtype=dtype,
            device=str(subject.device),
            device_map="auto" if _is_spread(subject) else None,
            chat=subject.chat,
        )
        return replace(repaired, name=name)
    with _quiet():
        try:
            model, mark = merged(copy.deepcopy(subject.model), adapter)
        except RefusalCliffError as error:
            raise RefusalCliffError(
                f"Could not put the adapter {adapter} on {subject.name}: {error}"
            ) from error
        return subject_of(name, model, subject.tokenizer, mark=mark)


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
    learnt = [*learnt, *subject.ending.written]
    total = len(prompt) + len(learnt)
    if total > max_length:
        raise RefusalCliffError(
            f"it has {total} tokens, more than the maximum of {max_length}. Raise it "
            "(--max-length), or drop the row: it is never cut."
        )
    return {
        "input_ids": [*prompt, *learnt],
        "labels": [*[IGNORED_LABEL] * len(prompt), *learnt],
    }


def _encode_all(
    subject: Subject, kind: str, examples: Sequence[SafetyExample], max_length: int
) -> list[TokenRow]:
    rows: list[TokenRow] = []
    for number, example in enumerate(examples, start=1):
        try:
            rows.append(encode_example(subject, example, max_length))
        except RefusalCliffError as error:
            name = f"{kind} example {number} ({example.prompt.id})"
            raise RefusalCliffError(f"Cannot train on {name}: {error}") from error
    return rows


def trainable(
    subject: Subject, examples: Sequence[SafetyExample], max_length: int
) -> tuple[list[SafetyExample], list[LeftOut]]:
    """Examples that can be trained on as they are, and those that cannot, each with the reason.

    No row is ever cut: what a training set lacks is to be seen in the second list.
    """
    kept: list[SafetyExample] = []
    left_out: list[LeftOut] = []
    for example in examples:
        try:
            encode_example(subject, example, max_length)
        except RefusalCliffError as error:
            left_out.append(LeftOut(example.prompt.id, None, str(error)))
        else:
            kept.append(example)
    return kept, left_out


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """The trainer's folder: with checkpoints, it outlives a training that is killed or fails."""
    folder = out / f"{TEMPORARY}training"
    folder.mkdir(parents=True, exist_ok=True)
    if not Rank.here().first:
        yield folder
        return
    finished = False
    with locked(folder):  # its lock goes with it: an adapter has none
        try:
            yield folder
            finished = True
        finally:
            if finished or not any(folder.glob("checkpoint-*")):
                remove_temporary(folder)


def _trained(
    subject: Subject,
    rows: Sequence[TokenRow],
    config: RepairConfig,
    scratch: Path,
    origin: Mapping[str, Any],
    told: Told | None,
    kept: Mapping[int, Path],
) -> Any:
    """Train on the rows in their order, one pass, from the last checkpoint; return the trainer.

    A checkpoint of other rows or settings, or of another number of processes, is not gone on from.
    """
    from datasets import Dataset  # slow to import, as are the next two
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, TrainerCallback
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _send_telemetry(self) -> None:
            """Report nothing: what a user trains is the user's own business."""

    class LeanTrainer(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: Any = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """Mean loss of the learnt tokens of a step; see `learnt_loss`."""
            del return_outputs
            # without what PEFT has put around it; its adapters stay in it
            plain = model.get_base_model() if hasattr(model, "peft_config") else model
            loss = learnt_loss(
                plain, inputs["input_ids"], inputs.get("attention_mask"), inputs["labels"]
            )
            return loss / num_items_in_batch

    class Teller(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if told is not None and "loss" in (logs or {}):
                told(state.global_step, state.max_steps, float(logs["loss"]))

    class Keeper(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = kept.get(state.global_step)
            if folder is not None:
                _save(trainer, subject, folder, {})

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=ALPHA_PER_RANK * config.lora_r,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        **_adapted(subject, config.first_block),
    )
    model = _trainable_copy(subject, config)
    set_seed(config.seed)
    trainer = (LeanTrainer if Rank.here().world == 1 and is_exact(model) else Trainer)(
        model=model,
        args=_arguments(subject, config, scratch),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=copy.deepcopy(subject.tokenizer),
        peft_config=lora if config.method == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Teller())
    trainer.add_callback(Keeper())
    for own in getattr(trainer.model, "peft_config", {}).values():
        own.target_modules = sorted(own.target_modules)  # a set has another order each time
    key = digest({**origin, "processes": Rank.here().world})
    trainer.add_callback(Checkpoints(scratch, key, first=Rank.here().first))
    last = last_complete(scratch, key)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer


def _adapted(subject: Subject, first_block: int) -> dict[str, Any]:
    """Which modules get an adapter: every linear one of the blocks from the first one on.

    Raises:
        RefusalCliffError: The model has fewer blocks.
    """
    if first_block > subject.n_layers:
        raise RefusalCliffError(
            f"{subject.name} has {subject.n_layers} blocks, so none is left to train from block "
            f"{first_block} on. Choose a smaller one (--first-block)."
        )
    if first_block == 1:
        return {"target_modules": "all-linear"}
    chosen = range(first_block - 1, subject.n_layers)
    modules = (item for at in chosen for item in subject.blocks[at].module.named_modules())
    names = {name.rpartition(".")[2] for name, part in modules if isinstance(part, _LINEAR)}
    return {"target_modules": sorted(names), "layers_to_transform": list(chosen)}


def _trainable_copy(subject: Subject, config: RepairConfig) -> Any:
    """The model with its own modules, and its own copy of what is trained; the rest is shared."""
    chosen: set[int] = set()
    if config.method == "full" and config.first_block == 1:
        chosen = {id(weight) for weight in subject.model.parameters()}
    elif config.method == "full":
        blocks = subject.blocks[config.first_block - 1 :]
        chosen = {id(weight) for block in blocks for weight in block.module.parameters()}
    shared = {id(w): w for w in subject.model.parameters() if id(w) not in chosen}
    model = copy.deepcopy(subject.model, dict(shared))
    for weight in model.parameters():
        weight.requires_grad_(id(weight) not in shared)
    return model


def _arguments(subject: Subject, config: RepairConfig, scratch: Path) -> Any:
    from trl.trainer.sft_config import SFTConfig

    world = Rank.here().world
    rows, left = divmod(config.batch_size, world)
    if left or not rows:
        raise RefusalCliffError(
            f"{config.batch_size} rows of a step cannot be divided among {world} processes. "
            "Choose a batch size that is a multiple of their number (--train-batch-size)."
        )
    at_once = min(rows, config.rows_at_once or rows)
    if rows % at_once:
        raise RefusalCliffError(
            f"{rows} rows of a step cannot be run {at_once} at once. Choose a divisor of {rows} "
            "(--rows-at-once)."
        )
    found: Any = SFTConfig(
        output_dir=str(scratch),
        max_steps=config.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
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
        gradient_checkpointing=config.recompute,
        bf16=False,
        use_cpu=subject.device.type == "cpu" and not (spread_later() and torch.cuda.is_available()),
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        save_total_limit=None,  # `Checkpoints` deletes the old one, once the new one is whole
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    if world == 1 and found.device.type != "cpu":  # reading the device counts the GPUs
        found._n_gpu = 1  # with more, each step would be spread over all of them
    return found


def _check_device(subject: Subject) -> None:
    """A trainer of one process works on the first GPU, and would move the subject there."""
    device = subject.device
    if Rank.here().world == 1 and device.index and not _is_spread(subject):
        raise RefusalCliffError(
            f"Training in one process uses the first GPU, and the model is on {device}. Set "
            f"CUDA_VISIBLE_DEVICES={device.index}, and leave --device out."
        )


def _is_spread(subject: Subject) -> bool:
    """Whether its blocks lie on several devices."""
    return len(set(getattr(subject.model, "hf_device_map", {}).values())) > 1


def _save(trainer: Any, subject: Subject, out: Path, beside: Mapping[str, str]) -> None:
    """Write what was trained; where several processes hold parts of it, all of them take part."""
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        name = base_name(subject.source, subject.name, out)
        adapter.base_model_name_or_path = name  # not where the model lay on this machine
    if not Rank.here().first:
        trainer.save_model(str(staging(out)))
        return
    with staged(out, last=(CHECKPOINT, ADAPTER, *beside)) as folder:
        if Rank.here().world > 1:
            trainer.save_model(str(folder))
        elif hasattr(trainer.model, "peft_config"):
            trainer.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            trainer.model.save_pretrained(str(folder))
            trainer.processing_class.save_pretrained(str(folder))
        for name, text in beside.items():
            (folder / name).write_text(text, encoding="utf-8")


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
