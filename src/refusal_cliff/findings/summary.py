"""The findings of a run as data: the models of ``summary.json`` and its JSON schema.

Every share, rate and score is a fraction in 0 … 1; every interval is a 95 % interval. A part that
the run did not measure is ``null``, never absent, so that a reader need not guess.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from refusal_cliff.answers.correction import JudgedRates
from refusal_cliff.cliff.verdict import Verdict
from refusal_cliff.controls.second_reading import SecondReadings
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.io import first_fault, read_json, write_json, write_text
from refusal_cliff.settings import DEFAULT_POOL, POOLS
from refusal_cliff.stats import Fraction, Ordered

FORMAT: Literal[4] = 4
"""Version of the keys; it grows when a key changes its meaning or goes away."""


def _with_total(seconds: dict[str, float]) -> dict[str, float]:
    if "total" not in seconds:
        raise ValueError("the seconds have no total")
    return seconds


Share = Fraction
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[
    dict[str, Annotated[float, Field(ge=0)]],
    AfterValidator(_with_total),
    Field(json_schema_extra={"required": ["total"]}),
]
Interval = Ordered
HeadName = Annotated[str, Field(pattern=r"^\d+\.\d+$")]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class RuleSummary(_Part):
    """How well a probe trained by one label rule separates held-out prompts."""

    auroc: Share = Field(description="Area under the ROC curve on held-out prompts.")
    auroc_ci: Interval = Field(description="Bootstrap interval of `auroc`, over prompt groups.")
    shuffled_auroc: Share = Field(
        description="Mean AUROC of probes of shuffled labels, in whichever direction they point: "
        "how easily any direction tells the classes apart."
    )
    permutation_p: Share = Field(description="Chance of `auroc` where labels mean nothing.")
    accuracy: Share = Field(description="Accuracy at score 0.5 on held-out prompts.")
    accuracy_ci: Interval = Field(description="Bootstrap interval of `accuracy`.")
    ece: Share = Field(description="Expected calibration error on held-out prompts.")
    ece_ci: Interval = Field(
        description="Bootstrap interval of `ece`. Noise adds to every gap, so that it "
        "tends to be too high."
    )


class ProbeSummary(_Part):
    """The probe whose score every other number uses."""

    layer: int = Field(ge=1, description="Block after which the probe reads, counted from 1.")
    auroc: Share = Field(description="Area under the ROC curve on held-out prompts.")
    auroc_ci: Interval = Field(description="Bootstrap interval of `auroc`, over prompt groups.")
    shuffled_auroc: Share = Field(
        description="Mean AUROC of probes of shuffled labels, in whichever direction they point: "
        "how easily any direction tells the classes apart."
    )
    permutation_p: Share = Field(description="Chance of `auroc` where labels mean nothing.")
    label_rule: str = Field(description="Rule by which the traces were labelled for this probe.")
    n: Count = Field(description="Traces used: training and test together.")
    by_rule: dict[str, RuleSummary] = Field(
        description="The same layer under each label rule that the model has traces for."
    )


class LevelSummary(_Part):
    """Plateau and final score of one group of traces."""

    plateau: Share = Field(description="Mean plateau of the group.")
    final: Share = Field(description="Mean score at the last closing token.")
    n: Count = Field(description="Traces in the group.")


class CliffSummary(_Part):
    """The cliff of one model."""

    plateau: Share = Field(description="Mean plateau, see `pool`.")
    pool: str = Field(
        "late-median",  # in files that do not say it
        description=f"How a trace's scores become its plateau. By default, `{DEFAULT_POOL}`: "
        f"{POOLS[DEFAULT_POOL]}.",
    )
    final: Share = Field(description="Mean score at the last closing token.")
    cliff: float = Field(ge=-1, le=1, description="Mean of plateau − final.")
    cliff_ci: Interval = Field(description="Bootstrap interval of `cliff`, over prompt groups.")
    share_with_cliff: Share = Field(
        description="Traces that rise higher than 95 % of benign ones, and at the end fall lower "
        "than 95 % of refused ones."
    )
    share_ci: Interval = Field(
        description="Interval of `share_with_cliff` over prompt groups. The verdict is made by it."
    )
    benign_with_cliff: Share | None = Field(
        description="Benign traces that the same rule says have a cliff."
    )
    refused_loss: float | None = Field(
        description="Share of their height above benign traces that refused traces lose at the "
        "end; below 0 where they rise."
    )
    localisation: Share | None = Field(
        description="Share of the drop inside the closing span and the last 5 thinking tokens; "
        "null where nothing drops."
    )
    verdict: Verdict = Field(description="Whether the model has a refusal cliff.")
    reason: str = Field(description="The verdict's grounds, as a sentence.")
    n: Count = Field(description="Traces that `plateau`, `final` and `cliff` are means of.")
    refused: LevelSummary | None = Field(description="Refused harmful traces, by the same probe.")
    benign: LevelSummary | None = Field(description="Benign traces, by the same probe.")


class CoherenceSummary(_Part):
    """Whether the thoughts are about the requests."""

    n: Count = Field(description="Number of thoughts compared.")
    likelier: Share | None = Field(
        description="Share of thoughts that are more likely after their own request than after "
        "another one."
    )
    overlapping: Share | None = Field(
        description="Share of thoughts that hold more telling words of their own request than of "
        "another."
    )
    looping: Share | None = Field(description="Share of answers that end in a loop.")
    stuttering: Share | None = Field(
        description="Share of thoughts that repeat a word or phrase in a row."
    )
    alarm: bool = Field(
        description="Whether fewer than 90 % of the thoughts are likelier after their own request, "
        "beyond chance."
    )


class ControlSummary(CliffSummary):
    """The same for a model that should have no cliff."""

    model: str = Field(description="Name of the control.")
    asr: Share = Field(description="Attack success rate of the control.")
    asr_ci: Interval = Field(description="Wilson interval of `asr`.")


class AblatedCount(_Part):
    """Attack success rate with a number of heads ablated."""

    heads: Count = Field(description="Number of heads ablated.")
    asr: Share = Field(description="Attack success rate without them, the unjudged as attacks.")
    asr_ci: Interval = Field(description="Wilson interval of `asr`.")


class DiffuseSummary(_Part):
    """The negative control for heads: damage that no few heads carry."""

    model: str = Field(description="Name of the organism.")
    verdict: Verdict = Field(description="Whether the organism has a refusal cliff.")
    sparse_heads_found: bool = Field(
        description="Whether ablating a sparse set of heads restored refusal."
    )
    asr_before: Share = Field(description="Attack success rate with no head ablated.")
    asr_after_ablation: Share = Field(
        description="Attack success rate with the largest sparse set of heads ablated."
    )
    by_heads: list[AblatedCount] = Field(description="Attack success rate by heads ablated.")
    conclusion: str = Field(description="What these numbers say, as a sentence.")


class HeadsSummary(_Part):
    """The heads that were found to pull the score down, and taken out."""

    total: Count = Field(description="Number of heads of the model.")
    ablated: Count = Field(description="Number of heads found, and taken out.")
    suppress: bool = Field(
        description="Whether they are called suppression heads: the model has a cliff, and without "
        "them fewer attacks succeed than before and than without random heads, on the same prompts."
    )
    fraction: Share = Field(description="`ablated` / `total`.")
    names: list[HeadName] = Field(
        alias="list", description="The heads, strongest first, as `layer.head`."
    )
    method: str = Field(description="Ranking that chose them, or their joint effect.")


class RecoverySummary(_Part):
    """How one ranking does at finding planted heads."""

    found: list[HeadName] = Field(description="Heads that the ranking names.")
    precision: Share = Field(description="Share of the named heads that were planted.")
    recall: Share = Field(description="Share of the planted heads that are named.")


class PlantedSummary(_Part):
    """The heads that an organism's recipe damaged, against the heads found."""

    true: list[HeadName] = Field(description="The planted heads.")
    found: list[HeadName] = Field(description="The heads taken out, chosen without the truth.")
    precision: Share = Field(description="Of the heads taken out, the share that was planted.")
    recall: Share = Field(description="Of the planted heads, the share that was taken out.")
    by_method: dict[str, RecoverySummary] = Field(
        description="The same for each ranking on its own."
    )


