"""A finished run, opened in Python without loading its model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from refusal_cliff.api.answers import Traces
from refusal_cliff.api.results import Cliff, Heads, Probes, Scores
from refusal_cliff.cliff.measure import read_measured
from refusal_cliff.cliff.scores import read_scores
from refusal_cliff.data.traces import read_traces
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import Summary, read_summary
from refusal_cliff.findings.wording import findings_of
from refusal_cliff.heads.table import read_heads
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import parse_head
from refusal_cliff.probe.files import read_probes

NEEDED = ("probes.json", "cliff.json")
"""Files that tell the folder of a model in a run."""


@dataclass(frozen=True)
class Run:
    """A finished run, read without loading its model.

    Attributes:
        folder: The run folder.
        model: Folder in it of the model under study.
    """

    folder: Path
    model: str

    @cached_property
    def summary(self) -> Summary:
        """The findings as data, see docs/reference/summary.md."""
        return read_summary(self.folder / "summary.json")

    @cached_property
    def probes(self) -> Probes:
        """The probes, fitted on the first half of the prompts."""
        return Probes.of(read_probes(self._path("probes.safetensors"), self._path("probes.json")))

    @property
    def name(self) -> str:
        """What the model is called; its folder in the run where its probes do not say it."""
        origin = self.probes.provenance
        return self.model if origin is None else origin.model

    @cached_property
    def traces(self) -> Traces:
        """Judged traces of the test prompts."""
        return Traces(tuple(read_traces(self._path("traces-test.parquet"))))

    @cached_property
    def ablated(self) -> Traces:
        """Judged traces of the same prompts without the heads found."""
        return Traces(tuple(read_traces(self._path("ablated.parquet"))))

    @cached_property
    def scores(self) -> Scores:
        """Scores of the test traces."""
        found = read_scores(self._path("scores.parquet"))
        return Scores(tuple(found), self.probes, self.name)

    @cached_property
    def cliff(self) -> Cliff:
        """The verdict as the run made it."""
        measured = read_measured(self._path("cliff.parquet"), self._path("cliff.json"))
        return Cliff(self.name, measured, tuple(self.scores.curves))

    @cached_property
    def heads(self) -> Heads:
        """The heads that the run took out, and every head's measures."""
        ablation = read_json(self._path("ablation.json"))
        chosen = tuple(map(parse_head, ablation["heads"]))
        return Heads(chosen, ablation["method"], tuple(read_heads(self._path("heads.parquet"))))

    def has(self, name: str) -> bool:
        """Whether the run has come so far that a file of the model is there."""
        return (self.folder / self.model / name).is_file()

    def _path(self, name: str) -> Path:
        path = self.folder / self.model / name
        if not path.is_file():
            raise RefusalCliffError(
                f"The run {self.folder} has no {self.model}/{name}: this step was not run, or the "
                "run has not reached it yet. Run the same command again to finish it."
            )
        return path

    def __repr__(self) -> str:
        if not (self.folder / "summary.json").is_file():
            return f"Run {self.folder} of {self.model}, not finished"
        lines = [f"{one.question} {one.answer}" for one in findings_of(self.summary)]
        return "\n".join([f"Run {self.folder} of {self.model}", *lines])


def open_run(folder: Path | str, model: str | None = None) -> Run:
    """Open what ``audit``, ``demo`` or another command wrote.

    Args:
        folder: The run folder.
        model: Folder in it of one model; may be left out where the run has one, or a main one.

    Raises:
        RefusalCliffError: It is no run folder, or which model is meant is not clear.
    """
    root = Path(folder)
    found = sorted(
        child.name
        for child in (root.iterdir() if root.is_dir() else ())
        if all((child / name).is_file() for name in NEEDED)
    )
    if model is None and len(found) > 1 and (root / "summary.json").is_file():
        model = read_summary(root / "summary.json").model
    if model is None and len(found) == 1:
        model = found[0]
    if model not in found:
        known = f"It has: {', '.join(found)}." if found else "Give the folder of a run."
        raise RefusalCliffError(f"{root} has no measured model {model or ''!r}. {known}")
    return Run(root, str(model))
