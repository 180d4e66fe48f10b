"""One splitter of thought and answer: of whatever a server, a file or a model wrote as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from refusal_cliff.thinking.formats import HEADER_END, KNOWN, Markers
from refusal_cliff.thinking.mentions import Mentions

WITHOUT_WIDTH = "\xad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
BLANKS = WITHOUT_WIDTH + "".join(filter(str.isspace, map(chr, range(0x3001))))
"""What no text begins or ends with: blanks, and characters without width, as files have them."""
_TAG = re.compile(r"</?[\w:]+>")
ANSWER_HEADER = (
    r"(?:<\|im_start\|>assistant(?!/)|<｜Assistant｜>|<\|assistant\|>|<start_of_turn>model"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>)"
)
"""The end of a prompt, which is no part of what the model wrote."""
_HEADER = re.compile(rf"\A[{BLANKS}]*{ANSWER_HEADER}\s*", re.IGNORECASE)
_SEAM = re.compile(r"<\|start\|>assistant|<\|(?:end|return|call|eom|eot)\|>")
_ENDS = re.compile(
    r"(?:(?:<\|(?:end|return|call|e[no][dmt]_?(?:id|of_?(?:text|turn|sentence)|of_turn_token)?"
    r"|(?:im|role|assistant)_end|(?:hy_)?eos|user)\|>|</s>|<(?:seed:)?eos>|<end_of_turn>|<turn\|>"
    r"|<SPECIAL_\d+>|<｜end▁of▁sentence｜>|<｜hy_eos:opensource｜>|\[\|endofturn\|\]|\[EOS\]|\[e~\["
    r"|(?<!\S)\[end of text\])\s*)+\Z",
    re.IGNORECASE,
)
_MOST_ENDS = 200
"""Characters at the end of an answer in which these are looked for."""
_WRAPPERS = (
    *("output", "answer", "solution", "response", "conclusion"),
    *("final", "final_answer", "final_response"),
)
_WRAPS = re.compile(
    rf"(?:(?:<(?:{'|'.join(_WRAPPERS)})>|<\|(?:begin_of_solution|START_(?:RESPONSE|TEXT))\|>"
    r"|\[BEGIN FINAL RESPONSE\])\s*)+",
    re.IGNORECASE,
)
_UNWRAPS = re.compile(
    rf"</(?:{'|'.join(_WRAPPERS)})>|<\|(?:end_of_solution|END_(?:RESPONSE|TEXT))\|>"
    r"|\[END FINAL RESPONSE\]",
    re.IGNORECASE,
)
_LEAST_REPEATED = 40
"""Characters of a thought that an answer repeats word for word by no chance."""


@dataclass(frozen=True, slots=True)
class Message:
    """Thinking and answer of one message.

    Attributes:
        thinking: Without markers, and without `BLANKS` at its ends.
        response: The answer, without the wrapper of a solution and without `BLANKS` at its ends;
            empty where the thinking never closed.
        closed: Whether the thinking ended.
        written: The whole text, where it is exactly what a model wrote in one piece, so that its
            tokens can be kept.
    """

    thinking: str
    response: str
    closed: bool
    written: str | None


def read_message(
    content: str | None,
    reasoning: str | None,
    *,
    thinks: bool = False,
    markers: Sequence[Markers] = KNOWN,
) -> Message:
    """Split what a server sent, or a file holds, into thinking and answer.

    - Markers in the text, in any case of letters: the answer is what follows the last closer. A
      closer without an opener ends thinking that the prompt opened; text before an opener, and
      all between two thoughts, is thinking; an opener after the last closer, or without one, is a
      thought that never closed, and never an answer.
    - A marker that is only spoken of is none, see `Mentions`: so an answer may quote the markers,
      and stays whole.
    - A text that begins with ``think`` on a line of its own (s1) is a thought up to the line
      ``answer``; one that begins with ``analysis`` and goes on without a blank (harmony whose
      markers were stripped) is a thought up to ``assistantfinal``. Where nothing else marks it,
      the same holds of a text that begins with another tag (``<scratchpad>``, ``<|think|>``,
      ``&lt;think&gt;``), a heading (``## Thinking``) or a sentence (Granite's ``Here is my thought
      process:``) of that meaning.
    - The tokens that end a turn, or begin the model's, where a text has kept them, are no part of
      thought or answer.
    - Thinking in a field of its own and an answer: both as they are, tags in the field aside. A
      thought in both stands once: where one holds the other, blanks aside, the longer one is taken;
      where they differ, the field's comes first and the text's after it, so that nothing is lost
      and no thought is in the answer. An answer in both is no part of the thought. Without any
      answer the thinking never closed: servers send an unfinished thought alone.
    - An answer that first repeats a long thought word for word loses the repetition.
    - No marker at all: an answer without thinking, unless the model always thinks.

    What was read and is read again, thinking and answer apart, stays as it is.

    Args:
        content: The message's text.
        reasoning: Its ``reasoning_content``, ``reasoning`` or ``thinking``.
        thinks: The model always thinks, so that a text without the end of a thought is a thought.
        markers: Formats to look for; where a text holds several, the first in this order. Put the
            model's own, or those that a user named, in front of ``KNOWN``.
    """
    formats = tuple(map(_format, markers))
    content = content and _HEADER.sub("", content)
    field = _HEADER.sub("", reasoning or "").strip(BLANKS)
    if not field:
        text = _split(content or "", formats, alone=True)
        if thinks and not text.marked:
            return Message(text.response, "", closed=False, written=content)
        thinking = _unmarked(text.thinking, formats)
        response = _unrepeated(thinking, text.response)
        return Message(thinking, response, text.closed, written=content)
    text = _split(_unwrapped(content or ""), formats, alone=False)
    told = _split(field, formats, alone=False)
    if told.closed and told.marked and not (text.response or text.marked):
        text, told = told, replace(told, response="")
    if told.marked and told.response.split() == text.response.split():  # all that was written
        told = replace(told, response="")
    thinking = once_each((_joined((told.thinking, told.response)), text.thinking))
    thinking = _unmarked(thinking, formats)
    response = _unrepeated(thinking, text.response)
    return Message(thinking, response, text.closed and bool(response), written=None)


@dataclass(frozen=True, slots=True)
class _Split:
    """A text in two; ``marked`` says whether there was any marker in it."""

    thinking: str
    response: str
    closed: bool
    marked: bool


@dataclass(frozen=True, slots=True)
class _Format:
    """A format as patterns.

    Attributes:
        opener: Matches what opens a thought.
        closer: Matches what begins the answer.
        heads: Small letters, one of which every text with a marker holds: looked for first, for
            most texts have none, and patterns are slow.
        seam: Matches what stands between the messages of a format of channels, and after them.
    """

    opener: re.Pattern[str]
    closer: re.Pattern[str]
    heads: tuple[str, ...] = ()
    seam: re.Pattern[str] | None = None


_BARE = (
    _Format(
        re.compile(r"\A(?:<\|im_start\|>assistant\s+)?(?:<\|im_start\|>)?think[ \t\r]*\n"),
        re.compile(r"(?:\r?\n|<\|im_start\|>)answer[ \t\r]*(?:\n|\Z)"),
    ),
    _Format(
        re.compile(r"\A(?:analysis|commentary)(?=[^\sa-z]|.*?assistantfinal)", re.DOTALL),
        re.compile(r"assistantfinal|\Afinal(?=[A-Z])"),
        seam=re.compile(r"assistant(?:analysis|commentary)"),
    ),
)
"""s1, and harmony without its markers: they count at the very beginning of a text alone."""
_OPEN, _SHUT = r"(?:[<＜〈【][|｜]?|&lt;)[ \t]*", r"[ \t]*(?:[|｜]?[>＞〉】]|&gt;)"
_NAME = r"(?:think(?:ings?)?|thoughts?|reasoning|scratch[_-]?pad|monologue|cot|思考(?:过程)?)"
_CERTAIN = rf"(?:\w{{1,24}}[_:-]){{0,2}}(?:ant)?{_NAME}(?:[_-]?process|:\w{{1,24}})?"
_OF = r"[_▁](?:of[_▁])?"
_LIKELY = rf"analysis|reflection|rationale|reason|deliberation|{_NAME}[_-]\w{{1,24}}"
"""Tags that ask for more than a thought's name: an answer may hold them, too."""
_EOL = r"[ \t\r]*(?:\n|\Z)"
_FINAL = (
    rf"(?:^|\n)[ \t]*(?:#{{1,6}}[ \t]*(?:Final )?(?:Response|Answer)[ \t]*:?(?={_EOL})"
    r"|(?:#{1,6}[ \t]*|\*\*)Final (?:Response|Answer)[ \t]*:?(?:\*\*:?)?)"
)
_THOUGHT = "(?:Thinking|Thought|Reasoning)(?: process)?|Thoughts|Chain of thought"
_COLON = rf"(?::\*\*|\*\*:|\*\*{_EOL})"
_ANSWER = rf"(?:^|\n)[ \t]*\*\*(?:Final )?(?:Answer|Response|Output){_COLON}"
_SAID = rf"(?:{_ANSWER}|(?:^|\n|(?<=[.!?])[ \t])[ \t]*(?-i:(?:Final )?(?:Answer|Response)):)"
_HEADED = (
    rf"(?:#{{1,6}}[ \t]*(?:{_THOUGHT})[ \t]*:?{_EOL}|\*\*(?:{_THOUGHT}){_COLON}|(?:{_THOUGHT}):)"
)
_HERE = "Here(?: i|['’])s my "
_MY_ANSWER = rf"(?:^|\n)[ \t]*{_HERE}(?:final )?(?:answer|response):"
_DONE = rf"\n\.\.\.done thinking\.{_EOL}"
_AIDER = r"(?:\n-{3,80}[ \t\r]*)?\n► \*\*ANSWER\*\*"
_JUDGED = r"</judge>\s*<think_off>"
"""Of Ollama's command line, aider and KAT: what begins the answer."""
_FENCED = re.compile(
    rf"\A(`{{3,}}|~{{3,}}|:{{3,}})[ \t]*{_CERTAIN}[ \t\r]*\n"
    r"(?P<thought>(?:\1(?=[^\n]*\w)[^\n]*\n(?:(?!\1)[^\n]*\n)*\1[ \t\r]*\n|(?!\1)[^\n]*\n)*)"
    rf"(?:(?P<end>\1{_EOL})|(?P<rest>.*)\Z)",
    re.IGNORECASE | re.DOTALL,
)
"""A thought as a fenced block, with blocks of named languages in it."""


