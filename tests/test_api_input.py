"""What is given to the steps: taken in any form that is clear, and refused at the door else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refusal_cliff as rc

api: Any = rc
"""As a user without a type checker calls it."""


@pytest.fixture(scope="module")
def walk() -> dict[str, Any]:
    """A model, and what the first steps find of it."""
    model = rc.load_model("tiny")
    prompts = rc.organism_prompts("validation", 40)
    config = rc.GenerationConfig(max_new_tokens=160, batch_size=80)
    fitting = rc.ask(model, prompts, config)
    probes = rc.fit_probes(model, fitting)
    return {
        "model": model,
        "prompts": prompts,
        "fitting": fitting,
        "traces": rc.ask(model, rc.organism_prompts("test", 3), config),
        "probes": probes,
        "scores": rc.score_traces(model, fitting, probes),
        "heads": rc.find_heads(model, fitting, probes, most=4),
    }


def test_prompts_are_told_apart_by_their_ids(walk: dict[str, Any]) -> None:
    """Two files that both count from 0 gave one state for two prompts, and another verdict."""
    model, traces = walk["model"], list(walk["fitting"])
    same = [replace(t, prompt=replace(t.prompt, id="0")) for t in traces[:2]]
    for call in (
        lambda: rc.fit_probes(model, same),
        lambda: rc.score_traces(model, same, walk["probes"]),
        lambda: rc.find_heads(model, same, walk["probes"]),
        lambda: rc.ask(model, [same[0].prompt] * 2),
    ):
        with pytest.raises(rc.RefusalCliffError, match="'0' is used twice"):
            call()


def test_generators_are_taken_as_lists(walk: dict[str, Any]) -> None:
    model, heads = walk["model"], (rc.Head(7, 7), rc.Head(7, 0))
    ids = torch.tensor([walk["traces"][0].token_ids])

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model.model(ids).logits

    with rc.ablated(model, heads):
        wanted = logits()
    with rc.ablated(model, (head for head in heads)):
        assert torch.equal(logits(), wanted)
    assert not torch.equal(logits(), wanted)
    some = walk["traces"][:4]
    assert list(rc.judge_traces(trace for trace in some)) == list(some)
    assert isinstance(walk["scores"][:40], rc.Scores)


def test_a_card_says_only_what_was_measured(walk: dict[str, Any], tmp_path: Path) -> None:
    model, heads, traces = walk["model"], walk["heads"], walk["traces"]
    for wrong, options in (
        ("another model", {"heads": replace(heads, model="x" * 64)}),
        ("what find_heads returns", {"heads": heads.chosen}),
        ("both before and after", {"before": traces}),
        ("share no prompt|no prompt", {"before": traces, "after": walk["fitting"]}),
    ):
        given: dict[str, Any] = {"heads": heads, **options}
        with pytest.raises(rc.RefusalCliffError, match=wrong):
            rc.export(model, out=tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()


def test_threads_wait_for_each_other(walk: dict[str, Any]) -> None:
    model, probes = walk["model"], walk["probes"]
    some = [trace for trace in walk["traces"] if trace.spans is not None][:12]
    alone = [rc.score_traces(model, [trace], probes)[0].logits for trace in some]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda trace: rc.score_traces(model, [trace], probes)[0].logits, some)
        assert all(map(np.array_equal, found, alone))


def test_gradient_contexts_change_nothing(walk: dict[str, Any]) -> None:
    def causal() -> list[float]:
        found = rc.find_heads(walk["model"], walk["fitting"], walk["probes"], most=4)
        return [row.causal.mean for row in found.rows]

    wanted = causal()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert causal() == wanted


def test_training_leaves_the_random_numbers_of_the_process(
    walk: dict[str, Any], tmp_path: Path
) -> None:
    safety, benign = rc.organism_examples(4)
    config = rc.RepairConfig(steps=1, batch_size=4)

    def drawn(seed: int) -> tuple[float, float, float]:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        rc.train(walk["model"], safety, benign, tmp_path / f"adapter-{seed}", config)
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("wrong", "call"),
    [
        ("load_model", lambda model, walk: api.ask("tiny", walk["prompts"])),
        ("load_model", lambda model, walk: api.ask(model.model, walk["prompts"])),
        ("Give Prompts", lambda model, walk: api.ask(model, ["text"])),
        ("load_judge", lambda model, walk: api.judge_traces(walk["traces"], "rules")),
        ("save_pretrained", lambda model, walk: api.load_model(model.model)),
        ("Chat", lambda model, walk: api.load_model("tiny", chat="Be brief.")),
        ("not judged", lambda model, walk: api.fit_probes(model, unjudged(walk))),
        (
            "not judged",
            lambda model, walk: api.score_traces(model, unjudged(walk), walk["probes"]),
        ),
        (
            "no read point",
            lambda m, walk: api.fit_probes(m, walk["fitting"], read_point="nope"),
        ),
        (
            "at least 2",
            lambda m, walk: api.find_heads(m, walk["fitting"], walk["probes"], most=-1),
        ),
        ("no pool", lambda model, walk: api.measure_cliff(walk["scores"], pool="nope")),
        ("score_traces", lambda model, walk: api.measure_cliff(tuple(walk["scores"]))),
        ("no split", lambda model, walk: api.organism_prompts("nope", 3)),
        ("at least 1", lambda model, walk: api.organism_examples(0)),
        ("no benchmark", lambda model, walk: api.load_benchmark("nope")),
        ("method is 'x'", lambda model, walk: api.RepairConfig(method="x")),
        ("label of prompt", lambda model, walk: api.Prompt("a", "b", "Harmful")),
        ("as texts", lambda model, walk: api.Prompt(np.int64(1), "b", "harmful")),
        ("found.chosen", lambda model, walk: enter(api.ablated(model, walk["heads"]))),
        ("no head", lambda model, walk: enter(api.ablated(model, ["7.7"]))),
    ],
)
def test_what_is_wrong_is_said_at_the_door(
    wrong: str, call: Callable[[Any, dict[str, Any]], Any], walk: dict[str, Any]
) -> None:
    with pytest.raises(rc.RefusalCliffError, match=wrong):
        call(walk["model"], walk)


def unjudged(walk: dict[str, Any]) -> list[rc.Trace]:
    return [replace(trace, verdict="unscored", judge="") for trace in walk["fitting"]]


def enter(context: AbstractContextManager[None]) -> None:
    with context:
        raise AssertionError("it was entered")


def test_a_judge_that_leaves_an_answer_out_is_told(walk: dict[str, Any]) -> None:
    class Short:
        name, measures_harm = "short", False

        def judge(self, answers: Sequence[rc.Answer]) -> list[rc.Judgement]:
            return [rc.Judgement("refused") for _ in answers[1:]]

    with pytest.raises(rc.RefusalCliffError, match="gave 2 judgements of 3"):
        rc.judge_traces(walk["traces"][:3], Short())
