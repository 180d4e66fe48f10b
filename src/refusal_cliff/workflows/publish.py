"""The results of a finished run for the tracker or hub that a team uses, by its own client.

Nothing is sent by default, and never a model, a probe or a table of traces: numbers, settings, the
findings, and two files. One of these, the page, shows prompts and answers.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_cliff import __version__
from refusal_cliff.errors import RefusalCliffError, not_installed
from refusal_cliff.findings.summary import read_summary
from refusal_cliff.findings.wording import findings_of
from refusal_cliff.io import without_folder
from refusal_cliff.run.folder import read_manifest
from refusal_cliff.stages.report import PAGE, SUMMARY

_NOT_IN_NAMES = re.compile(r"[^\w\-. ]")
_LONGEST = 250
"""Characters of a text that every tracker takes."""


@dataclass(frozen=True, slots=True)
class Results:
    """What is sent of a run.

    Attributes:
        name: The model, without the folder it lies in.
        facts: Verdict, judge, version and the like, by name.
        settings: What was asked of the run, by name.
        numbers: Every number of ``summary.json``, by its path in it: ``cliff/plateau``.
        findings: Questions and answers, as the page shows them.
        files: ``summary.json`` and, unless it was left out, ``report.html``.
    """

    name: str
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    numbers: Mapping[str, float]
    findings: tuple[str, ...]
    files: tuple[Path, ...]


def results_of(run: Path, *, page: bool = True) -> Results:
    """Read what is sent of a finished run.

    Args:
        run: The folder that ``audit`` or ``demo`` wrote.
        page: Whether to send the page, which shows prompts and answers.

    Raises:
        RefusalCliffError: The run is not finished, or a file of it is damaged.
    """
    summary = read_summary(run / SUMMARY)
    if page and not (run / PAGE).is_file():
        raise RefusalCliffError(
            f"The run {run} has no {PAGE}. Run the same command again to finish it, or send the "
            "numbers only (--no-page)."
        )
    manifest = read_manifest(run)
    asked = {} if manifest is None else manifest.run.model_dump(mode="json")
    told = summary.model_dump(mode="json", by_alias=True)
    return Results(
        name=without_folder(summary.model),
        facts={
            "model": without_folder(summary.model),
            "verdict": summary.cliff.verdict,
            "judge": summary.judge.judge,
            "refusal-cliff": summary.version,
        },
        settings={name: str(value)[:_LONGEST] for name, value in leaves(asked)},
        numbers={name: float(v) for name, v in leaves(told) if not isinstance(v, str | bool)},
        findings=tuple(f"{one.question} {one.answer}" for one in findings_of(summary)),
        files=(run / SUMMARY, *([run / PAGE] if page else [])),
    )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str | bool | float]]:
    """The single values in JSON by their path; of lists only intervals, as ``low`` and ``high``.

    Args:
        value: JSON.
        name: Path of ``value``.
    """
    if isinstance(value, Mapping):
        for key, inside in value.items():
            key = _NOT_IN_NAMES.sub("_", str(key))  # what trackers allow
            yield from leaves(inside, f"{name}/{key}" if name else key)
    elif isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        yield from zip((f"{name}/low", f"{name}/high"), value, strict=True)
    elif isinstance(value, str | int | float):
        yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_wandb(results: Results, project: str) -> str:
    """Send results to Weights & Biases as one run, whose summary they are.

    Returns:
        Where they are: an address, or a folder if the client works offline.

    Raises:
        RefusalCliffError: The client is missing, or could not send.
    """
    wandb = _client("wandb")
    with _sent("Weights & Biases", wandb.errors.Error):
        run = wandb.init(
            project=project, name=results.name, config={**results.settings, **results.facts}
        )
        with run:
            run.summary.update(dict(results.numbers))
            run.summary["findings"] = "\n".join(results.findings)
            artifact = wandb.Artifact(re.sub(r"[^\w.\-]", "-", results.name), "refusal-cliff")
            for path in results.files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
        return str(run.url or run.dir)


def to_mlflow(results: Results, experiment: str) -> str:
    """Send results to MLflow as one run, to the server that ``MLFLOW_TRACKING_URI`` names.

    Returns:
        The server and the id of the run.

    Raises:
        RefusalCliffError: The client is missing, or could not send.
    """
    mlflow = _client("mlflow")
    with _sent("MLflow", mlflow.exceptions.MlflowException):
        mlflow.set_experiment(experiment)
        told = "\n\n".join(results.findings)
        with mlflow.start_run(run_name=results.name, description=told) as run:
            mlflow.set_tags(dict(results.facts))
            mlflow.log_params(dict(results.settings))
            mlflow.log_metrics(dict(results.numbers))
            for path in results.files:
                mlflow.log_artifact(str(path))
        return f"{mlflow.get_tracking_uri()}, run {run.info.run_id}"


def to_hub(results: Results, repo: str, *, public: bool = False) -> str:
    """Put results into a data set repository of the Hugging Face hub, with a card of the findings.

    Args:
        results: What is sent; files of the same names there are replaced.
        repo: ``OWNER/NAME``; made, private, if it is not there.
        public: Make it public instead.

    Returns:
        Address of the commit.

    Raises:
        RefusalCliffError: The hub could not be reached, or refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    files = {path.name: path.read_bytes() for path in results.files}
    files["README.md"] = _card(results).encode()
    # A name that is none is a ValueError; the HTTP library's own errors are a base of the hub's.
    with _sent("The hub", ValueError, *HfHubHTTPError.__bases__):
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            repo_type="dataset",
            commit_message=f"Refusal cliff of {results.name}",
        )
        return str(commit.commit_url)


def _card(results: Results) -> str:
    """What the repository shows; ``<`` in a name must not become markup."""
    lines = [f"- {line}" for line in results.findings]
    text = "\n".join([f"# Refusal cliff of {results.name}", "", *lines, ""])
    told = ", ".join(f"`{path.name}`" for path in results.files)
    made = f"Files: {told}. Made by refusal-cliff {__version__}."
    return f"---\ntags: [refusal-cliff]\n---\n\n{text.replace('<', '&lt;')}\n{made}\n"


def _client(name: str) -> Any:
    """A client, whose extra is called as it is."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise not_installed(f"Results are sent by the client {name}", name) from error


@contextmanager
def _sent(where: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a client raises into an error that says that the run itself is unharmed.

    What a client prints goes to standard error: standard output is the command's own.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (*errors, OSError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise RefusalCliffError(
            f"{where} did not take the results: {said}. The run itself is unchanged. Check the "
            "name, your login and the network, then run the command again with this option alone."
        ) from error
