"""Controls of the probe: each statistic against a case worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from made_cliffs import BENIGN, made_cliff, made_cliffs
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from refusal_cliff.cliff.curves import TraceCliff
from refusal_cliff.controls import directions, positions, readings
from refusal_cliff.controls.directions import first_token_rows
from refusal_cliff.controls.readings import (
    A_CLIFF,
    LEVELS,
    Line,
    Reduced,
    Rows,
    Rule,
    auroc_cell,
    fit_line,
    lacking,
    levels,
    rows_of,
    states_of_places,
)
from refusal_cliff.controls.table import Cell
from refusal_cliff.data.types import Label, Prompt, Trace, Verdict
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.rows import Batch
from refusal_cliff.model.subject import load_subject
from refusal_cliff.probe.direction import standardised
from refusal_cliff.probe.fit import fit_probes
from refusal_cliff.stats import Floats, counts_with_all
from refusal_cliff.thinking import Spans

SPANS = Spans(prompt=3, thinking=13, closing=15, total=17)


def trace(
    name: str,
    verdict: Verdict,
    label: Label = "harmful",
    category: str = "",
    tags: Sequence[str] = (),
    first: int = 0,
) -> Trace:
    prompt = Prompt(name, name, label, category=category, tags=tuple(tags))
    ids = (*range(15), first, 1)
    return Trace(prompt, ids, SPANS, "", "", True, verdict)


def rows_with(states: Floats, labels: NDArray[np.int64]) -> Rows:
    """Rows of as many groups."""
    return Rows(states, labels, [str(at) for at in range(len(labels))])


def test_cosines_of_known_angles() -> None:
    first = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    second = np.array([[1.0, 1.0], [-2.0, 0.0], [1.0, 1.0]])
    assert directions.cosine(first, second) == pytest.approx([np.sqrt(0.5), -1.0, 0.0])


def test_a_direction_is_taken_out_of_the_probe_or_of_the_state() -> None:
    weight, direction = np.array([3.0, 4.0]), np.array([0.0, 2.0])
    assert directions.without(weight, direction) == pytest.approx([3.0, 0.0])
    rng = np.random.default_rng(0)
    states, weight, direction = rng.normal(size=(7, 5)), rng.normal(size=5), rng.normal(size=5)
    left = directions.without(states, direction)
    assert left @ direction == pytest.approx(np.zeros(7), abs=1e-12)
    assert left @ weight == pytest.approx(states @ directions.without(weight, direction))


def test_a_threshold_fitted_again_lies_between_the_classes() -> None:
    states = np.array([[1.0, 9.0], [2.0, -9.0], [4.0, 9.0], [5.0, -9.0]])
    labels = np.array([0, 0, 1, 1])
    line = directions.recalibrated(np.array([1.0, 0.0]), rows_with(states, labels))
    assert -line.bias / line.weight[0] == pytest.approx(3.0, abs=1e-3)
    assert line.weight[0] > 0
    assert line.weight[1] == 0


def test_a_direction_without_signal_says_one_half() -> None:
    states = np.array([[1.0], [2.0], [1.0], [2.0]])
    rows = rows_with(states, np.array([0, 0, 1, 1]))
    line = directions.recalibrated(np.array([1.0]), rows)
    assert expit(line(states)) == pytest.approx([0.5] * 4, abs=1e-2)


def test_draws_keep_groups_whole_and_begin_with_the_rows_as_they_are() -> None:
    counts = counts_with_all(["a", "a", "b"], seed=0, resamples=50)
    assert counts[0].tolist() == [1, 1, 1]
    assert {tuple(row) for row in counts[1:]} == {(2, 2, 0), (1, 1, 1), (0, 0, 2)}


def test_differences_of_means_by_hand() -> None:
    rows = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    counts = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    found = directions.mean_differences(rows, np.array([1, 1, 0]), counts)
    assert found[:2].tolist() == [[2.0, -2.0], [3.0, -2.0]]
    assert np.isnan(found[2]).all()


def test_a_drawn_logistic_direction_is_that_of_the_repeated_rows() -> None:
    rng = np.random.default_rng(1)
    labels = np.array([0] * 8 + [1] * 6)
    states = rng.normal(size=(14, 3)) + labels[:, None] * np.array([1.0, 0.5, 0.0])
    counts = np.vstack([np.ones(14), rng.integers(0, 3, 14), labels]).astype(np.float64)
    found = readings.logistic_directions(rows_with(states, labels), counts, 0.1)
    standard = standardised(states)
    for drawn, direction in zip(counts[:2], found[:2], strict=True):
        rows = np.repeat(np.arange(14), drawn.astype(int))
        model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000)
        model.fit(standard.coordinates[rows], labels[rows])
        assert direction == pytest.approx(np.ravel(model.coef_) @ standard.axes, rel=1e-4)
    assert np.isnan(found[2]).all()


def test_a_cosine_has_the_percentiles_of_its_draws() -> None:
    along = np.tile([1.0, 0.0], (4, 1))
    other = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert directions.cosine_cell(along, other, 9) == Cell(1.0, (0.0, 0.0), 9)


def test_first_answer_tokens_are_unembedding_rows_times_the_gain_of_the_norm() -> None:
    subject = load_subject("tiny-aligned", device="cpu")
    traces = [trace("a", "refused", first=300), trace("b", "complied", first=41)]
    model = subject.model
    plain = first_token_rows(subject, traces, before_norm=False)
    rows = first_token_rows(subject, traces, before_norm=True)
    with torch.inference_mode():
        output = model(input_ids=torch.arange(9, 17)[None], output_hidden_states=True)
        gain = next(model.model.norm.parameters()).numpy()  # pyright: ignore[reportAttributeAccessIssue]
        logits = output.logits[0, :, [300, 41]].numpy()
        normed = output.hidden_states[-1][0].numpy()
    assert normed @ plain.T == pytest.approx(logits, rel=1e-4, abs=1e-4)
    assert rows == pytest.approx(plain * gain, rel=1e-4)


NONE = "no cliff: 3% of 68 fall"


def cells(*values: float | None) -> tuple[Cell, ...]:
    return tuple(Cell(value) for value in values)


def test_the_finding_on_directions_is_made_from_the_numbers() -> None:
    row = (None, 0.9, 0.7, 0.9, 0.1, 0.8, 0.9, 0.1, 0.0, 1.0)
    flat = (None, 0.5, None, 0.5, 0.4, 0.1, 0.5, 0.5, 0.5, 0.0)
    names = (directions.REFUSAL, directions.HARM, directions.HARM_ANYWHERE)
    rows = {name: cells(*row) for name in names}
    rows[directions.WITHOUT + "x"] = cells(*row)
    rows[directions.WITHOUT + "y"] = cells(*flat)
    rows[directions.ANEW + "x"] = cells(*flat)
    lacks = {name: "" if cell == cells(*row) else NONE for name, cell in rows.items()}
    finding = directions.directions_table(rows, lacks, 8, "how").finding
    assert "refusal 0.90 → 0.10; harmfulness" in finding
    assert "refused from complied traces with AUROC 0.70" in finding
    assert f"{A_CLIFF} stays without x, not without y ({NONE})." in finding
    assert f"With a new probe, it is gone: without x ({NONE})." in finding
    none = {**lacks, directions.REFUSAL: NONE}
    assert f"shows no cliff ({NONE})" in directions.directions_table(rows, none, 8, "how").finding
    nothing = dict.fromkeys(rows, cells(*[None] * len(row)))
    table = directions.directions_table(nothing, dict.fromkeys(rows), 8, "how")
    assert "no drop to explain" in table.finding


@pytest.mark.parametrize(
    ("complied", "wanted"),
    [
        (made_cliffs(12, 0.9, 0.1), ""),
        (made_cliffs(12, 0.9, 0.95), "no cliff: 0% of 12 fall"),
        (made_cliffs(5, 0.9, 0.1), "undecided: 20% of 25 fall"),
        ([], None),
    ],
)
def test_what_a_cliff_lacks_is_what_the_verdict_says(
    complied: Sequence[TraceCliff], wanted: str | None
) -> None:
    refused = made_cliffs(20, 0.9, 0.9, verdict="refused", spread=0.0)
    assert lacking([*complied, *refused, *BENIGN]) == wanted


def test_levels_are_means_by_group() -> None:
    rows = [
        made_cliff("a", 0.9, 0.1, label="harmful", verdict="complied"),
        made_cliff("b", 0.7, 0.3, label="harmful", verdict="harmful"),
        made_cliff("c", 0.9, 0.8, label="harmful", verdict="refused"),
        made_cliff("d", 0.2, 0.01, label="benign", verdict="complied"),
    ]
    found = dict(zip(LEVELS, levels(rows), strict=True))
    assert found["plateau, complied"].value == pytest.approx(0.8)
    assert found["final, complied"].value == pytest.approx(0.2)
    assert found["cliff"].value == pytest.approx(0.6)
    assert found["cliff"].interval == pytest.approx((0.4, 0.8))
    assert found["final, refused"].value == 0.8
    assert (found["plateau, benign"].value, found["final, benign"].value) == (0.2, 0.01)
    assert levels(rows[2:])[0] == Cell(None, None, 0)


def test_auroc_of_four_rows() -> None:
    states, read = np.array([[0.1], [0.4], [0.35], [0.8]]), Line(np.ones(1), 0.0)
    found = auroc_cell(read, rows_with(states, np.array([0, 0, 1, 1])))
    assert (found.value, found.n) == (0.75, 4)
    assert found.interval == (0.0, 1.0)
    one_class = rows_with(states, np.ones(4, dtype=np.int64))
    assert auroc_cell(read, one_class) == Cell(None, None, 0)


def test_a_line_finds_a_planted_direction_and_its_threshold() -> None:
    rng = np.random.default_rng(2)
    labels = np.array([0, 1] * 30)
    states = rng.normal(size=(60, 4)) * 0.1
    states[:, 2] += 4 * labels + 1
    line = fit_line(rows_with(states, labels), 0)
    assert line.weight[2] / np.linalg.norm(line.weight) > 0.99
    assert abs(line(np.array([[0.0, 0.0, 3.0, 0.0]]))[0]) < 0.5


def test_a_model_that_does_not_refuse_gets_no_verdict_and_is_told_why() -> None:
    states, groups = np.zeros((40, 1, 2)), [str(i) for i in range(40)]
    with pytest.raises(RefusalCliffError, match=r"there are 3\..*no verdict on a cliff"):
        fit_probes(states, [1] * 3 + [0] * 37, groups, [1], label_rule="refused-vs-benign")


def test_states_are_reduced_trace_by_trace_without_padding() -> None:
    reader = Reduced(2, lambda row, states: (row, states.sum()))
    states = torch.tensor([[[1.0], [2.0], [99.0]], [[3.0], [4.0], [5.0]]])
    reader.read_residual(2, states, Batch((1, 0), (2, 3)))
    assert reader.values == {1: (1, 3.0), 0: (0, 12.0)}
    assert Line(np.array([2.0]), 1.0)(np.array([[3.0]])).tolist() == [7.0]


def test_places_of_a_trace() -> None:
    found = readings.positions_of(SPANS)
    assert found["prompt end"] == [2]
    assert found["first thinking token"] == [3]
    assert found["last closing token"] == [14]
    assert found["mean of the thinking"] == list(range(3, 13))
    assert found["thinking tokens"] == [3, 4, 6, 7, 8, 9, 11, 12]
    assert found["any token"] == [2, 3, 4, 6, 7, 8, 9, 11, 12, 14]
    assert readings.positions_of(Spans(3, 5, 7, 9))["thinking tokens"] == [3, 4]
    states = states_of_places(np.arange(34.0).reshape(17, 2), SPANS)
    assert states["mean of the thinking"].tolist() == [[15.0, 16.0]]
    assert states["prompt end"].tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("refused-vs-benign", [1, -1, -1, 0, -1]),
        ("refused-vs-complied", [1, 0, 0, 0, -1]),
        ("harmful-vs-benign", [1, 1, 1, 0, 0]),
    ],
)
def test_labels_by_rule(rule: Rule, wanted: list[int]) -> None:
    traces = [
        trace("a", "refused"),
        trace("b", "complied"),
        trace("c", "harmful"),
        trace("d", "complied", "benign"),
        trace("e", "refused", "benign"),
    ]
    assert [readings.label_of(one, rule) for one in traces] == wanted


def test_rows_of_a_place_carry_the_labels_and_groups_of_their_traces() -> None:
    traces = [trace("a", "refused"), trace("b", "complied"), trace("c", "complied", "benign")]
    values = {name: np.full((17, 1), float(i)) for i, name in enumerate("abc")}
    states = {name: states_of_places(value, SPANS) for name, value in values.items()}
    rows = rows_of(traces, states, "thinking tokens", "refused-vs-benign")
    assert rows.labels.tolist() == [1] * 8 + [0] * 8
    assert rows.groups == ["a"] * 8 + ["c"] * 8
    assert rows.states[:, 0].tolist() == [0.0] * 8 + [2.0] * 8
    assert rows.has(1)
    assert not rows.has(2)
    assert not rows_of([], {}, "thinking tokens", "refused-vs-benign").has(1)


def test_data_sets_are_held_out_or_fitted_on_alone() -> None:
    traces = [
        trace("a", "refused", category="theft", tags=("framed",)),
        trace("b", "refused", category="theft"),
        trace("c", "refused", category="fraud"),
    ]
    parts = {
        name: tuple("".join(t.prompt.id for t in part) for part in positions.parted(traces, *sets))
        for name, *sets in positions.data_sets(traces)
    }
    assert parts == {
        "fitted without fraud, tested on it": ("ab", "c"),
        "fitted without theft, tested on it": ("c", "ab"),
        "fitted without framed, tested on it": ("bc", "a"),
        "fitted on framed, tested on the rest": ("a", "bc"),
    }


def test_a_small_network_reads_what_no_line_can_and_ignores_class_shares() -> None:
    rng = np.random.default_rng(3)
    radius = np.repeat([0.3, 2.0], [300, 100])
    angle = rng.uniform(0, 2 * np.pi, 400)
    states = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    rows = rows_with(states, (radius < 1).astype(np.int64))
    read = positions.fit_mlp(rows, 0)
    assert (read(states) > 0).tolist() == (rows.labels == 1).tolist()
    assert read(states).tolist() == positions.fit_mlp(rows, 0)(states).tolist()
    noise = Rows(rng.normal(size=(400, 2)), rows.labels, rows.groups)
    assert abs(float(np.mean(positions.fit_mlp(noise, 0)(noise.states)))) < 0.5


def test_the_finding_on_positions_counts_drops_but_for_shuffled_labels() -> None:
    lacks = {"own": "", "flat": NONE, "shared": NONE, positions.SHUFFLED: ""}
    rows = {name: cells(0.9, 0.9, 0.1, 0.8, 0.9, 0.1, 0.0, 1.0) for name in lacks}
    table = positions.positions_table(rows, lacks, 8, ["rare"])
    assert "1 of 3 probes show a cliff" in table.finding
    assert "those that do: own." in table.finding
    more = lacks | {"fourth": "", "fifth": ""}
    rows |= dict.fromkeys(more, rows["own"])
    most = positions.positions_table(rows, more, 8, []).finding
    assert "3 of 5 probes" in most
    assert f"do not: flat ({NONE}); shared ({NONE})." in most
    assert "Too few traces of a class for: rare." in table.notes[-1]
    nothing = {"own": cells(*[None] * 8)}
    assert "no drop to explain" in positions.positions_table(nothing, {"own": None}, 8, []).finding
