"""Benchmarks and training sets as declarations: where they are, which commit, which columns.

A commit is pinned here only where two independent public sources name the same one, or the history
of the data set itself shows it; where it is not, the user names it (``--revision``), because a data
set without a commit is not reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from refusal_cliff.data.examples import PromptSet, prompt_set
from refusal_cliff.data.reading import Reading, used_and_left_out
from refusal_cliff.data.rows import Found
from refusal_cliff.data.shapes import example_of_row
from refusal_cliff.data.types import Label, LeftOut, Row, SafetyExample
from refusal_cliff.errors import RefusalCliffError

_GITHUB = "https://raw.githubusercontent.com"
_REFUSED = ("gated", "authenticat", "401", "403", "access to dataset", "log in", "logged in")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set on the Hugging Face hub, or a file on GitHub, and how it is read.

    Attributes:
        dataset: Its name on the hub (on GitHub where there is a ``file``), or a folder of the same
            form.
        split: Its split.
        measures: What it is for.
        licence: As its card says.
        label: Label of every row; ``None`` where ``labels`` says it.
        text: Column of the request; of a list (turns), the first is taken.
        config: Its configuration, where it has several.
        revision: Commit; ``None`` where the user must name it.
        category: Column of the category.
        label_column: Column whose values ``labels`` translates; rows of other values are not part
            of the benchmark.
        labels: From values to labels.
        context: Column whose text is put under the request.
        response: Column of the safe answer, thinking inline, of a training set.
        gated: Whether access must be asked for.
        file: A JSON file of a GitHub repository that is the whole data set.
    """

    dataset: str
    split: str
    measures: str
    licence: str
    label: Label | None = None
    text: str = "prompt"
    config: str | None = None
    revision: str | None = None
    category: str | None = None
    label_column: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    context: str | None = None
    response: str | None = None
    gated: bool = False
    file: str | None = None


_WILDJAILBREAK = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
_WILD: Mapping[str, Label] = {
    "vanilla_harmful": "harmful",
    "vanilla_benign": "benign",
    "adversarial_harmful": "harmful",
    "adversarial_benign": "benign",
}

