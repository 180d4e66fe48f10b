"""Generation with a local Transformers model: prompts in, traces out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate.drafts import Draft, Memory, write_drafts
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.progress import More
from refusal_cliff.settings import GenerationConfig
from refusal_cliff.thinking import render_prompt, response_text, split_spans, thinking_text

RowHeads = Sequence[Collection[Head]]
RowTokens = Sequence[range]


def generate(
    subject: Subject,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    begun: Sequence[Sequence[int]] | None = None,
    row_heads: RowHeads | None = None,
    row_tokens: RowTokens | None = None,
    most: int | None = None,
    renormalised: bool = False,
    journal: Journal | None = None,
    limit: BatchLimit | None = None,
    progress: More | None = None,
    finished: Callable[[Trace], None] | None = None,
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
        most: Tokens to write after those of ``begun``; ``None`` for as many as the config allows.
        renormalised: Ablate as the paper does, see `ablated`.
        journal: Keeps what is written after every batch; what is in it is not written again.
        limit: Rows of a batch, where several calls share what fits into memory.
        progress: Called with the number of traces just finished.
        finished: Called with each trace as soon as it has ended.

    Raises:
        RefusalCliffError: A prompt fills the model's context, or an answer does not fit in memory.
    """
    beginnings = [()] * len(prompts) if begun is None else begun
    drafts = [
        Draft(
            prompt.id,
            check_prompt(subject, prompt),
            prompt.label,
            () if row_heads is None else row_heads[row],
            None if row_tokens is None else row_tokens[row],
            None if most is None else len(beginnings[row]) + most,
            list(beginnings[row]),
        )
        for row, prompt in enumerate(prompts)
    ]
    given = {id(draft): draft.length for draft in drafts}
    prompt_of = {id(draft): prompt for draft, prompt in zip(drafts, prompts, strict=True)}

    traces: dict[int, Trace] = {}

    def ended(some: Sequence[Draft]) -> None:
        for draft in some:
            row = id(draft)
            traces[row] = _trace(subject, prompt_of[row], draft, given[row])
            if finished is not None:
                finished(traces[row])
        if progress is not None:
            progress(len(some))

    write_drafts(
        subject,
        drafts,
        config,
        renormalised=renormalised,
        memory=Memory(journal, [described(subject, config), renormalised]),
        limit=limit,
        ended=ended,
    )
    return [traces[id(draft)] for draft in drafts]


def described(subject: Subject, config: GenerationConfig) -> dict[str, object]:
    """All that a model's answer to a prompt depends on, as JSON."""
    return {
        "model": subject.fingerprint,
        "stops": sorted(subject.ending.stops),
        "generation": config.decoding(),
    }


def answer(
    subject: Subject,
    prefixes: Sequence[Sequence[int]],
    max_new_tokens: int,
    row_heads: RowHeads | None = None,
) -> list[list[int]]:
    """Continue fixed token prefixes greedily, for example with the thinking already written.

    Returns:
        The new token ids of each prefix, with the token that ended it if it was written.
    """
    drafts = [
        Draft(str(row), prefix, heads=() if row_heads is None else row_heads[row])
        for row, prefix in enumerate(prefixes)
    ]
    write_drafts(subject, drafts, GenerationConfig(max_new_tokens))
    return [draft.written for draft in drafts]


def _trace(subject: Subject, prompt: Prompt, draft: Draft, given: int) -> Trace:
    """The trace; its response begins after the first ``given`` tokens, which were not written."""
    tokenizer, ending = subject.tokenizer, subject.ending
    token_ids = (*draft.prefix, *draft.written)
    spans = split_spans(token_ids, len(draft.prefix), tokenizer, subject.format)
    if spans is not None and spans.closing < given:
        spans = replace(spans, closing=given)
    said = ending.without(token_ids)
    if spans is None:
        written = list(ending.without(draft.written))
        thinking, response = str(tokenizer.decode(written, skip_special_tokens=True)), ""
    else:
        thinking = thinking_text(tokenizer, said, spans)
        response = response_text(tokenizer, said, spans)
    complete = ending.ends(draft.written)
    return Trace(prompt, token_ids, spans, thinking, response, complete, thinking_cut=draft.cut)


def check_prompt(subject: Subject, prompt: Prompt) -> list[int]:
    """Token ids of a prompt that the model can answer.

    Raises:
        RefusalCliffError: It leaves no room for an answer, it holds a token that the model does
            not know, or it cannot be rendered.
    """
    prefix = render_prompt(subject.tokenizer, prompt.text)
    if max(prefix) >= subject.vocabulary:
        token = subject.tokenizer.convert_ids_to_tokens(max(prefix))
        raise RefusalCliffError(
            f"Prompt {prompt.id!r} holds the token {token!r}, for which the model has no "
            "embedding. Drop the prompt, or write the token in another way."
        )
    context = subject.context
    if context is not None and len(prefix) >= context:
        raise RefusalCliffError(
            f"Prompt {prompt.id!r} has {len(prefix)} tokens and leaves no room for an answer in "
            f"the model's context of {context}. Drop the prompt, or make it shorter."
        )
    return prefix
