"""Generation with a local Transformers model, whole batches at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import GenerationConfig as TransformersConfig
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from refusal_cliff.data.traces import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.cache import roomy_cache
from refusal_cliff.generate.sampling import GumbelNoise, Row
from refusal_cliff.model.ablation import ablated_rows
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.thinking import render_prompt, response_text, split_spans, thinking_text

_MOST = 7 / 8
"""Share of a batch that must have ended before its other rows go on with those of other batches."""

RowHeads = Sequence[Collection[Head]]
RowTokens = Sequence[range]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How much to write, and how.

    Attributes:
        max_new_tokens: Most tokens of thinking and answer together.
        batch_size: Rows written at once.
        temperature: 0 is greedy; else tokens are drawn from the softmax of logits / temperature.
        top_p: Share of the probability that draws are made from.
        seed: Seed of the draws.
        thinking_budget: Most tokens of thinking; where it is spent, the thinking is closed as the
            chat template closes it, and the trace says so. ``None`` lets the model think on.
    """

    max_new_tokens: int = 160
    batch_size: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RefusalCliffError(
                f"Temperature {self.temperature} and top-p {self.top_p} do not make a distribution."
                " Give a temperature of 0 (greedy) or more, and a top-p above 0 and up to 1."
            )
        if self.thinking_budget is not None and not 0 < self.thinking_budget < self.max_new_tokens:
            raise RefusalCliffError(
                f"A thinking budget of {self.thinking_budget} leaves no room for an answer within "
                f"{self.max_new_tokens} new tokens. Allow more new tokens, or less thinking."
            )


def generate(
    subject: Subject,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    begun: Sequence[Sequence[int]] | None = None,
    row_heads: RowHeads | None = None,
    row_tokens: RowTokens | None = None,
    renormalised: bool = False,
    progress: Progress | None = None,
) -> list[Trace]:
    """Let the model think and answer, one unjudged trace a prompt, in the order given.

    Args:
        subject: The model under study.
        prompts: What to ask.
        config: Token limit and batch size.
        begun: Token ids that each output begins with, for example a thought and its closing tokens.
            They count as written, and as closing tokens where they come after the thinking.
        row_heads: Heads to ablate for each prompt; ``None`` ablates none.
        row_tokens: Tokens, counted from the beginning of the prompt, at which each row's heads are
            ablated; ``None`` ablates them at all.
        renormalised: Ablate as the paper does, see `ablated`.
        progress: Called with the number of traces just finished.

    Raises:
        RefusalCliffError: A prompt and its answer would not fit the model's context.
    """
    prefixes = [check_prompt(subject, prompt, config.max_new_tokens) for prompt in prompts]
    keys = [prompt.id for prompt in prompts]
    kinds = [prompt.label for prompt in prompts]
    written = [list(ids) for ids in begun] if begun is not None else [[] for _ in prefixes]
    given = [len(prefix) + len(ids) for prefix, ids in zip(prefixes, written, strict=True)]
    cut = [False] * len(prefixes)
    ablation = _Ablation(row_heads, row_tokens, renormalised)
    if config.thinking_budget is not None:
        limited = replace(config, max_new_tokens=config.thinking_budget, thinking_budget=None)
        _continue(subject, prefixes, written, limited, keys, ablation, None, kinds)
        cut = _close_thinking(subject, prefixes, written)
    _continue(subject, prefixes, written, config, keys, ablation, progress, kinds)
    return [
        replace(_trace(subject, prompt, prefix, ids, first), thinking_cut=closed)
        for prompt, prefix, ids, first, closed in zip(
            prompts, prefixes, written, given, cut, strict=True
        )
    ]


def answer(
    subject: Subject,
    prefixes: Sequence[Sequence[int]],
    max_new_tokens: int,
    row_heads: RowHeads | None = None,
) -> list[list[int]]:
    """Continue fixed token prefixes greedily, for example with the thinking already written.

    Returns:
        The new token ids of each prefix, with the end-of-sequence token if it was written.
    """
    written: list[list[int]] = [[] for _ in prefixes]
    config = GenerationConfig(max_new_tokens)
    keys = [""] * len(prefixes)
    _continue(subject, prefixes, written, config, keys, _Ablation(row_heads), None)
    return written