def _edge(word: str) -> str:
    """A tag that says which end of a thought it is: ``<|begin_of_thought|>``, ``<think_start>``."""
    name = rf"(?:(?:{word}){_OF}(?:{_CERTAIN}|working(?:_out)?)|{_NAME}[_▁](?:{word}))"
    return rf"{_OPEN}[/／]?{name}{_SHUT}"


_TITLED = tuple(
    _Format(re.compile(opener, re.IGNORECASE | re.DOTALL), re.compile(closer, re.IGNORECASE))
    for opener, closer in (
        (r"\A<\|think\|>", r"<\|end\|>\s*<\|begin\|>assistant(?:<\|content\|>)?"),
        (rf"\A{_edge('begin|start')}", _edge("end|stop")),
        (rf"\A{_OPEN}(?:{_CERTAIN}){_SHUT}", rf"{_OPEN}[/／][ \t]*(?:{_CERTAIN}){_SHUT}"),
        (
            rf"\A\[[ \t]*{_CERTAIN}[ \t]*\](?=.*?\[/[ \t]*{_CERTAIN}[ \t]*\])",
            rf"\[/[ \t]*{_CERTAIN}[ \t]*\]",
        ),
        (r"\AHere are my reasoning steps:", r"(?=\[BEGIN FINAL RESPONSE\])"),
        (
            rf"\A{_OPEN}({_LIKELY}){_SHUT}(?=.*?{_OPEN}/[ \t]*\1{_SHUT}\s*\S)",
            rf"{_OPEN}/[ \t]*(?:{_LIKELY}){_SHUT}",
        ),
        (
            r"\A<details\b[^<>\n]{0,200}>\s*<summary>[^<>]{0,80}?(?:thought|thinking|reasoning)"
            r"[^<>]{0,80}</summary>",
            r"</details>",
        ),
        (rf"\A\[Start thinking\]{_EOL}", r"\n\[End thinking\]"),
        (rf"\AThinking\.\.\.{_EOL}", _DONE),
        (r"\A(?:-{3,80}\s*)?► \*\*THINKING\*\*", _AIDER),
        (rf"\A<judge>(?=.*?{_JUDGED})", _JUDGED),
        (rf"\A{_HERE}thought process:", rf"{_HERE}response:"),
        (rf"\A{_HERE}(?:{_THOUGHT}):(?=.*?{_MY_ANSWER})", _MY_ANSWER),
        (rf"\A#{{1,6}}[ \t]*(?:{_THOUGHT})[ \t]*:?{_EOL}(?=.*?{_FINAL})", _FINAL),
        (rf"\A\*\*(?:{_THOUGHT}){_COLON}(?=.*?{_ANSWER})", _ANSWER),
        (rf"\A(?:{_THOUGHT}):(?=.*?{_SAID})", _SAID),
        (rf"\A{_HEADED}(?=.*?(?:{_FINAL}|{_ANSWER}))", rf"(?:{_FINAL}|{_ANSWER})"),
    )
)
"""Further tags, headings and sentences: at the very beginning, where nothing else is a marker."""


