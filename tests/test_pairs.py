"""Effects of heads are differences on the same prompts; without a cliff there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from ablation_example import ablation_result, rates_with, trial
from tiny_families import closed_trace

from refusal_cliff.data.types import Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.results import RunShape, ablation_summary, difference, suppress
from refusal_cliff.findings.summary import (
    AblationSummary,
    CliffSummary,
    HeadsSummary,
    Summary,
)
from refusal_cliff.findings.wording import about_heads
from refusal_cliff.heads.result import WITH_FOUND, WITH_NONE, AblationResult, Pairs, Served, Written
from refusal_cliff.heads.served import Agreement
from refusal_cliff.heads.trials import at_most, unjudged
from refusal_cliff.io import read_as, write_as, write_json
from refusal_cliff.model.subject import Head
from refusal_cliff.report.gather import Recipe
from refusal_cliff.stats import Share

NAMES = [f"p{at}" for at in range(52)]


def ablation(before: list[str], after: list[str], random: list[list[str]]) -> AblationResult:
    sides = (rates_with(Share(len(hit), len(NAMES)), Share(50, 50)) for hit in (before, after))
    tried = [
        trial(kind, heads, attacked=tuple(hit))
        for kind, hit, heads in (
            (WITH_NONE, before, ()),
            (WITH_FOUND, after, (Head(7, 0),)),
            *(("random", hit, (Head(1, 0),)) for hit in random),
        )
    ]
    groups = {name: name for name in NAMES}
    pairs = Pairs(groups, tuple(before), tuple(after), tuple(NAMES[:12]))
    return replace(ablation_result((Head(7, 0),), sides, *tried), pairs=pairs)


EIGHT_OF_TWELVE = [*NAMES[:8], *NAMES[12:31]]
RANDOM = [NAMES[:8], [*NAMES[:8], NAMES[9]], NAMES[:8]]


def test_random_sets_are_compared_on_their_own_prompts() -> None:
    """52 % on all prompts and 67 % on those of the random sets: these changed hardly anything."""
    found = ablation_summary(ablation(EIGHT_OF_TWELVE, [], RANDOM), "cliff")
    assert found.asr_before == pytest.approx(0.52, abs=0.01)
    assert (found.random_n, found.random_sets) == (12, 3)
    assert found.asr_before_random == pytest.approx(8 / 12)
    assert found.asr_random_heads == pytest.approx(25 / 36)
    assert found.random_change == pytest.approx(1 / 36)
    assert found.random_change_ci[0] < 0 < found.random_change_ci[1]
    assert found.against_random == pytest.approx(-25 / 36)
    assert found.against_random_ci[1] < 0
    assert found.shown is True


@pytest.mark.parametrize("verdict", ["no cliff", "undecided"])
def test_without_a_cliff_there_is_nothing_to_explain(verdict: str) -> None:
    content = ablation(EIGHT_OF_TWELVE, [], RANDOM)
    assert ablation_summary(content, verdict).shown is None
    assert not suppress(verdict, ablation_summary(content, verdict))


def test_nothing_to_lower_is_nothing_to_explain() -> None:
    content = ablation([], [], [[], []])
    assert ablation_summary(content, "cliff").shown is None
    assert not suppress("cliff", ablation_summary(content, "cliff"))


@pytest.mark.parametrize(
    ("after", "random"),
    [
        (NAMES[:10], RANDOM),  # not under 10 %
        ([], [[], [], []]),  # random heads do as much
        (EIGHT_OF_TWELVE, RANDOM),  # nothing changed
        ([], []),  # no random set was tried
    ],
)
def test_heads_that_are_not_shown_to_be_the_cause(
    after: list[str], random: list[list[str]]
) -> None:
    assert ablation_summary(ablation(EIGHT_OF_TWELVE, after, random), "cliff").shown is False


def test_heads_without_which_nothing_can_be_judged_restore_no_refusal() -> None:
    """A model that only stutters was said to refuse: no attack, so an attack success rate of 0."""
    content = ablation(EIGHT_OF_TWELVE, [], RANDOM)
    for n, shown in ((5, True), (6, False), (52, False)):  # under 10 % of 52 prompts, and above
        stutters = tuple(NAMES[-n:])
        trials = [
            replace(one, unjudged=stutters) if one.kind == WITH_FOUND else one
            for one in content.trials
        ]
        broken = replace(
            content,
            pairs=replace(content.pairs, unjudged=stutters),
            trials=tuple(trials),
            after_at_most=Share(n, 52),
        )
        found = ablation_summary(broken, "cliff")
        assert (found.shown, found.unjudged_after) == (shown, n)
        assert found.asr_after == pytest.approx(n / 52)
        assert found.change == pytest.approx(found.asr_after - found.asr_before)
        assert suppress("cliff", found) is (n < 52)
    answer, holds = told(broken, "cliff")["Do these heads cause it?"]
    assert (
        "Without them 52 of the answers were cut off or have no verdict" in answer
        and holds is False
    )


def test_what_nobody_could_judge_is_an_attack_unless_it_was_so_before() -> None:
    def traces(*verdicts: Verdict) -> list[Trace]:
        made = closed_trace(2, 4, 2, 2)
        prompts = [replace(made.prompt, id=f"p{n}", label="harmful") for n in range(len(verdicts))]
        return [
            replace(made, prompt=replace(prompt, group=f"g{n // 2}"), verdict=verdict)
            for n, (prompt, verdict) in enumerate(zip(prompts, verdicts, strict=True))
        ]

    before = traces("complied", "refused", "complied", "truncated", "unscored", "complied")
    after = traces("truncated", "refused", "unscored", "truncated", "unscored", "complied")
    missing = unjudged(after, before)
    assert missing == ("p0", "p2")
    found = at_most(after, missing)
    assert (found.count, found.n) == (3, 5)  # one was unscored before and after
    assert found == Share.of([True, False, True, False, True], ["g0", "g0", "g1", "g1", "g2"])


HEADS = ("7.0", "7.6", "7.7")


def told(
    content: AblationResult, verdict: str, heads: Sequence[str] = HEADS
) -> dict[str, tuple[str, bool | None]]:
    summary = Summary.model_construct(
        heads=HeadsSummary(
            total=128,
            ablated=len(heads),
            fraction=len(heads) / 128,
            suppress=suppress(verdict, ablation_summary(content, verdict)),
            list=list(heads),
            method="direct",
        ),
        ablation=ablation_summary(content, verdict),
        planted=None,
        proof=None,
        cliff=CliffSummary.model_construct(verdict=verdict),
    )
    return {finding.question: (finding.answer, finding.holds) for finding in about_heads(summary)}


def test_no_head_is_called_a_suppression_head_where_nothing_is_explained() -> None:
    found = told(ablation([], [], [[], []]), "no cliff")
    answer, holds = found["Which heads suppress refusal?"]
    assert answer.startswith("none can be named: there is nothing to explain")
    assert holds is None
    answer, holds = found["Do these heads cause it?"]
    assert answer.startswith("nothing to explain (no cliff); attack success rate 0%")
    assert holds is None


def test_what_counts_as_attacks_is_said_where_nothing_is_explained_too() -> None:
    """A rate went from 40 % to 60 % without a word, because answers were cut off."""
    content = ablation(EIGHT_OF_TWELVE, EIGHT_OF_TWELVE, [])
    content = replace(content, pairs=replace(content.pairs, unjudged=("p0", "p1")))
    answer, _ = told(content, "no cliff")["Do these heads cause it?"]
    assert "Without them 2 of the answers were cut off" in answer


def test_where_no_head_is_proven_nothing_is_said_of_taking_heads_out() -> None:
    found = told(ablation(EIGHT_OF_TWELVE, EIGHT_OF_TWELVE, []), "cliff", heads=())
    answer = "none was proven to, so none was taken out"
    assert found == {"Which heads suppress refusal?": (answer, False)}


def test_what_is_shown_is_told_with_paired_differences() -> None:
    found = told(ablation(EIGHT_OF_TWELVE, [], RANDOM), "cliff")
    assert found["Which heads suppress refusal?"] == ("7.0, 7.6, 7.7 (2.3% of 128)", None)
    answer, holds = found["Do these heads cause it?"]
    assert "With the thoughts kept, on 12 prompts: 67% before, 69% without 3 random sets" in answer
    assert "-69 [" in answer
    assert holds is True


def test_differences_are_over_the_prompts_that_both_have() -> None:
    groups = {"a": "g", "b": "g", "c": "h"}
    found = difference({"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 1.0}, groups)
    assert (found.mean, found.n) == (-1.0, 1)
    assert difference({"a": 1.0}, {"c": 1.0}, groups).interval == (-1.0, 1.0)
    pairs = ablation(EIGHT_OF_TWELVE, [], RANDOM)
    assert pairs.kept_rates("random") == pytest.approx([8 / 12, 9 / 12, 8 / 12])
    assert pairs.kept("same-layer") == {}
    assert isinstance(ablation_summary(ablation([], [], []), "no cliff"), AblationSummary)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    made = ablation(EIGHT_OF_TWELVE, [], RANDOM)
    check = Agreement(59, 0, 0.125, 7)
    made = replace(
        made,
        written={"kept": Written(3, 64)},
        served={"without": Served((Head(7, 0), Head(26, 1)), 12, check)},
    )
    file = tmp_path / "ablation.json"
    write_as(file, made)
    assert read_as(file, AblationResult) == made
    assert '"7.0"' in file.read_text()


def test_a_recipe_of_a_page_is_read_with_its_planted_heads(tmp_path: Path) -> None:
    """Also as earlier versions wrote it: a head as an object."""
    recipe = Recipe(RunShape("tiny", "tiny", 1, 128, planted=(Head(7, 0), Head(7, 12))), (), ())
    file = tmp_path / "page.json"
    write_as(file, recipe)
    assert read_as(file, Recipe) == recipe
    assert '"7.12"' in file.read_text()
    write_json(file, asdict(recipe))
    assert read_as(file, Recipe) == recipe
    write_json(file, {**asdict(recipe), "shape": {**asdict(recipe.shape), "planted": [[7, 0]]}})
    with pytest.raises(
        RefusalCliffError, match=r"page\.json: shape\.planted\.0.*such as 7\.12\. It"
    ):
        read_as(file, Recipe)
