"""The prompts of an audit: nothing lost, nothing on both sides, sources kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab.pretrained.sources import recorded_sources
from refusal_cliff.answers import benchmarks
from refusal_cliff.commands.arguments import prompt_sources
from refusal_cliff.data.examples import PromptSet, source_of, write_prompts
from refusal_cliff.data.traces import read_prompts
from refusal_cliff.data.types import LABELS, Label, LeftOut, Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.subject import load_subject
from refusal_cliff.organisms import language
from refusal_cliff.workflows import audit_prompts as module
from refusal_cliff.workflows.audit_prompts import (
    AuditPrompts,
    AuditSources,
    audit_prompts,
    fitting,
    split_prompts,
)

N = 30


def made(path: Path, label: Label, seed: int, n: int = N) -> str:
    write_prompts(path, language.prompts("test", label, n, seed))
    return str(path)


def words(path: Path, label: Label, start: int, n: int = N) -> str:
    """Prompts that share no words with those of another start."""
    write_prompts(path, [Prompt(str(i), f"w{start + i}", label) for i in range(n)])
    return str(path)


def test_halves_share_no_group_and_lose_nothing() -> None:
    prompts = [
        *language.prompts("test", "harmful", 80, 0),
        *language.prompts("test", "benign", 80, 0),
    ]
    fit, test = split_prompts(prompts, 0)
    assert sorted(p.id for p in [*fit, *test]) == sorted(p.id for p in prompts)
    for label in ("harmful", "benign"):
        sides = [{p.group for p in side if p.label == label} for side in (fit, test)]
        assert not sides[0] & sides[1]
        assert all(sides)


def test_near_duplicates_are_on_one_side_whatever_their_labels_and_files(tmp_path: Path) -> None:
    """Without a column of groups: the same request twice, in other words, or as the other label."""
    sources: dict[Label, str] = {}
    for label in ("harmful", "benign"):
        prompts = [
            Prompt(f"{label}-{at}-{copy}", f"{polite}w{at} x{at} y{at} z{at} v{at} u{at}?", label)
            for at in range(60)
            for copy, polite in enumerate(("", "Please tell: "))
            if label == "harmful" or at < 45
        ]
        sources[label] = str(tmp_path / f"{label}.jsonl")
        write_prompts(Path(sources[label]), prompts)
    found = audit_prompts(AuditSources((sources["harmful"],), (sources["benign"],)), 0)
    cores = [{prompt.text[-12:] for prompt in side} for side in (found.fit, found.test)]
    assert not cores[0] & cores[1]
    assert len(found.fit) + len(found.test) == 120 + 90
    groups = [{prompt.group for prompt in side} for side in (found.fit, found.test)]
    assert not groups[0] & groups[1]
    assert sum(map(len, groups)) == 60
    for side in (found.fit, found.test):
        assert {prompt.label for prompt in side} == {"harmful", "benign"}


def test_a_prompt_that_no_context_holds_is_left_out_and_listed() -> None:
    subject = load_subject("tiny", device="cpu")
    context = subject.context
    assert context is not None
    fine = language.prompts("test", "harmful", 50, 0) + language.prompts("test", "benign", 50, 0)
    long = [Prompt(f"long{i}", "diary " * context, "harmful") for i in range(2)]
    asked = AuditPrompts([*fine[::2], long[0]], [*fine[1::2], long[1]], {})
    found = fitting(asked, subject)
    assert (len(found.fit), len(found.test)) == (50, 50)
    assert [row.id for row in found.left_out] == ["long0", "long1"]
    assert "context" in found.left_out[0].detail
    assert fitting(AuditPrompts(fine, fine, {}), subject) == AuditPrompts(fine, fine, {})
    with pytest.raises(RefusalCliffError, match=r"0 different harmful .* Some were left out"):
        fitting(AuditPrompts(fine[50:] + long[:1], fine[50:], {}), subject)


def test_sources_to_fit_on_are_not_tested_on_and_lose_what_overlaps(tmp_path: Path) -> None:
    harmful = [
        words(tmp_path / "a.jsonl", "harmful", 0),
        words(tmp_path / "b.jsonl", "harmful", 28),
    ]
    benign = [
        words(tmp_path / f"{name}.jsonl", "benign", at) for name, at in (("c", 100), ("d", 200))
    ]
    found = audit_prompts(AuditSources((*harmful,), (*benign,), ("a", "c")), 0)
    assert {source_of(prompt) for prompt in found.fit} == {"a", "c"}
    assert {source_of(prompt) for prompt in found.test} == {"b", "d"}
    assert found.dropped == 2  # w28 and w29
    assert len(found.fit) == 2 * N - 2
    assert len(found.test) == 2 * N
    ids = [prompt.id for prompt in [*found.fit, *found.test]]
    assert len(set(ids)) == len(ids)


def test_a_source_with_both_labels_is_given_to_both_sides(tmp_path: Path) -> None:
    rows = [Prompt(f"h{i}", f"x{i}", "harmful") for i in range(50)]
    rows += [Prompt(f"b{i}", f"y{i}", "benign") for i in range(50)]
    write_prompts(tmp_path / "both.jsonl", rows)
    both = str(tmp_path / "both.jsonl")
    found = audit_prompts(AuditSources((both,), (both,)), 0)
    assert sorted(p.id for p in [*found.fit, *found.test]) == sorted(p.id for p in rows)
    other = made(tmp_path / "benign.jsonl", "benign", 0)
    with pytest.raises(RefusalCliffError, match=r"prompt 51: the label is 'benign'.*as both"):
        audit_prompts(AuditSources((both,), (other,)), 0)


@pytest.mark.parametrize("harmful", [[], ["a.jsonl"]])
def test_an_audit_without_prompts_says_what_it_needs(harmful: list[str]) -> None:
    with pytest.raises(RefusalCliffError, match="needs harmful and benign prompts"):
        prompt_sources(harmful, [], ())


def test_a_source_to_fit_on_must_be_among_the_others(tmp_path: Path) -> None:
    harmful, benign = (
        made(tmp_path / "a.jsonl", "harmful", 0),
        made(tmp_path / "b.jsonl", "benign", 0),
    )
    with pytest.raises(RefusalCliffError, match="c was given to --fit-on, but no prompt"):
        audit_prompts(AuditSources((harmful,), (benign,), ("c",)), 0)


def test_a_benchmark_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Prompt(f"x-{i}", f"x{i}", "harmful" if i % 2 else "benign") for i in range(100)]
    found = PromptSet(rows)
    monkeypatch.setattr(module, "load_benchmark", lambda name: found)
    read = audit_prompts(AuditSources(("xstest",), ("xstest",)), 0)
    assert len(read.fit) + len(read.test) == 100
    assert read.files == {"xstest": benchmarks.BENCHMARKS["xstest"].revision}
    found.left_out.append(LeftOut("x-7", 7, "it is empty"))
    with pytest.raises(
        RefusalCliffError, match="1 rows that cannot be used; the first: row 7: it is"
    ):
        audit_prompts(AuditSources(("xstest",), ("xstest",)), 0)


def test_a_folder_without_the_recorded_files_says_which(tmp_path: Path) -> None:
    with pytest.raises(RefusalCliffError, match=r"0 files named strongreject\.jsonl"):
        recorded_sources(tmp_path)


def test_the_recorded_audit_of_the_public_files() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the public prompts are not part of the project")
    found = audit_prompts(recorded_sources(folder), 0)
    assert {source_of(prompt) for prompt in found.fit} == {"strongreject", "self_instruct"}
    assert {source_of(prompt) for prompt in found.test} == {
        "jailbreakbench",
        "malicious_instruct",
        "xstest",
    }


def test_rows_that_name_their_source_are_found_by_it_and_by_their_file(tmp_path: Path) -> None:
    """Answers of an earlier run keep the sources of their prompts; neither name found them."""
    kept = tmp_path / "kept.jsonl"
    rows: list[Prompt] = []
    for name, at in (("a", 0), ("b", 200)):
        for label, more in zip(LABELS, (0, 100), strict=True):
            prompts = read_prompts(words(tmp_path / f"{name}-{label}.jsonl", label, at + more))
            rows += [replace(p, id=p.text, tags=(f"from:{name}",)) for p in prompts]
    write_prompts(kept, rows)
    both = AuditSources((str(kept),), (str(kept),))
    found = audit_prompts(replace(both, fit_on=("a",)), 0)
    assert {source_of(prompt) for prompt in found.fit} == {"a"}
    assert {source_of(prompt) for prompt in found.test} == {"b"}
    with pytest.raises(RefusalCliffError, match="Name one of: a, b, kept"):
        audit_prompts(replace(both, fit_on=("c",)), 0)
    with pytest.raises(RefusalCliffError, match="0 different harmful prompts to test on"):
        audit_prompts(replace(both, fit_on=("kept",)), 0)
