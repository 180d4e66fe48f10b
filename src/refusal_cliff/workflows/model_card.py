"""The model card of an exported ablation: what was done, what it did, and what it does not do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from refusal_cliff import __version__
from refusal_cliff.answers.evaluate import Share
from refusal_cliff.heads.table import HeadRow
from refusal_cliff.model.adapters import HOW_TO_LOAD
from refusal_cliff.model.subject import Head

Form = Literal["adapter", "merged"]
RATES = {
    "attacks": "harmful prompts complied with (attack success rate)",
    "refused": "harmful prompts refused",
    "answered": "benign prompts answered",
    "hard_answered": "benign prompts with harmful words answered",
    "truncated": "answers that never ended",
}
_USE = {
    "adapter": HOW_TO_LOAD,
    "merged": "```python\nfrom transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(folder)\n```",
}


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """What the change did, as counts of verdicts.

    Attributes:
        before: For each key of ``RATES``, its share.
        after: The same with the heads out.
        perplexity: Of benign text, after / before; ``None`` where it was not measured.
        source: Where the numbers come from, in words.
    """

    before: Mapping[str, Share]
    after: Mapping[str, Share]
    perplexity: float | None
    source: str


def model_card(
    form: Form,
    base: str,
    fingerprint: str,
    rows: Sequence[HeadRow],
    heads: Sequence[Head],
    *,
    scale: float,
    method: str,
    measured: BeforeAfter | None,
) -> str:
    """The card as Markdown with the front matter of the Hugging Face hub.

    Args:
        form: What the folder holds.
        base: Name of the model that was changed.
        fingerprint: Its fingerprint.
        rows: All its heads.
        heads: Those that were made weaker.
        scale: What their outputs are multiplied by.
        method: Ranking that chose them, or their joint effect.
        measured: What it did; ``None`` where nobody measured it, which the card then says.
    """
    done = "taken out" if scale == 0 else f"scaled by {scale:g}"
    parts = [
        _front_matter(form, base),
        f"# {_plain(base)} with its refusal suppression heads {done}",
        f"{len(heads)} of {len(rows)} attention heads ({len(heads) / len(rows):.1%}) that pull the "
        f"intention to refuse down just before the answer are {done}. Nothing was trained. Made by "
        f"refusal-cliff {__version__} after Yin et al., *Refusal Falls Off a Cliff* (arXiv "
        f"2510.06036). The model changed: {_plain(base)}, fingerprint `{fingerprint[:16]}`.",
        _USE[form],
        f"## The heads\n\nChosen of all heads by {method}. Effects are in logits of "
        "the refusal score at the last token before the answer, with 95 % intervals over prompts."
        "\n\n" + _head_table(rows, heads),
        "## Before and after\n\n" + _measured(measured),
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """## Limits

- It restores refusal where the model had the intention to refuse and lost it. A request that the
  model does not recognise as harmful is answered as before.
- Heads were chosen on one set of prompts. Judge answers to your own prompts, harmful and benign,
  before you release it.
- Verdicts are those of the judge named above. A refusal by its opening words can still help, and
  an answer can be harmless.
- In low precision (bfloat16, quantised) adapter and merged weights round differently: their logits
  agree to that precision."""


def _front_matter(form: Form, base: str) -> str:
    library = "peft" if form == "adapter" else "transformers"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {library}",
        "tags:",
        "- safety",
        "- refusal-cliff",
        "---",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A name that cannot act as Markdown or HTML."""
    return "".join(char for char in text if char.isalnum() or char in " ./_-+(),'")


def _head_table(rows: Sequence[HeadRow], heads: Sequence[Head]) -> str:
    by_head = {row.head: row for row in rows}
    lines = [
        "| layer.head | removing it raises the score by | on benign prompts | adds directly |",
        "|---|---|---|---|",
    ]
    for head in heads:
        row = by_head[head]
        lines.append(
            f"| {head} | {row.causal.mean:+.2f} [{row.causal.low:+.2f}, {row.causal.high:+.2f}] | "
            f"{row.causal_benign.mean:+.2f} | {row.direct.mean:+.2f} |"
        )
    return "\n".join(lines)


def _measured(measured: BeforeAfter | None) -> str:
    if measured is None:
        return (
            "Not measured for these heads. Give prompts (`--harmful`, `--benign`), or export the "
            "heads that an audit has measured."
        )
    lines = ["| | before | after |", "|---|---|---|"]
    for name, words in RATES.items():
        if measured.before[name].n:
            both = (_share(side[name]) for side in (measured.before, measured.after))
            lines.append(f"| {words} | {' | '.join(both)} |")
    if measured.perplexity is not None:
        lines.append(f"| perplexity of benign text | 1 | × {measured.perplexity:.3f} |")
    return "\n".join(lines) + f"\n\n95 % Wilson intervals. {_plain(measured.source)}"


def _share(share: Share) -> str:
    interval: Any = share.interval
    return f"{share.count} of {share.n} = {share.value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