class AblationSummary(_Part):
    """What happens when the heads are taken out."""

    n: Count = Field(description="Number of held-out harmful prompts.")
    asr_before: Share = Field(description="Attack success rate of the model as it is.")
    asr_before_ci: Interval = Field(description="Wilson interval of `asr_before`.")
    asr_after: Share = Field(description="With the heads ablated, the unjudged as attacks.")
    asr_after_ci: Interval = Field(description="Wilson interval of `asr_after`.")
    unjudged_after: Count = Field(
        default=0, description="Answers with them ablated that were not judged, unlike before."
    )
    change: float = Field(ge=-1, le=1, description="`asr_after` − `asr_before`, paired.")
    change_ci: Interval = Field(description="Its interval, over prompt groups.")
    random_sets: Count = Field(description="Random sets of the same number of other heads tried.")
    random_n: Count = Field(
        description="Harmful prompts that each random set was asked, the thoughts kept."
    )
    asr_before_random: Share = Field(
        description="Attack success rate with no head out, on these prompts."
    )
    asr_random_heads: Share = Field(
        description="Mean attack success rate over the random sets, on these prompts."
    )
    random_change: float = Field(
        ge=-1, le=1, description="`asr_random_heads` − `asr_before_random`, paired."
    )
    random_change_ci: Interval = Field(description="Its interval, over prompt groups.")
    against_random: float = Field(
        ge=-1,
        le=1,
        description="Attack success rate without the heads found minus without random ones, paired "
        "on these prompts, the thoughts kept for both.",
    )
    against_random_ci: Interval = Field(description="Its interval, over prompt groups.")
    shown: bool | None = Field(
        description="Whether the heads found are shown to cause what the model does; null where "
        "there is nothing to explain: no cliff, or hardly any attack that succeeds."
    )
    benign_n: Count = Field(description="Held-out benign prompts, the hard ones included.")
    benign_answered_before: Share = Field(description="Benign prompts answered, as it is.")
    benign_answered_after: Share = Field(description="Benign prompts answered, heads ablated.")
    hard_benign_answered_before: Share | None = Field(
        description="The same for benign uses of harmful words; null where the set has none."
    )
    hard_benign_answered_after: Share | None = Field(
        description="The same with the heads ablated; null where the set has none."
    )
    benign_perplexity_ratio: float = Field(
        gt=0, description="Perplexity of benign reference text, after / before."
    )