@cache
def _format(markers: Markers) -> _Format:
    opener, closer = markers.opener.strip(), (markers.answer or markers.closer).strip()
    heads = tuple(map(_head, (opener, closer)))
    seam = _SEAM if markers.answer else None
    return _Format(_pattern(opener), _pattern(closer), heads, seam)


def _pattern(mark: str) -> re.Pattern[str]:
    """Matches a marker in any case; a channel's header may say more before it ends.

    What harmony calls commentary are words between thoughts, or to a tool: no answer.
    """
    head = re.escape(mark.removesuffix(HEADER_END)).replace("analysis", "(?:analysis|commentary)")
    more = rf"\b[^\n]{{0,64}}?{re.escape(HEADER_END)}" if mark.endswith(HEADER_END) else ""
    if _TAG.fullmatch(mark):  # a tag may have blanks or attributes before it ends
        head, more = re.escape(mark[:-1]), r"(?:\s[^<>\n]{0,100})?>"
    return re.compile(head + more, re.IGNORECASE)


def _head(mark: str) -> str:
    return mark.removesuffix(HEADER_END).removesuffix("analysis").lower().removesuffix(">")


def _split(text: str, formats: Sequence[_Format], *, alone: bool) -> _Split:
    """Cut off thoughts until what is left holds no marker of any format.

    ``alone``, nothing is known of a thought beside the text, so that the opening word of a format
    without markers is enough.
    """
    rest, closed = _without_end(text.strip(BLANKS)), True
    thoughts: list[str] = []
    fenced = _FENCED.match(rest)
    if fenced and (fenced["end"] or (alone and not _marked(rest, formats))):
        thoughts.append(fenced["thought"] + (fenced["rest"] or ""))
        rest, closed = _unwrapped(rest[fenced.end() :]), fenced["end"] is not None
    while found := (
        _bare(_BARE, rest, alone=False)
        or _marked(rest, formats)
        or _bare((*_BARE, *_TITLED), rest, alone=alone and not thoughts)
    ):
        thought, rest, closed = _cut(rest, found)
        thoughts.append(thought)
        rest = _unwrapped(rest)
    return _Split(_joined(thoughts), rest, closed, marked=bool(thoughts))


