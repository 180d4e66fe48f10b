"""One model in a run: its files, and what its stages depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from refusal_cliff.answers.evaluate import Rates
from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import read_traces
from refusal_cliff.data.types import Prompt, Trace
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.generate.again import answer_again, beginning
from refusal_cliff.generate.local import described
from refusal_cliff.heads.joint import HeadSet
from refusal_cliff.heads.result import AblationResult
from refusal_cliff.heads.table import HeadRow, read_heads
from refusal_cliff.io import read_as
from refusal_cliff.judges import Judge, RulesJudge, judge_traces
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.probe.files import DESCRIPTION, WEIGHTS, read_probes
from refusal_cliff.probe.fit import ProbeSet, ReadPoint
from refusal_cliff.progress import More, Progress
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.settings import DEFAULT_POOL
from refusal_cliff.stages.elsewhere import NOWHERE, Elsewhere, served

RULES = RulesJudge()
FIT_PROMPTS, TEST_PROMPTS = "prompts/fit.jsonl", "prompts/test.jsonl"
FIT, TEST = "traces-fit.parquet", "traces-test.parquet"
PROBES = (WEIGHTS, DESCRIPTION)
HEADS, ABLATION = "heads.parquet", "ablation.json"
"""Files of a model that several stages and controls read."""


@dataclass(frozen=True, slots=True)
class Definitions:
    """What a study means by its words; the defaults are ours, see docs/concepts/paper-preset.md.

    Attributes:
        read_point: Where probes read; ``final_norm`` as in the paper, at the last block alone.
        pool: How the thinking's scores become a plateau, a key of ``POOLS``.
        proven: Whether heads count only where their causal effect is beyond doubt.
        renormalised: Whether an ablation keeps the length of what all heads write together.
    """

    read_point: ReadPoint = "resid_post"
    pool: str = DEFAULT_POOL
    proven: bool = True
    renormalised: bool = False


PRESETS = {
    "default": Definitions(),
    "paper": Definitions("final_norm", "max", proven=False, renormalised=True),
}


@dataclass(frozen=True)
class Study:
    """A model under study in one run.

    Attributes:
        key: Folder of its files and first part of its stages' names.
        subject: The model.
        seed: Seed of all that is drawn.
        generation: How it writes.
        definitions: What it means by its words.
        judge: Who says what its answers do.
        elsewhere: Where its first answers come from, if it does not write them here.
    """

    key: str
    subject: Subject
    seed: int
    generation: GenerationConfig
    definitions: Definitions = PRESETS["default"]
    judge: Judge = RULES
    elsewhere: Elsewhere = NOWHERE

    @property
    def verdicts(self) -> dict[str, object]:
        """What a stage that judges depends on besides: another judge makes it anew."""
        return {"judge": self.judge.name}

    @property
    def read_point(self) -> ReadPoint:
        """Where its probes read."""
        return self.definitions.read_point

    def path(self, name: str) -> str:
        """Name in the run folder of one of its files."""
        return f"{self.key}/{name}"

    def stage(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        run: Callable[[Job], Headline],
        config: Mapping[str, object] | None = None,
        *,
        shared: Sequence[str] = (),
    ) -> Stage:
        """A stage of this model, whose inputs and outputs are its own files.

        Args:
            name: What it does.
            inputs: Its own files that it reads.
            outputs: Its own files that it writes.
            run: Does it.
            config: What it depends on besides the model, how that writes, and the seed.
            shared: Files that it reads besides, by their names in the run folder.
        """
        depends = {
            **described(self.subject, self.generation),
            "seed": self.seed,
            **(config or {}),
        }
        read, written = (tuple(map(self.path, names)) for names in (inputs, outputs))
        return Stage(self.path(name), (*shared, *read), written, depends, run)

    def input(self, job: Job, name: str) -> Path:
        """Where a stage reads one of its files."""
        return job.input(self.path(name))

    def output(self, job: Job, name: str) -> Path:
        """Where a stage writes one of its files."""
        return job.output(self.path(name))

    def traces(self, job: Job, part: str) -> list[Trace]:
        """Its judged traces as a stage reads them: those to ``fit`` on, or of the ``test``."""
        return read_traces(self.input(job, f"traces-{part}.parquet"))

    def probes(self, job: Job) -> ProbeSet:
        """Its probes, as a stage reads them; an error where they are of another model."""
        weights, description = (self.input(job, name) for name in PROBES)
        return read_probes(weights, description, self.subject)

    def heads(self, job: Job) -> list[HeadRow]:
        """All its heads as measured; an error where they are of another model."""
        return read_heads(self.input(job, HEADS), self.subject)

    def taken_out(self, job: Job) -> HeadSet:
        """The heads that were taken out."""
        return read_as(self.input(job, ABLATION), AblationResult).heads

    def first_answers(
        self,
        prompts: Sequence[Prompt],
        journal: Journal | None,
        progress: More | None = None,
    ) -> tuple[list[Trace], int]:
        """Unjudged traces of prompts, in their order: given, of a server, or written here.

        Returns:
            The traces, and how many of them were written here.
        """
        known = self.elsewhere.known(prompts)
        server = self.elsewhere.server
        if progress is not None and known:
            progress(len(known))
        if server is not None:
            missing = [prompt for prompt in prompts if prompt.id not in known]
            known |= served(server, self.subject, missing, journal, progress)
            progress = None  # it was told of all
        missing = [prompt for prompt in prompts if prompt.id not in known]
        written = generate(
            self.subject, missing, self.generation, journal=journal, progress=progress
        )
        known |= {trace.prompt.id: trace for trace in written}
        return [known[prompt.id] for prompt in prompts], len(written)

    def write(
        self,
        prompts: Sequence[Prompt],
        job: Job | None = None,
        row_heads: Sequence[Sequence[Head]] | None = None,
        *,
        begun: Sequence[Sequence[int]] | None = None,
        row_tokens: Sequence[range] | None = None,
    ) -> list[Trace]:
        """Let the model answer, and judge the answers; rows are those of `generate`.

        A job is told how many there are, and keeps them while it lasts.
        """
        with nullcontext() if job is None else Journal(job.journal) as journal:
            written = generate(
                self.subject,
                prompts,
                self.generation,
                begun=begun,
                row_heads=row_heads,
                row_tokens=row_tokens,
                renormalised=self.definitions.renormalised,
                journal=journal,
                progress=counter(job and job.progress, len(prompts)),
            )
            return judge_traces(written, self.judge, journal)

    def answer_again(
        self,
        traces: Sequence[Trace],
        row_heads: Sequence[Sequence[Head]],
        job: Job,
        *,
        everywhere: bool = False,
    ) -> list[Trace]:
        """Judged beginnings of answers, heads out from the closing tokens on, the thoughts kept.

        With ``everywhere`` they are out while prompt and thought are read, too. What has no heads
        out, or a thought that never closed, is not written again.
        """
        new = [row for row, t in enumerate(traces) if row_heads[row] and t.spans is not None]
        with Journal(job.journal) as journal:
            written = answer_again(
                self.subject,
                [traces[row] for row in new],
                self.generation,
                [row_heads[row] for row in new],
                everywhere=everywhere,
                renormalised=self.definitions.renormalised,
                journal=journal,
                progress=counter(job.progress, len(new)),
            )
            again = dict(zip(new, written, strict=True))
            found = [again.get(row) or beginning(self.subject, t) for row, t in enumerate(traces)]
            return judge_traces(found, self.judge, journal)


def told_rates(found: Rates) -> Headline:
    """How often a model complied, as key numbers of a stage; those that have a value."""
    told = {"asr": found.attacks.value, "benign answered": found.answered.value}
    return {name: value for name, value in told.items() if value is not None}


def counter(progress: Progress | None, total: int | Callable[[], int]) -> More | None:
    """Turn (done, total) into a function that is told how many more are done.

    Args:
        progress: Called with (done, total).
        total: How many there are; a function where that may grow.
    """
    if progress is None:
        return None
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total if isinstance(total, int) else total())

    return add
