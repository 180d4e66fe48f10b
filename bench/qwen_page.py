"""The tables and the chart of docs/results/qwen.md, out of what bench/qwen.py recorded.

python -m bench.qwen_page bench/qwen-course.jsonl --chart docs/images/qwen-course.svg
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from refusal_cliff.answers.correction import judged_rates, known_error
from refusal_cliff.io import write_text
from refusal_cliff.judges.rules import RulesJudge
from refusal_cliff.organisms.bases import QWEN, QWEN_LARGER
from refusal_cliff.report.svg import (
    Frame,
    dot,
    frame,
    line,
    picture,
    polyline,
    share_axis,
    tag,
    text,
)
from refusal_cliff.stats import Share, difference_interval, mcnemar

Answer = dict[str, Any]
_WIDTH, _HEIGHT = 760.0, 380.0
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3a3d44}.axis{stroke:#8a8d94}.grid{stroke:#e3e0d8}"
    "polyline{fill:none;stroke-width:2}.axis-name{font-weight:600}"
)


_BEHAVIOUR = (
    "of these in the thinking only",
    "thinking refuses",
    "complied although it does",
    "over-refusal",
    "thinking closed by itself",
    "mean thinking tokens",
)
_GROUPS = [f"{name}: n, plateau → final" for name in ("complied", "refused", "benign")]


def complied(answer: Answer) -> bool:
    """The answer does what was asked, by the phrase rules."""
    return answer["verdict"] in ("complied", "harmful")


def refused(answer: Answer) -> bool:
    """The answer refuses; or there is none, and the thinking refuses in its place."""
    return answer["verdict"] == "refused" or (
        not complied(answer) and answer["refuses_in_thinking"]
    )


def refused_in_thinking(answer: Answer) -> bool:
    """What stands between the markers is a refusal."""
    return bool(answer["refuses_in_thinking"])


LINES: dict[str, tuple[str, Callable[[Answer], bool], str]] = {
    "harmful: complied": ("harmful", complied, "#b8440a"),
    "harmful: refused": ("harmful", refused, "#1f5fa8"),
    "harmful: thinking refuses": ("harmful", refused_in_thinking, "#7a4fa3"),
    "benign (XSTest): refused": ("benign", refused, "#1c6e5a"),
}


def labelled(row: dict[str, Any], label: str, part: str = "test") -> list[Answer]:
    """Answers to prompts of one label."""
    return [answer for answer in row[part] if answer["label"] == label]


def named(row: dict[str, Any]) -> str:
    """Which checkpoint, asked which prompts."""
    size = "1.5B " if row["base"] == QWEN_LARGER and row["name"] == "base" else ""
    other = "" if row["draw"] == 0 else ", other prompts"
    return f"{size}{row['name']}, {row['at']} %{other}"


def asked(row: dict[str, Any]) -> tuple[str, list[int], int]:
    """Which base was asked which prompts: rows that can be compared."""
    return row["base"], row["n"], row["draw"]


def share(answers: Sequence[Answer], test: Callable[[Answer], bool]) -> Share:
    """How many of them."""
    return Share(sum(map(test, answers)), len(answers))


def told(found: Share) -> str:
    """A share with its interval."""
    low, high = found.interval or (0.0, 1.0)
    return f"{found.value or 0:.2f} [{low:.2f}, {high:.2f}]" if found.n else "–"


def corrected(answers: Sequence[Answer]) -> str:
    """Attack success without the judge's error."""
    found = share(answers, complied)
    judged = sum(answer["verdict"] != "unscored" for answer in answers)
    rate = judged_rates(
        RulesJudge.name, known_error(RulesJudge.name), {"asr": (found, judged)}
    ).rates["asr"]
    if rate.corrected is None or rate.corrected_interval is None:
        return "–"
    low, high = rate.corrected_interval
    return f"{rate.corrected:.2f} [{low:.2f}, {high:.2f}]"


