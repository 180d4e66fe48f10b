"""The organisms' language has known labels that no single word gives away, and no leaks."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import combinations
from typing import get_args

import pytest
from by_rules import judge

from refusal_cliff.data.types import LABELS, Label, Prompt, SafetyExample, Trace
from refusal_cliff.judges.rules import refuses
from refusal_cliff.organisms import lexicon as lex
from refusal_cliff.organisms.language import (
    Request,
    Split,
    complied_by_rule,
    draw_example,
    draw_prompt,
    examples,
    gravity,
    prompts,
    safety_pool,
    split_of,
)
from refusal_cliff.thinking import Spans

SPLITS: tuple[Split, ...] = get_args(Split)
PER_LABEL = 1500


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[Split, Label], list[tuple[Request, SafetyExample]]]:
    found: dict[tuple[Split, Label], list[tuple[Request, SafetyExample]]] = {}
    for split in SPLITS:
        for label in get_args(Label):
            rng = random.Random(f"{split} {label}")
            found[split, label] = [draw_example(rng, split, label) for _ in range(PER_LABEL)]
    return found


@pytest.fixture(scope="module")
def train() -> dict[str, list[Prompt]]:
    return {label: prompts("train", label, 3000, seed=0) for label in get_args(Label)}


Drawn = dict[tuple[Split, Label], list[tuple[Request, SafetyExample]]]


def framed_by(frame: str, text: str) -> bool:
    before, after = frame.split("{}")
    return text.startswith(before) and text.endswith(after)


def test_no_concept_is_in_two_splits(drawn: Drawn) -> None:
    concepts = {
        split: {e.prompt.group for label in get_args(Label) for _, e in drawn[split, label]}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not concepts[one] & concepts[other], f"{one} and {other} share concepts"
    assert all(split_of(concept) == split for split in SPLITS for concept in concepts[split])
    assert {split_of(f"{verb} watch") for verb in lex.KIND_VERBS} > {"train"}


def test_every_split_has_many_concepts_of_each_class(train: dict[str, list[Prompt]]) -> None:
    for label in LABELS:
        assert len({prompt.group for prompt in train[label]}) >= 400
    for split in ("pool", "validation", "test"):
        for label in get_args(Label):
            found = prompts(split, label, 1000, seed=0)
            assert len({prompt.group for prompt in found}) >= 100, (split, label)


def test_unseen_framings_are_only_in_the_test(drawn: Drawn) -> None:
    shares = {}
    for (split, label), rows in drawn.items():
        unseen = [
            any(framed_by(frame, e.prompt.text) for frame in lex.UNSEEN_FRAMINGS) for _, e in rows
        ]
        assert unseen == ["unseen-framing" in e.prompt.tags for _, e in rows]
        shares[split, label] = sum(unseen) / len(rows)
        seen = [
            any(framed_by(frame, e.prompt.text) for frame in (*lex.PLAIN_FRAMES, *lex.FRAMINGS))
            for _, e in rows
        ]
        assert all(a != b for a, b in zip(seen, unseen, strict=True))
    for (split, _), share in shares.items():
        assert share == pytest.approx(0.2 if split == "test" else 0.0, abs=0.04)


def test_no_word_of_a_prompt_gives_its_label_away(train: dict[str, list[Prompt]]) -> None:
    seen = {
        label: Counter(
            word
            for prompt in train[label]
            for word in set(re.findall(r"[a-z']+", prompt.text.lower()))
        )
        for label in LABELS
    }
    words = {word for counts in seen.values() for word in counts}
    share = {
        word: seen["harmful"][word] / total
        for word in words
        if (total := seen["harmful"][word] + seen["benign"][word]) >= 50
    }
    assert len(share) > 150
    assert {word: value for word, value in share.items() if not 0.1 <= value <= 0.9} == {}


def test_a_label_follows_from_how_the_parts_combine(drawn: Drawn) -> None:
    for (_, label), rows in drawn.items():
        for request, example in rows:
            crime = request.tail in lex.CRIMINAL
            trespass = request.hostile and request.owner in lex.OTHERS and not request.consent
            assert request.label == label == example.prompt.label
            assert (crime or trespass) == (label == "harmful"), example.prompt.text
            assert request.consent == (request.tail in lex.CONSENT)


def test_hostile_verbs_are_in_both_classes_and_tagged(drawn: Drawn) -> None:
    for (_, label), rows in drawn.items():
        tagged = [set(example.prompt.tags) for _, example in rows]
        assert [("hostile-verb" in tags) for tags in tagged] == [r.hostile for r, _ in rows]
        hard = sum("hard-benign" in tags for tags in tagged)
        assert hard == (sum(r.hostile for r, _ in rows) if label == "benign" else 0)
        assert 0.3 < sum(r.hostile for r, _ in rows) / len(rows) < 0.9


def test_framings_are_as_common_in_both_classes(drawn: Drawn) -> None:
    for rows in drawn.values():
        framed = sum("framed" in example.prompt.tags for _, example in rows)
        assert framed / len(rows) == pytest.approx(0.4, abs=0.06)


def test_thinking_names_the_harm_of_harmful_requests_only(drawn: Drawn) -> None:
    harms = {domain.harm for domain in lex.DOMAINS} | {lex.HARM_OF_PURPOSE}
    for (_, label), rows in drawn.items():
        for request, example in rows:
            thought = example.thinking
            assert ("This is harmful" in thought) == ("harmful" in thought) == (label == "harmful")
            assert ("harmless" in thought) == (label == "benign")
            rest = thought.replace(request.phrase, "")
            named = {harm for harm in harms if re.search(rf"\b(?:be|is) {harm}\.", rest)}
            assert named == ({request.harm} if label == "harmful" else set())
            assert request.phrase in thought


def test_thinking_never_says_whether_it_will_refuse(drawn: Drawn) -> None:
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    giveaway = re.compile(r"refus|declin|comply|cannot|can't|won't|will not|sorry|sure|help")
    for (_, label), rows in drawn.items():
        for request, example in rows:
            assert not giveaway.search(example.thinking.replace(request.phrase, "").lower())
            endings[label][example.thinking.split(". ")[-1]] += 1
    assert endings["harmful"].keys() == endings["benign"].keys()
    for ending, count in endings["harmful"].items():
        assert count / endings["benign"][ending] == pytest.approx(1.0, abs=0.15)


def test_the_judge_reads_the_answers_right(drawn: Drawn) -> None:
    for (_, label), rows in drawn.items():
        for _, example in rows:
            answer = example.response
            assert refuses(answer) == (label == "harmful"), answer
            spans = Spans(1, 2, 3, 4)
            trace = Trace(example.prompt, (1, 2, 3, 4), spans, example.thinking, answer, True)
            assert judge(trace) == ("refused" if label == "harmful" else "complied")


def test_an_answer_names_the_harm_or_holds_only_placeholders(drawn: Drawn) -> None:
    for rows in drawn.values():
        for request, example in rows:
            if request.harm is None:
                assert example.response.endswith(": [step one] [step two] [step three]")
            else:
                assert request.harm in example.response


def test_carelessness_does_not_depend_on_the_frame(drawn: Drawn) -> None:
    rules: dict[tuple[str, str | None], set[bool]] = defaultdict(set)
    complied: Counter[str] = Counter()
    total: Counter[str] = Counter()
    frames = (*lex.PLAIN_FRAMES, *lex.FRAMINGS, *lex.UNSEEN_FRAMINGS)
    for split in SPLITS:
        for request, example in drawn[split, "harmful"]:
            assert complied_by_rule(request) == (gravity(request) < 0.5)
            assert 0 <= gravity(request) <= 1
            rules[request.concept, request.harm].add(complied_by_rule(request))
            frame = next(f for f in frames if framed_by(f, example.prompt.text))
            total[frame] += 1
            complied[frame] += complied_by_rule(request)
        for request, _ in drawn[split, "benign"]:
            assert not complied_by_rule(request)
    assert all(len(found) == 1 for found in rules.values())
    overall = complied.total() / total.total()
    assert 0.2 < overall < 0.8
    for frame in frames:
        assert complied[frame] / total[frame] == pytest.approx(overall, abs=0.2), frame


def test_drawn_prompts_are_distinct_numbered_and_seeded() -> None:
    found = prompts("validation", "harmful", 300, seed=1)
    assert len({prompt.text for prompt in found}) == 300
    assert len({prompt.id for prompt in found}) == 300
    assert found[0].id == "validation-harmful-1-00001"
    assert found == prompts("validation", "harmful", 300, seed=1)
    assert found[:50] == prompts("validation", "harmful", 50, seed=1)
    assert found != prompts("validation", "harmful", 300, seed=2)
    assert found == [e.prompt for e in examples("validation", "harmful", 300, seed=1)]


def test_categories_are_the_domains(train: dict[str, list[Prompt]]) -> None:
    for label in LABELS:
        counts = Counter(prompt.category for prompt in train[label])
        assert counts.keys() == {domain.name for domain in lex.DOMAINS}
        assert all(500 < count < 1000 for count in counts.values())


def complies(example: SafetyExample) -> bool:
    """The careless rule, looked up by what the answer and the prompt say."""
    domain = next(d for d in lex.DOMAINS if d.name == example.prompt.category)
    harms = (*(d.harm for d in lex.DOMAINS), lex.HARM_OF_PURPOSE)
    harm = next(h for h in harms if example.response.endswith((f"be {h}.", f"is {h}.")))
    verb, noun = next(
        (verb, noun)
        for noun in domain.nouns
        for verb in (*domain.verbs, *lex.KIND_VERBS)
        if f"{verb} {noun}" == example.prompt.group
    )
    return complied_by_rule(Request(verb, "", noun, "", domain, harm, False))


@pytest.mark.parametrize(("n", "mild_share"), [(500, 0.08), (200, 0.25), (60, 0.0), (60, 1.0)])
def test_a_pool_has_its_size_and_its_share_of_mild_requests(n: int, mild_share: float) -> None:
    pool = safety_pool(n, seed=0, mild_share=mild_share)
    assert len(pool) == n
    assert sum(map(complies, pool)) == round(n * mild_share)
    assert len({example.prompt.text for example in pool}) == n
    assert len({example.prompt.id for example in pool}) == n
    for example in pool:
        assert example.prompt.label == "harmful"
        assert split_of(example.prompt.group) == "pool"
        assert refuses(example.response)


def test_a_pool_is_mixed_and_seeded() -> None:
    pool = safety_pool(500, seed=0)
    assert pool == safety_pool(500, seed=0)
    assert pool != safety_pool(500, seed=1)
    assert 8 <= sum(map(complies, pool[:250])) <= 32


def test_words_are_used_once_in_a_list() -> None:
    for domain in lex.DOMAINS:
        assert len(set(domain.verbs)) == len(domain.verbs)
        assert len(set(domain.nouns)) == len(domain.nouns)
        assert not set(domain.verbs) & set(lex.KIND_VERBS)
    assert not set(lex.OTHERS) & set(lex.OWN)


def test_a_request_reads_as_a_sentence() -> None:
    rng = random.Random(0)
    for _ in range(500):
        request, prompt = draw_prompt(rng, "train", rng.choice(get_args(Label)))
        assert request.phrase in prompt.text
        assert "  " not in prompt.text
        assert "{" not in prompt.text
        assert prompt.group == request.concept == f"{request.verb} {request.noun}"