def _bare(formats: Sequence[_Format], text: str, *, alone: bool) -> _Format | None:
    opened = [found for found in formats if found.opener.match(text)]
    if whole := next((found for found in opened if found.closer.search(text)), None):
        return whole
    begun = (found for found in formats if found in opened or found.closer.match(text))
    return next(begun, None) if alone else None


def _marked(text: str, formats: Sequence[_Format]) -> _Format | None:
    """The format of a text: it begins with its opener, or else has its closer, or its opener."""
    lowered = text.lower()
    present = [f for f in formats if any(head in lowered for head in f.heads)]
    if not present:
        return None
    mentions = Mentions(text)
    return (
        next((f for f in present if f.opener.match(text)), None)
        or next((f for f in present if mentions.without(f.closer)), None)
        or next((f for f in present if mentions.without(f.opener)), None)
    )


def _cut(text: str, found: _Format) -> tuple[str, str, bool]:
    """Thought, answer, and whether the thought ended: the split is at the last closer."""
    mentions = Mentions(text)
    openers, closers = mentions.without(found.opener), mentions.without(found.closer)
    seams = [] if found.seam is None else [match.span() for match in found.seam.finditer(text)]
    marks = sorted([*openers, *closers, *seams])
    closed = bool(closers) and openers[-1:] < closers[-1:]
    begin, end = closers[-1] if closed else (len(text), len(text))
    return _joined(_pieces(text[:begin], marks)), text[end:], closed