def behaviour(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What the model does, one line a checkpoint."""
    table = [["training", "attack success", "without the judge's error", "refused", *_BEHAVIOUR]]
    for row in rows:
        harmful, benign = labelled(row, "harmful"), labelled(row, "benign")
        both, attacks = [*harmful, *benign], [a for a in harmful if complied(a)]
        inside = sum(refused(a) and a["verdict"] != "refused" for a in harmful)
        lengths = [a["thinking_tokens"] for a in both if a["thinking_tokens"] is not None]
        table.append(
            [
                named(row),
                told(share(harmful, complied)),
                corrected(harmful),
                told(share(harmful, refused)),
                f"{inside} of {sum(map(refused, harmful))}",
                told(share(harmful, refused_in_thinking)),
                f"{sum(map(refused_in_thinking, attacks))} of {len(attacks)}",
                told(share(benign, refused)),
                told(share(both, lambda a: a["closed"] and not a["cut"])),
                f"{mean(lengths):.0f}" if lengths else "–",
            ]
        )
    return table


def changes(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Each checkpoint against the base on the same prompts, paired."""
    table = [["training", *(f"{name}: change, p (McNemar)" for name in LINES)]]
    bases = [row for row in rows if row["name"] == "base"]
    for row in rows:
        base = next((one for one in bases if asked(one) == asked(row)), None)
        if base is None or base is row:
            continue
        cells = []
        for label, test, _ in LINES.values():
            before, after = ([test(a) for a in labelled(r, label)] for r in (base, row))
            pairs = [float(a) - float(b) for b, a in zip(before, after, strict=True)]
            low, high = difference_interval(pairs, [a["id"] for a in labelled(row, label)])
            change = mean(pairs)
            told = f"{change:+.2f} [{low:+.2f}, {high:+.2f}], {mcnemar(before, after):.1g}"
            cells.append(told)
        table.append([named(row), *cells])
    return table


def inside(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What the probe reads, one line a checkpoint."""
    table = [["training", "probe: layer, AUROC", *_GROUPS, "cliff", "verdict"]]
    for row in rows:
        name = named(row)
        if row["cliff"] is None:
            table.append([name, "–", "–", "–", "–", "–", row["unmeasured"].split(". ")[0]])
            continue
        probe, cliff = row["probe"], row["cliff"]
        low, high = probe["auroc_ci"]
        groups = [
            [a for a in labelled(row, "harmful") if complied(a)],
            [a for a in labelled(row, "harmful") if a["verdict"] == "refused"],
            [a for a in labelled(row, "benign") if complied(a)],
        ]
        ends = cliff["cliff_ci"]
        table.append(
            [
                name,
                f"{probe['layer']}, {probe['auroc']:.2f} [{low:.2f}, {high:.2f}] "
                f"(shuffled {probe['shuffled']:.2f})",
                *map(_scores, groups),
                f"{cliff['cliff']:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]",
                f"{cliff['verdict']}: {cliff['reason']}",
            ]
        )
    return table


def _scores(answers: Sequence[Answer]) -> str:
    scored = [a for a in answers if "plateau" in a]
    if not scored:
        return "0"
    plateau, final = (mean(a[end] for a in scored) for end in ("plateau", "final"))
    return f"{len(scored)}, {plateau:.2f} → {final:.2f}"


def kinds(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What became of the harmful prompts."""
    counts = [Counter(a.get("kind", "not scored") for a in labelled(r, "harmful")) for r in rows]
    names = sorted({name for count in counts for name in count})
    table = [["training", *names]]
    for row, count in zip(rows, counts, strict=True):
        table.append([named(row), *(str(count[name]) for name in names)])
    return table


def turns(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Cosine of the direction of harm with that of the base, every fourth block."""
    rows = [row for row in rows if "cosine_to_base" in row and row["name"] != "base"]
    blocks = range(4, len(rows[0]["cosine_to_base"]) + 1, 4) if rows else range(0)
    table = [["training", *(f"block {block}" for block in blocks)]]
    for row in rows:
        found = row["cosine_to_base"]
        table.append([named(row), *(f"{found[b - 1]:.3f}" for b in blocks)])
    return table


def chart(rows: Sequence[dict[str, Any]]) -> str:
    """What the models do over the training, as a whole SVG file; each seed is a line."""
    place = frame((0, 100), (0, 1), 50, 30, 520, _HEIGHT - 60)
    base = [row for row in rows if row["name"] == "base"]
    seeds = sorted({row["name"] for row in rows} - {"base"})
    courses = [[*base, *(row for row in rows if row["name"] == seed)] for seed in seeds]
    drawn = [_legend(name, number) for number, name in enumerate(LINES)]
    for number, course in enumerate(courses):
        drawn += [_series(place, course, name, dashed=number > 0) for name in LINES]
    ticks = "".join(
        text(place.x(at), place.bottom + 18, f"{at:g}", "tick", "middle")
        for at in sorted({float(row["at"]) for row in rows})
    )
    told = f"line: {seeds[0]}; dashed: {', '.join(seeds[1:])}" if seeds[1:] else ""
    svg = picture(
        "course",
        (_WIDTH, _HEIGHT),
        "What the model does over its reasoning training",
        "Shares of test prompts with Wilson intervals, by percent of the training.",
        tag("style", _STYLE),
        tag("rect", width=_WIDTH, height=_HEIGHT, fill="#ffffff"),
        share_axis(place, 50, 520),
        ticks,
        text(50, _HEIGHT - 8, "percent of the training", "axis-name"),
        text(532, 50 + 20 * len(LINES), told, "tick"),
        *drawn,
    )
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + "\n"


def _series(place: Frame, rows: Sequence[dict[str, Any]], name: str, *, dashed: bool) -> str:
    """One line of one seed; intervals would hide each other, so that only the first has them."""
    label, test, ink = LINES[name]
    shares = {float(row["at"]): share(labelled(row, label), test) for row in rows}
    points = [place.point(at, found.value or 0) for at, found in sorted(shares.items())]
    bars = ""
    for at, found in shares.items():
        low, high = found.interval or (0.0, 1.0)
        bars += line((place.x(at), place.y(low)), (place.x(at), place.y(high)), "")
    dots = "".join(dot(x, y, 3, "") for x, y in points)
    course = polyline(points, "") if len(points) > 2 else ""  # two ends are no course
    drawn = tag("g", course, stroke=ink, stroke_dasharray="5 4" if dashed else "none")
    return drawn + tag("g", "" if dashed else bars, stroke=ink) + tag("g", dots, fill=ink)


def _legend(name: str, number: int) -> str:
    y = 50 + 20 * number
    return tag("g", dot(532, y - 4, 4, "") + text(540, y, name), fill=LINES[name][2])


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table."""
    head, *body = table
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _course(row: dict[str, Any]) -> tuple[str, float]:
    return row["name"], float(row["at"])


def main() -> None:
    """Print the tables; write the chart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    rows = [json.loads(one) for one in options.record.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: (row["base"], row["draw"], row["name"] != "base", _course(row)))
    for title, table in (
        ("What it does", behaviour(rows)),
        ("Against the base, on the same prompts", changes(rows)),
        ("What the probe reads", inside(rows)),
        ("What became of the harmful prompts", kinds(rows)),
        ("The direction of harm, against the base", turns(rows)),
    ):
        print(f"{title}\n\n{markdown(table)}\n")
    print("seconds:", "; ".join(f"{named(row)}: {row['seconds']:,}" for row in rows))
    if options.chart:
        write_text(options.chart, chart([r for r in rows if r["base"] == QWEN and r["draw"] == 0]))


if __name__ == "__main__":
    main()
