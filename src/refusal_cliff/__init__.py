"""Find, prove and repair the refusal cliff of reasoning models (arXiv 2510.06036).

The names below are the public interface (docs/howto/python.md). Each is imported when it is
first used, so that importing the package costs nothing. None is called like a module of the
package: importing that module would put it in the function's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refusal_cliff.answers.benchmarks import load_benchmark
    from refusal_cliff.api.answers import Traces
    from refusal_cliff.api.results import Cliff, Heads, Probes, Scores, Selection
    from refusal_cliff.api.runs import Run, open_run
    from refusal_cliff.api.steps import (
        ask,
        compare,
        export,
        find_heads,
        fit_probes,
        generate_traces,
        judge_traces,
        measure_cliff,
        organism_examples,
        organism_prompts,
        rates,
        score_traces,
        select_examples,
        train,
    )
    from refusal_cliff.data.traces import read_prompts
    from refusal_cliff.data.types import Prompt, SafetyExample, Trace
    from refusal_cliff.errors import RefusalCliffError
    from refusal_cliff.generate import repeated
    from refusal_cliff.judges import Answer, Judge, Judgement
    from refusal_cliff.judges.choose import chosen_judge as load_judge
    from refusal_cliff.model.ablation import ablated
    from refusal_cliff.model.subject import Head, Subject
    from refusal_cliff.model.subject import load_subject as load_model
    from refusal_cliff.settings import Chat, GenerationConfig, RepairConfig

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Chat",
    "Cliff",
    "GenerationConfig",
    "Head",
    "Heads",
    "Judge",
    "Judgement",
    "Probes",
    "Prompt",
    "RefusalCliffError",
    "RepairConfig",
    "Run",
    "SafetyExample",
    "Scores",
    "Selection",
    "Subject",
    "Trace",
    "Traces",
    "ablated",
    "ask",
    "compare",
    "export",
    "find_heads",
    "fit_probes",
    "generate_traces",
    "judge_traces",
    "load_benchmark",
    "load_judge",
    "load_model",
    "measure_cliff",
    "open_run",
    "organism_examples",
    "organism_prompts",
    "rates",
    "read_prompts",
    "repeated",
    "score_traces",
    "select_examples",
    "train",
]

_HOMES = {
    **dict.fromkeys(("Answer", "Judge", "Judgement"), "judges"),
    **dict.fromkeys(("Cliff", "Heads", "Probes", "Scores", "Selection"), "api.results"),
    "Chat": "settings",
    "GenerationConfig": "settings",
    "Head": "model.subject",
    "Prompt": "data.types",
    "RefusalCliffError": "errors",
    "RepairConfig": "settings",
    "Run": "api.runs",
    "SafetyExample": "data.types",
    "Subject": "model.subject",
    "Trace": "data.types",
    "Traces": "api.answers",
    "ablated": "model.ablation",
    "load_benchmark": "answers.benchmarks",
    "load_judge": "judges.choose:chosen_judge",
    "load_model": "model.subject:load_subject",
    "open_run": "api.runs",
    "read_prompts": "data.traces",
    "repeated": "generate",
}
"""Module of each name that is no step, and what it is called there where that is another name."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = _HOMES.get(name, "api.steps").partition(":")
    found = getattr(import_module(f"{__name__}.{module}"), own or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