BENCHMARKS: dict[str, Benchmark] = {
    "advbench": Benchmark(
        "walledai/AdvBench", "train", "attack success on plain requests", "MIT", "harmful",
        revision="9d4730540082fa4017450b65ca1c0e1d8d30446e", gated=True,
    ),
    "jailbreakbench": Benchmark(
        "JailbreakBench/JBB-Behaviors", "harmful", "attack success", "MIT", "harmful", "Goal",
        "behaviors", "886acc352a31533ffbcf4ef22c744658688086fc", "Category",
    ),
    "jailbreakbench-benign": Benchmark(
        "JailbreakBench/JBB-Behaviors", "benign", "over-refusal on matched requests", "MIT",
        "benign", "Goal", "behaviors", "886acc352a31533ffbcf4ef22c744658688086fc", "Category",
    ),
    "harmbench": Benchmark(
        "walledai/HarmBench", "train", "attack success, standard behaviours", "MIT", "harmful",
        config="standard", revision="fb6c2afd5a2a943d701d6db3efab87d077e81be5",
        category="category", gated=True,
    ),
    "strongreject": Benchmark(
        "walledai/StrongREJECT", "train", "attack success, graded", "MIT", "harmful",
        revision="df54272b395ce9e584d2f8140519935425d8549f", category="category", gated=True,
    ),
    "wildjailbreak": Benchmark(
        "allenai/wildjailbreak", "train", "attack success and over-refusal under jailbreaks",
        "ODC-BY", text="adversarial", config="eval", revision=_WILDJAILBREAK,
        label_column="data_type", labels=_WILD,
        gated=True,
    ),
    "malicious-instruct": Benchmark(
        "walledai/MaliciousInstruct", "train", "attack success", "CC-BY-SA-4.0", "harmful",
        revision="3f9c8c91452e3cc12afab5f7137086ca789ce7da",
    ),
    "sorry-bench": Benchmark(
        "sorry-bench/sorry-bench-202406", "train", "attack success in 45 categories",
        "SORRY-Bench licence", text="turns", revision="b34822276edde97592eda99c0b56d306f8830469",
        category="category", label_column="prompt_style", labels={"base": "harmful"}, gated=True,
    ),
    "xstest": Benchmark(
        "walledai/XSTest", "test", "over-refusal; contrast prompts are harmful", "CC-BY-4.0",
        revision="f1d713187c61b6ae64e602d74f0b3d812cc2e8e8", category="type",
        label_column="label", labels={"safe": "benign", "unsafe": "harmful"}, gated=True,
    ),
    "or-bench": Benchmark(
        "bench-llm/or-bench", "train", "over-refusal, hard", "CC-BY-4.0", "benign",
        config="or-bench-hard-1k", revision="e36d8b80e81837c8a8f264bbb2a49f1b32c7e272",
        category="category",
    ),
    "do-not-answer": Benchmark(
        "LibrAI/do-not-answer", "train", "attack success on questions", "Apache-2.0", "harmful",
        "question", revision="74e74f2e4507ef256fe536f78a776f4a1ff67955", category="risk_area",
    ),
    "ultrachat": Benchmark(
        "HuggingFaceH4/ultrachat_200k", "test_sft", "benign chat", "MIT", "benign",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
    ),
    "alpaca": Benchmark(
        "tatsu-lab/alpaca", "train", "benign instructions", "CC-BY-NC-4.0", "benign",
        "instruction", revision="dce01c9b08f87459cf36a430d809084718273017", context="input",
    ),
    "dolly": Benchmark(
        "databricks/databricks-dolly-15k", "train", "benign instructions", "CC-BY-SA-3.0",
        "benign", "instruction", revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        category="category", context="context",
    ),
    "star-1": Benchmark(
        "UCSC-VLAA/STAR-1", "train", "safety training: thinking and safe answers", "Apache-2.0",
        "harmful", "question", revision="b49333598887845f148ed1b4d2576dc2bff7581a",
        response="response", file="data/STAR-1.json",
    ),
    "safechain": Benchmark(
        "UWNSL/SafeChain", "train", "safety training: thinking and safe answers", "see its card",
        text="instruction", label_column="label", labels=_WILD, response="response", gated=True,
    ),
    "realsafe-r1": Benchmark(
        "", "train", "safety training: thinking and safe answers", "see its card", "harmful",
    ),
    "wildjailbreak-train": Benchmark(
        "allenai/wildjailbreak", "train", "safety training: safe answers without thinking",
        "ODC-BY", text="vanilla", config="train", revision=_WILDJAILBREAK, label_column="data_type",
        labels={key: value for key, value in _WILD.items() if key.startswith("vanilla")},
        response="completion", gated=True,
    ),
}  # fmt: skip


def load_benchmark(name: str, revision: str | None = None) -> PromptSet:
    """The prompts of a benchmark, labelled; bad rows are listed.

    Args:
        name: One of the names in docs/reference/traces.md, such as ``advbench``.
        revision: Commit of the data set; that of the declaration by default.

    Raises:
        RefusalCliffError: There is no such benchmark, no commit is known, or the data set cannot be
            had.
    """
    benchmark = _named(name)
    rows = _rows(name, benchmark, revision)
    found = prompt_set(name, rows, Reading(label=benchmark.label))
    if not found.prompts:
        raise _unreadable(name, benchmark, "it has no usable row")
    return found