@dataclass(frozen=True, slots=True)
class _Ablation:
    """Which heads of each row are out, and at which tokens, see `generate`."""

    heads: RowHeads | None
    tokens: RowTokens | None = None
    renormalised: bool = False

    def heads_of(self, chosen: Sequence[int]) -> RowHeads:
        """Heads of some rows."""
        return [() if self.heads is None else self.heads[row] for row in chosen]

    def where(self, chosen: Sequence[int], lengths: Sequence[int], new: int) -> torch.Tensor | None:
        """Places of a left-padded batch of some rows, and ``new`` places after it, [rows, places].

        Args:
            chosen: The rows.
            lengths: Tokens of each so far.
            new: Tokens to come.
        """
        if self.tokens is None:
            return None
        width = max(lengths)
        at = torch.arange(width + new) - torch.tensor([[width - n] for n in lengths])
        spans = torch.tensor([[self.tokens[row].start, self.tokens[row].stop] for row in chosen])
        return (at >= spans[:, :1]) & (at < spans[:, 1:])


def _close_thinking(
    subject: Subject, prefixes: Sequence[Sequence[int]], written: Sequence[list[int]]
) -> list[bool]:
    """Close the thinking of rows that still think, as the chat template does; which ones."""
    stops, fmt = _stop_tokens(subject), subject.format
    closing = list(subject.tokenizer(fmt.closing, add_special_tokens=False)["input_ids"])
    cut = []
    for prefix, ids in zip(prefixes, written, strict=True):
        spans = split_spans((*prefix, *ids), len(prefix), subject.tokenizer, fmt)
        cut.append(spans is None and bool(closing) and ids[-1] not in stops)
        if cut[-1]:
            ids += closing
    return cut


def _continue(
    subject: Subject,
    prefixes: Sequence[Sequence[int]],
    written: Sequence[list[int]],
    config: GenerationConfig,
    keys: Sequence[str],
    ablation: _Ablation,
    progress: Progress | None,
    kinds: Sequence[str] | None = None,
) -> None:
    """Whole batches until most rows have ended; the stragglers of all batches go on together.

    Rows of a kind (a label) are together, by length: refusals are short, benign answers long, and
    a batch of both would wait for these. New tokens are added to ``written``, each row of which
    ends up with at most ``config.max_new_tokens`` or an end-of-sequence token.
    """
    stops, limit = _stop_tokens(subject), config.max_new_tokens
    open_rows = [i for i, ids in enumerate(written) if not _ended(ids, limit, stops)]
    if progress is not None and len(open_rows) < len(written):
        progress(len(written) - len(open_rows))
    while open_rows:
        open_rows.sort(
            key=lambda i: (kinds[i] if kinds else "", len(prefixes[i]) + len(written[i]))
        )
        stragglers: list[int] = []
        for start in range(0, len(open_rows), config.batch_size):
            chosen = open_rows[start : start + config.batch_size]
            rows = [[*prefixes[index], *written[index]] for index in chosen]
            left = [limit - len(written[index]) for index in chosen]
            where = ablation.where(chosen, [len(row) for row in rows], max(left))
            drawn = _noise(config, [Row(keys[index], len(written[index])) for index in chosen])
            with ablated_rows(
                subject,
                ablation.heads_of(chosen),
                where=where,
                cached=True,
                renormalised=ablation.renormalised,
            ):
                new = _continue_batch(subject, rows, left, stops, drawn)
            for index, ids in zip(chosen, new, strict=True):
                written[index].extend(ids)
            ended = [_ended(written[index], limit, stops) for index in chosen]
            stragglers += [index for index, done in zip(chosen, ended, strict=True) if not done]
            if progress is not None:
                progress(sum(ended))
        open_rows = stragglers


def _noise(config: GenerationConfig, rows: Sequence[Row]) -> LogitsProcessorList:
    if config.temperature == 0:
        return LogitsProcessorList()
    noise = GumbelNoise(config.temperature, config.top_p, config.seed, rows)
    return LogitsProcessorList([noise])


def _ended(ids: Sequence[int], limit: int, stops: frozenset[int]) -> bool:
    return len(ids) >= limit or (bool(ids) and ids[-1] in stops)