class AgreementSummary(_Part):
    """How much two rankings of heads agree."""

    first: str = Field(description="The name of one ranking.")
    second: str = Field(description="The name of the other.")
    spearman: float = Field(ge=-1, le=1, description="Rank correlation over heads that act.")
    overlap: dict[str, Share] = Field(
        description="Share of heads in common at the top, by the fraction of heads that it is."
    )


class DoseSummary(AblatedCount):
    """What happens when a number of heads are taken out."""

    unjudged: Count = Field(default=0, description="Answers cut off, or without a verdict.")
    benign_answered: Share | None = Field(description="Benign prompts answered; null where none.")
    perplexity_ratio: float | None = Field(
        description="Perplexity of benign text, after / before; null for joint sets."
    )


class ControlSetsSummary(_Part):
    """Sets of other heads, as many as were found."""

    sets: Count = Field(description="Number of sets tried.")
    asr: Share = Field(description="Mean attack success rate over them.")
    asr_ci: Interval = Field(description="Bootstrap interval of `asr`, over prompt groups.")


class JointSummary(_Part):
    """A jointly selected set against the top of the ranking, on held-out traces."""

    search: str = Field(description="How the set was selected: `greedy` or `beam`.")
    size: Count = Field(description="Heads in either set.")
    joint: float = Field(description="Mean rise of the final logit with the joint set out.")
    top: float = Field(description="The same for the top of the ranking.")
    difference_ci: Interval = Field(description="Of joint − top; bootstrap over prompt groups.")
    beats: bool = Field(description="Whether the interval lies above 0.")


class WritingSummary(_Part):
    """How benign prompts are answered, whatever is said."""

    thinking_tokens: float = Field(ge=0, description="Mean length of the thinking.")
    thinking_ci: Interval = Field(description="Bootstrap interval of it, over prompt groups.")
    looping: Share = Field(description="Share of answers that end in a loop.")
    truncated: Share = Field(description="Share of answers that never ended.")


class ProofSummary(_Part):
    """What shows that these heads, and no others, cause what the model does."""

    agreement: list[AgreementSummary] = Field(description="Every pair of rankings of heads.")
    doses: dict[str, list[DoseSummary]] = Field(
        description="By ranking, and for joint sets: what each number of heads does."
    )
    half_effect: dict[str, int | None] = Field(
        description="By ranking: heads needed to halve the attack success rate; null: not reached."
    )
    controls: dict[str, ControlSetsSummary] = Field(
        description="By kind of control: `random` (any other heads), `same-layer` (others of the "
        "same blocks), `promoting` (heads that promote refusal)."
    )
    joint: list[JointSummary] = Field(
        description="Sets selected by their joint effect against the top of the ranking, on "
        "held-out traces."
    )
    reverse: float = Field(description="Rise of the final logit with the heads twice as strong.")
    reverse_ci: Interval = Field(description="Bootstrap interval of it; should lie below 0.")
    writing_before: WritingSummary = Field(description="Benign answers of the model as it is.")
    writing_after: WritingSummary = Field(description="The same with the heads taken out.")


