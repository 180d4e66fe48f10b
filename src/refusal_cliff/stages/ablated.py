"""Answers without heads: by adapters on a server where it may be, else by the model here.

A set of heads is exactly an adapter (``heads.edits``), which takes them out at every token. It is
written only if every head was measured to suppress refusal, as for everything that is written; all
other sets are taken out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refusal_cliff.data.journal import Journal
from refusal_cliff.data.traces import closed
from refusal_cliff.data.types import LeftOut, Prompt, Trace, closed_spans
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.folders import claim
from refusal_cliff.generate.again import (
    ANSWER_TOKENS,
    answered_with,
    beginning,
    prompt_length,
    until_answer,
)
from refusal_cliff.generate.backend import Finished
from refusal_cliff.generate.endpoint import EndpointBackend
from refusal_cliff.heads.edits import check_restores, write_adapter
from refusal_cliff.heads.find import explained
from refusal_cliff.heads.result import Served, Written
from refusal_cliff.heads.served import Agreement, agreement
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.io import read_json
from refusal_cliff.judges import judge_traces
from refusal_cliff.model.adapters import ADAPTER_CONFIG
from refusal_cliff.model.subject import Head, Subject
from refusal_cliff.progress import More
from refusal_cliff.run.pipeline import Job
from refusal_cliff.stages.elsewhere import Adapters, require_all, served
from refusal_cliff.stages.study import Study, counter

ADAPTERS = "adapters"
"""The folder of adapters among ``folders.DESCRIPTIONS``."""
CHECKED, CHECKED_TOKENS = 4, 32
"""Traces on which an adapter is compared with the model here, and tokens of each answer."""
_CARD = """# Without the heads {heads}

