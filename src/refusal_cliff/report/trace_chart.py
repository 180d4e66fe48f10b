"""The refusal score along one trace."""

from __future__ import annotations

from refusal_cliff.report.data import ExampleTrace
from refusal_cliff.report.lines import known, line_of
from refusal_cliff.report.svg import box, frame, line, picture, text
from refusal_cliff.report.words import count, number


def trace_line(name: str, trace: ExampleTrace) -> str:
    """The score along the thinking and closing tokens of one trace."""
    start, end = trace.spans.prompt, trace.spans.closing
    scores = trace.scores[start:end]
    place = frame((0, max(1, len(scores) - 1)), (0, 1), 30, 8, 652, 82)
    left = place.x(trace.spans.thinking - start - 0.5)
    measured = [score for score in scores if known(score)]
    ends = f"from {number(measured[0])} to {number(measured[-1])}" if measured else "not measured"
    return picture(
        name,
        (660.0, 92.0),
        f"Refusal score along the trace: {trace.title}",
        f"{count(len(scores), 'token')} of thinking and closing, {ends}.",
        box(left, place.top, place.x(len(scores) - 1) - left + 6, 74, "band"),
        *(
            line((30, place.y(v)), (652, place.y(v)), "grid")
            + text(22, place.y(v) + 4, f"{v:g}", "tick", "end")
            for v in (0.0, 0.5, 1.0)
        ),
        line_of(place, range(len(scores)), scores, "curve trace"),
    )