class StrategyShares(_Part):
    """One share for each way to choose the training examples, mean over seeds."""

    none: Share = Field(description="No fine-tuning.")
    cliff: Share = Field(description="The examples with the largest cliff.")
    random: Share = Field(description="As many examples, drawn at random.")
    full: Share = Field(description="The whole pool.")


class SelectionSummary(_Part):
    """Cliff-as-a-Judge against its baselines, at one optimiser-step budget."""

    pool: Count = Field(description="Safety examples in the pool, duplicates removed.")
    pool_failures: Share = Field(description="Share of the pool that the model complies with.")
    fraction: Share = Field(description="`n` / `pool`.")
    n: Count = Field(description="Examples chosen.")
    steps: Count = Field(description="Optimiser steps, the same for every strategy.")
    seeds: Count = Field(description="Seeds that the shares are means over.")
    asr: StrategyShares = Field(description="Attack success rate after fine-tuning.")
    cliff_minus_full: float = Field(ge=-1, le=1, description="Of `asr`, paired over the prompts.")
    cliff_minus_full_ci: Interval = Field(description="Its interval, over prompt groups.")
    cliff_minus_random: float = Field(ge=-1, le=1, description="Of `asr`, paired.")
    cliff_minus_random_ci: Interval = Field(description="Its interval, over prompt groups.")
    benign_answered: StrategyShares = Field(description="Benign prompts answered after it.")


class Summary(_Part):
    """All findings of one run."""

    format: Literal[4] = Field(default=FORMAT, description="Version of these keys.")
    version: str = Field(description="Version of refusal-cliff that made the run.")
    model: str = Field(description="Name of the model under study.")
    n_parameters: Count = Field(description="Number of its parameters.")
    judge: JudgedRates = Field(description="Who judged, and what the judge's error does to rates.")
    probe: ProbeSummary = Field(description="The probe whose score every other number uses.")
    cliff: CliffSummary = Field(description="The model's cliff.")
    second: SecondReadings = Field(description="The verdict under other readings.")
    coherence: CoherenceSummary = Field(description="Whether the thoughts are about the requests.")
    control: ControlSummary | None = Field(description="A model that should have no cliff.")
    diffuse: DiffuseSummary | None = Field(
        description="The negative control for heads: damage that no few heads carry."
    )
    heads: HeadsSummary | None = Field(description="The heads found.")
    planted: PlantedSummary | None = Field(
        description="Ground truth, where the model is an organism with planted heads."
    )
    ablation: AblationSummary | None = Field(
        description="What happens when the heads are taken out."
    )
    proof: ProofSummary | None = Field(
        description="What shows that these heads, and no others, are the cause."
    )
    selection: SelectionSummary | None = Field(
        description="Cliff-as-a-Judge against its baselines, with the same number of training "
        "steps."
    )
    seconds: Seconds = Field(description="Wall-clock `total`, and of each stage by its name.")


def schema_text() -> str:
    """The JSON schema of ``summary.json``, as ``docs/reference/summary.schema.json`` holds it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Summary.model_json_schema(by_alias=True, mode="serialization"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_schema(path: Path) -> None:
    """Write the JSON schema."""
    write_text(path, schema_text())


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` atomically."""
    write_json(path, summary.model_dump(mode="json", by_alias=True))


def read_summary(path: Path) -> Summary:
    """Read ``summary.json``.

    Raises:
        RefusalCliffError: The file is missing, is not JSON, or has other keys.
    """
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise RefusalCliffError(
            f"{path} is a summary of format {found}, and this version of refusal-cliff reads "
            f"format {FORMAT}. Make it again by the same command in a new folder, or read it with "
            "the version that its key `version` names."
        )
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        raise RefusalCliffError(
            f"{path} is not a summary of format {FORMAT}: at {first_fault(error)}. "
            "Make it again with the version of refusal-cliff that you use now."
        ) from error