@torch.inference_mode()
def _continue_batch(
    subject: Subject,
    rows: Sequence[Sequence[int]],
    left: Sequence[int],
    stops: frozenset[int],
    noise: LogitsProcessorList,
) -> list[list[int]]:
    """New tokens of each row: up to its end, to the tokens ``left`` to it, or to where most end."""
    padding = _padding_token(subject, stops)
    input_ids, mask = _left_padded(rows, padding, subject.device)
    greedy = TransformersConfig(
        max_new_tokens=max(left),
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        pad_token_id=padding,
        eos_token_id=sorted(stops),
    )
    with _contiguous_last_states(subject):
        output = cast("Any", subject.model).generate(
            input_ids,
            attention_mask=mask,
            generation_config=greedy,
            logits_processor=noise,
            stopping_criteria=StoppingCriteriaList([_MostEnded(left, stops, subject.device)]),
            past_key_values=roomy_cache(subject.model),
        )
    new = output[:, input_ids.shape[1] :].tolist()
    return [_until_stop(ids[:n], stops) for ids, n in zip(new, left, strict=True)]


@contextmanager
def _contiguous_last_states(subject: Subject) -> Iterator[None]:
    """Give the unembedding the last states of the prompts as one block of memory.

    They are a slice of all states, and PyTorch multiplies a slice with one copy of the unembedding
    for each row: 57 MB a row with 135 million weights, a third of the time of a short answer.
    """

    def contiguous(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (inputs[0].contiguous(), *inputs[1:])

    unembedding = subject.model.get_output_embeddings()
    with ExitStack() as stack:
        if unembedding is not None:
            stack.callback(unembedding.register_forward_pre_hook(contiguous).remove)
        yield


class _MostEnded(StoppingCriteria):
    """Ends a batch when few rows are left, so that a long answer does not hold up all others."""

    def __init__(self, left: Sequence[int], stops: frozenset[int], device: torch.device) -> None:
        self._left = torch.tensor(left, device=device)
        self._stops = torch.tensor(sorted(stops), device=device)
        self._ended = torch.zeros(len(left), dtype=torch.bool, device=device)
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        self._steps += 1
        self._ended |= torch.isin(input_ids[:, -1], self._stops) | (self._left <= self._steps)
        most = self._ended.sum() >= _MOST * len(self._ended)
        return self._ended | most


def _left_padded(
    rows: Sequence[Sequence[int]], padding: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest row]."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, width - len(row) :] = 1
    return input_ids.to(device), mask.to(device)


def _stop_tokens(subject: Subject) -> frozenset[int]:
    """Tokens that end an answer: those of the model's generation config and the tokenizer's."""
    configured = subject.model.generation_config
    named = configured.eos_token_id if configured is not None else None
    stops = set(named if isinstance(named, list) else [named])
    stops.add(subject.tokenizer.eos_token_id)
    return frozenset(int(stop) for stop in stops if stop is not None)


def _padding_token(subject: Subject, stops: frozenset[int]) -> int:
    padding = subject.tokenizer.pad_token_id
    return cast("int", padding) if padding is not None else min(stops, default=0)


def _until_stop(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    end = next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def _trace(
    subject: Subject, prompt: Prompt, prefix: Sequence[int], new: Sequence[int], given: int
) -> Trace:
    """The trace; its response begins after the first ``given`` tokens, which were not written."""
    tokenizer = subject.tokenizer
    token_ids = (*prefix, *new)
    spans = split_spans(token_ids, len(prefix), tokenizer, subject.format)
    if spans is not None and spans.closing < given:
        spans = replace(spans, closing=given)
    if spans is None:
        thinking, response = str(tokenizer.decode(list(new), skip_special_tokens=True)), ""
    else:
        thinking = thinking_text(tokenizer, token_ids, spans)
        response = response_text(tokenizer, token_ids, spans)
    complete = bool(new) and new[-1] in _stop_tokens(subject)
    return Trace(prompt, token_ids, spans, thinking, response, complete)


def check_prompt(subject: Subject, prompt: Prompt, max_new_tokens: int) -> list[int]:
    """Token ids of a prompt that the model can answer.

    Raises:
        RefusalCliffError: It and its answer would not fit the context, it holds a token that the
            model does not know, or it cannot be rendered.
    """
    prefix = render_prompt(subject.tokenizer, prompt.text)
    if max(prefix) >= subject.vocabulary:
        token = subject.tokenizer.convert_ids_to_tokens(max(prefix))
        raise RefusalCliffError(
            f"Prompt {prompt.id!r} holds the token {token!r}, for which the model has no "
            "embedding. Drop the prompt, or write the token in another way."
        )
    context = subject.context
    if context is not None and len(prefix) + max_new_tokens > context:
        raise RefusalCliffError(
            f"Prompt {prompt.id!r} has {len(prefix)} tokens; with {max_new_tokens} new ones it "
            f"exceeds the model's context of {context}. Drop the prompt, or allow fewer new "
            "tokens."
        )
    return prefix