def _named(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise RefusalCliffError(
            f"There is no benchmark {name!r}. Choose one of: {', '.join(BENCHMARKS)}."
        )
    return BENCHMARKS[name]


def load_examples(
    name: str, revision: str | None = None
) -> tuple[list[SafetyExample], list[LeftOut]]:
    """The training examples of a set, thinking and answer apart; rows without an answer are listed.

    Args:
        name: A key of ``BENCHMARKS`` whose declaration names a ``response``.
        revision: Commit of the data set; that of the declaration by default.

    Raises:
        RefusalCliffError: It is no training set, no commit is known, or it cannot be had.
    """
    benchmark = _named(name)
    if benchmark.dataset and benchmark.response is None:
        training = [key for key, value in BENCHMARKS.items() if value.response]
        raise RefusalCliffError(
            f"{name} holds prompts, but no answers to learn. Choose one of: {', '.join(training)}."
        )
    rows = _rows(name, benchmark, revision)
    make = partial(example_of_row, name, reading=Reading(label=benchmark.label))
    return used_and_left_out(name, rows, make)


def _rows(name: str, benchmark: Benchmark, revision: str | None) -> Iterator[Found]:
    """Numbered rows that belong to the benchmark, with the columns that `prompt_of_row` reads."""
    pinned = _pinned(name, benchmark, revision)
    for number, row in enumerate(_dataset(name, pinned), start=1):
        if not benchmark.labels or str(row.get(benchmark.label_column)) in benchmark.labels:
            yield number, _mapped(benchmark, row)


def _mapped(benchmark: Benchmark, row: Row) -> Row:
    text = row.get(benchmark.text)
    if isinstance(text, Sequence) and not isinstance(text, str) and text:
        text = text[0]
    context = row.get(benchmark.context) if benchmark.context else None
    if isinstance(context, str) and context.strip() and isinstance(text, str):
        text = f"{text}\n\n{context}"
    mapped: dict[str, object] = {"prompt": text}
    if benchmark.labels:
        mapped["label"] = benchmark.labels[str(row[benchmark.label_column])]
    if benchmark.category and row.get(benchmark.category) is not None:
        mapped["category"] = str(row[benchmark.category])
    if benchmark.response:
        mapped["response"] = row.get(benchmark.response)
    return mapped


def _pinned(name: str, benchmark: Benchmark, revision: str | None) -> Benchmark:
    if not benchmark.dataset:
        raise RefusalCliffError(
            f"No hub address of {name} is known for certain. Download it, and give the file with "
            "--prompts FILE and --column FIELD=COLUMN."
        )
    commit = revision or benchmark.revision
    if commit is None and not Path(benchmark.dataset).is_dir():
        raise RefusalCliffError(
            f"No commit of {benchmark.dataset} is pinned, because none could be verified. Look it "
            f"up at https://huggingface.co/datasets/{benchmark.dataset}/commits/main and name it "
            "with --revision COMMIT, so that the numbers can be reproduced."
        )
    return replace(benchmark, revision=commit)


def _dataset(name: str, benchmark: Benchmark) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    local = Path(benchmark.dataset).is_dir()
    try:
        if benchmark.file is not None:
            root = benchmark.dataset
            if not local:
                root = f"{_GITHUB}/{root}/{benchmark.revision}"
            file = f"{root}/{benchmark.file}"
            return datasets.load_dataset("json", data_files=file, split="train")
        return datasets.load_dataset(
            benchmark.dataset,
            benchmark.config,
            split=benchmark.split,
            revision=None if local else benchmark.revision,
        )
    except (OSError, ValueError, KeyError, HfHubHTTPError, DatasetsError) as e:
        raise _unreadable(name, benchmark, str(e) or type(e).__name__) from e


def _unreadable(name: str, benchmark: Benchmark, why: str) -> RefusalCliffError:
    refused = benchmark.gated and any(word in why.lower() for word in _REFUSED)
    page = f"https://huggingface.co/datasets/{benchmark.dataset}"
    if refused:
        return RefusalCliffError(
            f"{name} ({benchmark.dataset}) is gated. Open {page}, accept its terms, then log in "
            "with: hf auth login (or set HF_TOKEN), and run the same command again."
        )
    first = cast("list[str]", why.splitlines() or [""])[0]
    return RefusalCliffError(
        f"Could not load {name} ({benchmark.dataset}, split {benchmark.split}, commit "
        f"{benchmark.revision}): {first} Check the network, or download the file and give it with "
        "--prompts FILE."
        + (f" The data set is gated: accept its terms at {page}." if benchmark.gated else "")
    )
