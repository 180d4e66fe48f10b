"""A page of traces that try to break out of it."""

from __future__ import annotations

from reader_example import SPANS, example_reader, reader_trace
from report_example import example

from refusal_cliff.report.data import Side
from refusal_cliff.report.page import render_page

ATTACK = (
    "</script><img src=x onerror=document.title='broken'><script>document.title='broken'</script>"
)
BIDI = "\u202eevil\u2066 \u2028line \ud800 \x00"


def hostile_page() -> str:
    names = ("id", "prompt", "label", "verdict", "kind", "source", "category")
    traces = [
        reader_trace(
            place,
            **dict.fromkeys(names, text),
            pieces=[text] * 11,
            after=Side(text, [text] * 11, SPANS, b""),
        )
        for place, text in enumerate((ATTACK, BIDI))
    ]
    return render_page(example(reader=example_reader(traces)))
