"""The prompts of an audit: files and benchmarks, one part to fit on and one to test on."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from refusal_cliff.answers.benchmarks import BENCHMARKS, load_benchmark
from refusal_cliff.cliff.source import answered_trace, told_trace
from refusal_cliff.data.examples import PromptSet, from_source, read_prompt_set, sources_of
from refusal_cliff.data.fields import BadRow
from refusal_cliff.data.reading import DEFAULT, Reading, source_rows, usable
from refusal_cliff.data.rows import source_digest
from refusal_cliff.data.types import LABELS, Label, LeftOut, Prompt, Row, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import repeated
from refusal_cliff.generate.local import check_prompt
from refusal_cliff.model.subject import Subject
from refusal_cliff.select.contamination import Evaluation, with_near_duplicates
from refusal_cliff.user_text import check_fit_on, source_name

MIN_PROMPTS = 40
"""Prompts of each label below which a probe and an interval mean nothing."""
QUICK_PROMPTS = 40
"""Prompts of each label and part that a quick audit asks; more where a class stays too small."""


@dataclass(frozen=True, slots=True)
class AuditSources:
    """Where the prompts of an audit come from.

    Attributes:
        harmful: Benchmarks, or whatever `read_rows` reads; of a source with both labels, the
            harmful rows are taken.
        benign: The same for benign prompts.
        fit_on: Those of them that probe and heads are fitted on; all others are then tested on.
            Empty to halve each label at random.
        first: Prompts of each label and part that are asked before it is seen whether more are
            needed, see `ask`; ``None`` asks all.
        reading: How the rows of what is no benchmark are read.
        traces: Answers that are there already, see `read_given`; of prompts of the other sources,
            or with labels of their own.
    """

    harmful: tuple[str, ...]
    benign: tuple[str, ...]
    fit_on: tuple[str, ...] = ()
    first: int | None = None
    reading: Reading = DEFAULT
    traces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditPrompts:
    """Prompts to fit and to test on; every id is unique across both.

    Attributes:
        fit: Prompts that probes and heads are fitted on.
        test: Prompts of all rates and cliffs.
        files: What each source held: hash of a file, commit of a benchmark.
        dropped: Prompts to fit on that were dropped because they overlap with the test.
        left_out: Rows of the sources that cannot be used.
        given: Unjudged traces that are there already, by the id of their prompt.
    """

    fit: list[Prompt]
    test: list[Prompt]
    files: Mapping[str, str]
    dropped: int = 0
    left_out: tuple[LeftOut, ...] = ()
    given: Mapping[str, Trace] = field(default_factory=dict)


def audit_prompts(
    sources: AuditSources, seed: int, subject: Subject | None = None, samples: int = 1
) -> AuditPrompts:
    """Read the sources and split them.

    Args:
        sources: Where prompts, and answers that are there already, come from.
        seed: Seed of the split.
        subject: The model that wrote the answers; needed where there are some.
        samples: How often each prompt without an answer is asked.

    Raises:
        RefusalCliffError: A source cannot be read, rows of a label would be lost, or there are too
            few.
    """
    prompts, left_out = _all_prompts(sources)
    given: list[Trace] = []
    unread: list[LeftOut] = []
    if subject is not None:
        given, unread = read_given(sources.traces, sources.reading, subject, prompts)
    missing = repeated(unanswered(prompts, given), samples)
    prompts = with_near_duplicates([*(trace.prompt for trace in given), *missing])
    names = (*sources.harmful, *sources.benign, *sources.traces)
    files = {name: _version(name, prompts) for name in names}
    dropped = 0
    if not sources.fit_on:
        fit, test = split_prompts(prompts, seed)
    else:
        known = {name for prompt in prompts for name in sources_of(prompt)}
        check_fit_on(sources.fit_on, known)
        chosen = {name if name in known else source_name(name) for name in sources.fit_on}
        test = [prompt for prompt in prompts if chosen.isdisjoint(sources_of(prompt))]
        asked = Evaluation(test)
        every = [prompt for prompt in prompts if not chosen.isdisjoint(sources_of(prompt))]
        fit = [prompt for prompt in every if asked.overlaps(prompt.text) is None]
        dropped = len(every) - len(fit)
    _require_enough(fit, test)
    answers = {trace.prompt.id: trace for trace in given}
    return AuditPrompts(fit, test, files, dropped, (*left_out, *unread), answers)


def unanswered(prompts: Sequence[Prompt], given: Iterable[Trace]) -> list[Prompt]:
    """The prompts that none of the given answers is to."""
    answered = {trace.prompt.text for trace in given}
    return [prompt for prompt in prompts if prompt.text not in answered]


def read_given(
    sources: Sequence[str], reading: Reading, subject: Subject, prompts: Sequence[Prompt]
) -> tuple[list[Trace], list[LeftOut]]:
    """Read answers that a model has given already, from any rows that ``trace`` reads.

    A row without a label has that of the prompt of the same text. Verdicts in the rows do not
    count: the answers without heads are judged by one judge, and these are by the same.

    Args:
        sources: Where they are.
        reading: How their rows are read.
        subject: The model that wrote them.
        prompts: Those of the other sources, whose labels, groups and tags hold.

    Returns:
        The answers, unjudged, every id unique; and the rows that are none.

    Raises:
        RefusalCliffError: A source cannot be read at all.
    """
    known = {prompt.text: prompt for prompt in prompts}
    times = Counter[str]()
    traces: list[Trace] = []
    left_out: list[LeftOut] = []

    def made(source: str, number: int, row: Row) -> Trace:
        told = _labelled(source, number, row, subject, reading, known)
        return answered_trace(told, subject)

    for source in sources:
        rows = source_rows(source, reading)
        for _, found in usable(source, rows, partial(made, source)):
            if isinstance(found, LeftOut):
                left_out.append(found)
                continue
            prompt = known.get(found.prompt.text) or from_source(found.prompt, source)
            times[prompt.id] += 1
            again = f"#{times[prompt.id]}" if times[prompt.id] > 1 else ""
            traces.append(replace(found, prompt=replace(prompt, id=prompt.id + again)))
    return traces, left_out


def _labelled(
    source: str, number: int, row: Row, subject: Subject, reading: Reading, known: Collection[str]
) -> Trace:
    """What a row holds; one without a label may be the answer to a prompt that has one."""
    try:
        return told_trace(source, number, row, subject, reading)
    except BadRow:
        found = told_trace(source, number, row, subject, reading.by_default("harmful"))
        if found.prompt.text not in known:
            raise
        return found


def fitting(found: AuditPrompts, subject: Subject) -> AuditPrompts:
    """The prompts that the model can answer; those that leave no room are listed as left out.

    Raises:
        RefusalCliffError: Too few are left.
    """
    left_out: dict[str, LeftOut] = {}
    for prompt in (*found.fit, *found.test):
        try:
            check_prompt(subject, prompt)
        except RefusalCliffError as error:
            left_out[prompt.id] = LeftOut(prompt.id, None, "cannot be answered", str(error))
    if not left_out:
        return found
    fit, test = ([p for p in part if p.id not in left_out] for part in (found.fit, found.test))
    _require_enough(fit, test, next(iter(left_out.values())).detail)
    return replace(found, fit=fit, test=test, left_out=(*found.left_out, *left_out.values()))


def split_prompts(prompts: Sequence[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Halve the groups at random; a group belongs to one part, whatever its labels.

    Groups of harmful prompts, of benign ones and of both are halved apart, so that each part has
    its half of each label.
    """
    labels: dict[str, set[str]] = {}
    for prompt in prompts:
        labels.setdefault(prompt.group, set()).add(prompt.label)
    chosen: set[str] = set()
    for kind in ({"harmful"}, {"benign"}, {"harmful", "benign"}):
        groups = sorted(group for group, found in labels.items() if found == kind)
        name = "+".join(sorted(kind))
        chosen |= set(random.Random(f"split:{name}:{seed}").sample(groups, len(groups) // 2))
    fit = [prompt for prompt in prompts if prompt.group in chosen]
    return fit, [prompt for prompt in prompts if prompt.group not in chosen]


def _all_prompts(sources: AuditSources) -> tuple[list[Prompt], tuple[LeftOut, ...]]:
    """The prompts of every source, marked with it, their ids made unique; rows that are none."""
    found: list[Prompt] = []
    left_out: dict[LeftOut, None] = {}
    seen: set[str] = set()
    both = {*sources.harmful} & {*sources.benign}
    for label in LABELS:
        for name in sources.harmful if label == "harmful" else sources.benign:
            read = _of_source(name, label, sources.reading, both=name in both)
            left_out |= dict.fromkeys(read.left_out)
            for prompt in read.prompts:
                name_of = prompt.id if prompt.id not in seen else f"{source_name(name)}:{prompt.id}"
                seen.add(name_of)
                found.append(from_source(replace(prompt, id=name_of), name))
    return found, tuple(left_out)


def _of_source(name: str, label: Label, reading: Reading, *, both: bool) -> PromptSet:
    """The rows with a label; rows with the other one must be asked for, too.

    Raises:
        RefusalCliffError: Rows of the other label would be lost, or a benchmark, of which every row
            is known to be usable, has come otherwise.
    """
    if name in BENCHMARKS:
        loaded = load_benchmark(name)
        if loaded.left_out:
            raise RefusalCliffError(
                f"{name} has {len(loaded.left_out)} rows that cannot be used; the first: row "
                f"{loaded.left_out[0].row}: {loaded.left_out[0].why}. Save the others as a file."
            )
        return PromptSet([prompt for prompt in loaded.prompts if prompt.label == label])
    loaded = read_prompt_set(name, replace(reading, label=label))
    prompts = loaded.prompts
    other = next((n for n, prompt in enumerate(prompts, 1) if prompt.label != label), None)
    if other is not None and not both:
        raise RefusalCliffError(
            f"{name}, prompt {other}: the label is {prompts[other - 1].label!r}, but the file was "
            f"given as {label} prompts. Remedy: give the file as both harmful and benign, then "
            "each row counts with its own label; or move the row to another file."
        )
    return PromptSet([prompt for prompt in prompts if prompt.label == label], loaded.left_out)


def _version(name: str, prompts: Sequence[Prompt]) -> str:
    """Commit of a benchmark, hash of a file or folder, or of what the hub sent."""
    if name in BENCHMARKS:
        return str(BENCHMARKS[name].revision)
    sent = [(p.id, p.text, p.label) for p in prompts if source_name(name) in sources_of(p)]
    return source_digest(name) or hashlib.sha256(repr(sent).encode()).hexdigest()


def _require_enough(fit: Sequence[Prompt], test: Sequence[Prompt], why: str = "") -> None:
    for part, prompts in (("fit on", fit), ("test on", test)):
        for label in LABELS:
            found = {prompt.group for prompt in prompts if prompt.label == label}
            if len(found) < MIN_PROMPTS // 2:
                raise RefusalCliffError(
                    f"There are {len(found)} different {label} prompts to {part}; an audit needs "
                    f"{MIN_PROMPTS // 2}, or twice as many if they are split in half. Give more."
                    + (f" Some were left out: {why}" if why else "")
                )
