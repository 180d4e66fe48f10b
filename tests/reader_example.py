"""Traces of the reader whose every score is known, and a browser to look at them with."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from refusal_cliff.model.subject import Head
from refusal_cliff.report.data import HeadShares, Reader, ReaderTrace, Side
from refusal_cliff.report.reader import FULL, quantised
from refusal_cliff.thinking import Spans

LAYERS = (1, 2, 4)
PIECES = ("<user>", "hello", "<think>", "a", " lock", " is", "\n", "</think>", "\n", "Sure", ".")
SPANS = Spans(3, 6, 9, 11)


def scores_of(place: int) -> np.ndarray[Any, Any]:
    """[layers, tokens]: every layer and token another one."""
    tokens = SPANS.closing - SPANS.prompt
    flat = (np.arange(len(LAYERS) * tokens) * 7 + 13 * place) % FULL / FULL
    return flat.reshape(len(LAYERS), tokens)


def shares_of(place: int) -> np.ndarray[Any, Any]:
    """[heads + 1, tokens]: what two heads and all others add."""
    tokens = SPANS.closing - SPANS.prompt
    return (np.arange(3 * tokens).reshape(3, tokens) * 5 + place) % 17 / 4 - 2


def reader_trace(place: int, **changes: Any) -> ReaderTrace:
    """The trace of a place in the run."""
    refused, benign = place % 3 == 0, place % 3 == 2
    trace = ReaderTrace(
        id=f"prompt {place}",
        prompt=f"Request {place} & more",
        label="benign" if benign else "harmful",
        verdict="refused" if refused else "complied",
        kind="refused" if refused else "" if benign else "fell off the cliff",
        source="one" if place % 2 else "other",
        category="",
        cliff=(5 * place % 11) / 11 - 0.2,
        pieces=(*PIECES[:9], f"Answer{place}", "."),
        spans=SPANS,
        levels=quantised(scores_of(place)),
        heads=HeadShares([Head(4, 1), Head(2, 0)], [Head(4, 1)], shares_of(place)),
        after=Side(
            verdict="refused",
            pieces=(*PIECES[:9], f"Never{place}", "."),
            spans=SPANS,
            levels=quantised(scores_of(place + 1)[-1:]),
        ),
    )
    return replace(trace, **changes)


def example_reader(traces: Sequence[ReaderTrace] | None = None, **changes: Any) -> Reader:
    """Eleven traces, the last of which never closed its thinking."""
    never = reader_trace(
        10,
        **{"cliff": None, "spans": None, "levels": b"", "heads": None, "after": None},
        verdict="truncated",
        kind="truncated or unscored",
    )
    traces = [*map(reader_trace, range(10)), never] if traces is None else traces
    reader = Reader(traces, len(traces), LAYERS, len(LAYERS), 4, traces[0].id)
    return replace(reader, **changes)


def seen(page: Path, **asked: str) -> str:
    """The page as a browser has it once its script has run.

    Args:
        page: The file.
        asked: What its address asks for.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH: the reader was not tried in a browser")
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
        *(f"--user-data-dir={page.parent / 'browser'}", f"{page.as_uri()}#{urlencode(asked)}"),
    ]
    environment = {**os.environ, "HOME": str(page.parent)}
    done = subprocess.run(command, capture_output=True, timeout=600, env=environment, check=True)
    said = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    assert said == []
    return done.stdout.decode()


def listed(dom: str) -> list[str]:
    """Ids in the list, in its order."""
    return re.findall(r'<button type="button" data-id="([^"]*)"', dom)


def tokens(dom: str) -> list[tuple[str, str]]:
    """Class and text of each token of the open trace."""
    found = re.findall(r'<span data-place="\d+" class="([^"]*)">([^<]*)</span>', dom)
    return [(name, html.unescape(text)) for name, text in found]


def text_of(dom: str, name: str) -> str:
    """The text of a part of the reader."""
    ends = "p|h3|h4|output|blockquote|ul"
    found = re.search(rf'id="reader-{name}"[^>]*>(.*?)</(?:{ends})>', dom, re.S)
    assert found
    return html.unescape(re.sub(r"<[^>]*>", "|", found[1]))