An adapter that takes these heads out, written by `refusal-cliff audit` to be served while it
measures. Each of them was measured to suppress refusal. To publish one, use `refusal-cliff ablate`,
whose model card says what it does.
"""


_CHECK = "check"


@dataclass(frozen=True)
class Answers:
    """What a study's model answers during a job, as `take_out` asks for it.

    Attributes:
        study: The model.
        job: The job.
        rows: All heads: which of them may be written.
        before: Traces with no head out, of which some are asked to check adapters.
        written: By whether thoughts were written anew or kept, how many answers and tokens.
        served: What a server answered, by the name of its adapter.
    """

    study: Study
    job: Job
    rows: Sequence[HeadRow]
    before: Sequence[Trace]
    written: dict[str, Written] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)

    def write(self, prompts: Sequence[Prompt], heads: Sequence[Sequence[Head]]) -> list[Trace]:
        """Judged answers, thought anew."""

        def asked(one: _OnServer, some: Sequence[int], told: More) -> dict[int, Trace]:
            mine = [prompts[row] for row in some]
            found = served(one, self.study.subject, mine, one.journal, told, one.name)
            return {row: found[prompts[row].id] for row in some if prompts[row].id in found}

        there = self._served(heads, asked)
        here = [row for row in range(len(prompts)) if row not in there]
        mine = [prompts[row] for row in here], [heads[row] for row in here]
        found = _in_order(there, here, self.study.write(mine[0], self.job, mine[1]))
        self.written["anew"] = written_of(self.study.subject, found)
        return found

    def again(
        self, traces: Sequence[Trace], heads: Sequence[Sequence[Head]], *, everywhere: bool = False
    ) -> list[Trace]:
        """Judged beginnings of answers after thoughts that are kept."""

        def asked(one: _OnServer, some: Sequence[int], told: More) -> dict[int, Trace]:
            return dict(zip(some, one.again([traces[row] for row in some], told), strict=True))

        thought = [out if t.spans else () for t, out in zip(traces, heads, strict=True)]
        there = self._served(thought, asked) if everywhere else {}
        here = [row for row in range(len(traces)) if row not in there]
        mine = [traces[row] for row in here], [heads[row] for row in here]
        found = _in_order(
            there, here, self.study.answer_again(*mine, self.job, everywhere=everywhere)
        )
        spans = [t.spans for t, out in zip(found, thought, strict=True) if out and t.spans]
        tokens = sum(span.total - span.closing for span in spans)
        so_far = self.written.get("kept", Written(0, 0))
        self.written["kept"] = Written(so_far.answers + len(spans), so_far.tokens + tokens)
        return found

    def _served(
        self,
        heads: Sequence[Sequence[Head]],
        asked: Callable[[_OnServer, Sequence[int], More], dict[int, Trace]],
    ) -> dict[int, Trace]:
        """Judged answers of those rows whose heads a server may take out, set by set."""
        adapters, study, found = self.study.elsewhere.adapters, self.study, dict[int, Trace]()
        if adapters is None:
            return found
        sets: dict[tuple[Head, ...], list[int]] = {}
        for row, out in enumerate(heads):
            if may_be_written(self.rows, out):
                sets.setdefault(tuple(sorted(out)), []).append(row)
        folders = [written_adapter(study.subject, out, adapters.folder) for out in sets]
        told = counter(self.job.progress, sum(map(len, sets.values()))) or (lambda _: None)
        with Journal(self.job.journal) as journal:
            for (out, some), folder in zip(sets.items(), folders, strict=True):
                one = _OnServer(adapters, study, out, folder, self.before, journal)
                answered = asked(one, some, told)
                judged = judge_traces([*answered.values()], study.judge, journal)
                found |= dict(zip(answered, judged, strict=True))
                so_far = self.served.get(one.name)
                answers = len(answered) + (0 if so_far is None else so_far.answers)
                self.served[one.name] = Served(out, answers, one.check)
        return found


def _in_order(
    there: Mapping[int, Trace], here: Sequence[int], written: Sequence[Trace]
) -> list[Trace]:
    found = {**there, **dict(zip(here, written, strict=True))}
    return [found[row] for row in sorted(found)]


@dataclass(frozen=True)
class _OnServer:
    """A set of heads as an adapter on a server; loaded only where there is something to ask.

    Attributes:
        adapters: The server.
        study: The model that it serves.
        heads: The set.
        folder: Its adapter.
        before: Traces of which some are asked for the check.
        journal: Keeps what the server wrote.
    """

    adapters: Adapters
    study: Study
    heads: tuple[Head, ...]
    folder: Path
    before: Sequence[Trace]
    journal: Journal

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self.folder.name

    def description(self) -> dict[str, Any]:
        """What its answers depend on."""
        return self._backend().description()

    def answer(self, prompts: Sequence[Prompt], finished: Finished) -> None:
        """Ask prompts, see `Backend`."""
        with self._ready():
            self._backend().answer(prompts, finished)

    def again(self, traces: Sequence[Trace], told: More) -> list[Trace]:
        """Unjudged beginnings of answers after thoughts that are kept."""
        begun = {trace.prompt.id: _begun(trace) for trace in traces}
        missing = {id_: ids for id_, ids in begun.items() if not self._knows(id_)}
        if missing:
            with self._ready():
                require_all(self._continue(missing, told), len(traces))
        return [self._answered(trace) for trace in traces]

    def _answered(self, trace: Trace) -> Trace:
        subject, most = self.study.subject, self.study.generation.max_new_tokens
        room = most - len(until_answer(subject, trace))
        written = self._said(trace.prompt.id)["written"]
        return beginning(subject, answered_with(subject, trace, written[:room]))

    def _continue(self, begun: Mapping[str, Sequence[int]], told: More) -> list[LeftOut]:
        failed: list[LeftOut] = []

        def finished(name: str, written: list[int] | LeftOut) -> None:
            if isinstance(written, LeftOut):
                failed.append(written)
            else:
                self._keep(name, written=written)
            told(1)

        self._backend(max_new_tokens=ANSWER_TOKENS).continued(begun, finished)
        return failed

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Have the adapter loaded, and compared once with the model here, while the block runs."""
        server, rank = self.adapters.server, int(read_json(self.folder / ADAPTER_CONFIG)["r"])
        with server.loaded(self.name, self.folder.resolve(), rank):
            if not self._knows(_CHECK):
                self._keep(_CHECK, **asdict(self._compared()))
            self.check.require(self.name, self.heads, server.config.base_url)
            yield

    @property
    def check(self) -> Agreement:
        """How it compared with the model here."""
        return Agreement(**self._said(_CHECK))

    def _compared(self) -> Agreement:
        """Greedy beginnings of answers, and the model here with the heads out."""
        some = closed(self.before)
        chosen = [*explained(some), *some][:CHECKED]
        begun = {f"{n}": _begun(trace) for n, trace in enumerate(chosen)}
        said: dict[str, list[int] | LeftOut] = {}
        backend = self._backend(max_new_tokens=CHECKED_TOKENS, temperature=0.0)
        backend.continued(begun, said.__setitem__)
        require_all([one for one in said.values() if isinstance(one, LeftOut)], len(begun))
        written = {n: ids for n, ids in said.items() if not isinstance(ids, LeftOut)}
        return agreement(self.study.subject, self.heads, begun, written)

    def _backend(self, **changes: Any) -> EndpointBackend:
        return self.adapters.server.backend(self.name, **changes)

    def _key(self, name: str) -> str:
        return f"{self.name} again {name}"

    def _knows(self, name: str) -> bool:
        return self._key(name) in self.journal.rows

    def _said(self, name: str) -> dict[str, Any]:
        row = self.journal.rows[self._key(name)]
        return {key: value for key, value in row.items() if key != "id"}

    def _keep(self, name: str, **said: Any) -> None:
        self.journal.add({"id": self._key(name), **said})


def adapter_name(subject: Subject, heads: Collection[Head]) -> str:
    """What servers call an adapter: one name for one set of heads of one model."""
    of = [subject.fingerprint, *map(str, sorted(heads))]
    return f"without-{hashlib.sha256(' '.join(of).encode()).hexdigest()[:12]}"


def written_adapter(subject: Subject, heads: Collection[Head], folder: Path) -> Path:
    """The adapter that takes heads out, in a folder of its own; written unless it is there.

    Raises:
        RefusalCliffError: It cannot be written, or the folder is someone else's or of another
            model.
    """
    claim(folder, ADAPTERS, {"fingerprint": subject.fingerprint}, "adapters")
    out = folder / adapter_name(subject, heads)
    if not (out / ADAPTER_CONFIG).is_file():
        named = ", ".join(map(str, sorted(heads)))
        write_adapter(subject, heads, 0.0, out, _CARD.format(heads=named))
    return out


def may_be_written(rows: Sequence[HeadRow], heads: Collection[Head]) -> bool:
    """Whether a set may be an adapter: every head was measured to suppress refusal."""
    try:
        check_restores(rows, heads, 0.0)
    except RefusalCliffError:
        return False
    return True


def _begun(trace: Trace) -> list[int]:
    """Tokens of a trace up to its answer."""
    return list(trace.token_ids[: closed_spans(trace).closing])


def written_of(subject: Subject, traces: Sequence[Trace]) -> Written:
    """How many answers, and tokens of them, a model wrote."""
    tokens = sum(len(trace.token_ids) - prompt_length(subject, trace) for trace in traces)
    return Written(len(traces), tokens)
