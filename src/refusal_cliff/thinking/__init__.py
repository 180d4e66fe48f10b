"""How a model writes its thoughts, and the four spans of a trace."""

from refusal_cliff.thinking.formats import ThinkingFormat
from refusal_cliff.thinking.rendering import render_prompt
from refusal_cliff.thinking.spans import (
    Spans,
    response_text,
    split_spans,
    thinking_text,
    tokenise_trace,
)

__all__ = [
    "Spans",
    "ThinkingFormat",
    "render_prompt",
    "response_text",
    "split_spans",
    "thinking_text",
    "tokenise_trace",
]