def _pieces(text: str, marks: Iterable[tuple[int, int]]) -> list[str]:
    """What stands before, between and after marks."""
    pieces, start = [], 0
    for begin, end in marks:
        if start <= begin <= len(text):
            pieces.append(text[start:begin])
            start = end
    return [*pieces, text[start:]]


def _without_end(answer: str) -> str:
    """An answer without the tokens that end a turn, where whoever wrote the text has kept them."""
    ends = _ENDS.search(answer, max(0, len(answer) - _MOST_ENDS))
    return answer if ends is None else answer[: ends.start()].rstrip(BLANKS)


def _unwrapped(answer: str) -> str:
    """An answer without the tags of a solution around it; the closing one may be missing."""
    answer = answer.strip(BLANKS)
    while opened := _WRAPS.match(answer):
        answer = answer[opened.end() :]
        last = [match.span() for match in _UNWRAPS.finditer(answer)][-1:]
        answer = "".join(_pieces(answer, last)).strip(BLANKS)
    return answer


def _unmarked(thinking: str, formats: Sequence[_Format]) -> str:
    """A thought as it stays when it is read again: without markers, or tokens that end a turn."""
    for _ in formats:  # what one pass leaves may stand together as another marker
        told = _split(thinking, formats, alone=False)
        thinking = _joined((told.thinking, told.response))
        if not told.marked:
            break
    return thinking


def once_each(thoughts: Iterable[str]) -> str:
    """Thoughts one after the other; one that stands in another, blanks aside, counts once."""
    kept: dict[str, str] = {}
    for thought in filter(None, thoughts):
        words = f" {' '.join(thought.split())} "
        kept = {other: told for other, told in kept.items() if other not in words}
        marks = words.replace(" ", "")  # parts of a thought may be joined with other blanks
        if not any(words in other or marks == other.replace(" ", "") for other in kept):
            kept[words] = thought
    return _joined(kept.values())


def _unrepeated(thinking: str, response: str) -> str:
    """An answer without the whole thought, a long one, on the lines before it."""
    if len(_start(thinking)) < _LEAST_REPEATED or _start(thinking) != _start(response):
        return response
    words = r"\s+".join(map(re.escape, thinking.split()))
    repeated = re.match(rf"(?:{words}[ \t]*[\r\n]\s*)+", response)
    return response if repeated is None else response[repeated.end() :] or response


def _start(text: str) -> str:
    return " ".join(text[: 4 * _LEAST_REPEATED].split())[:_LEAST_REPEATED]


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, (part.strip(BLANKS) for part in parts)))
