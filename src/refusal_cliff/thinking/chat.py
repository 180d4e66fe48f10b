"""How a model is spoken to: a system prompt, and what its chat template can be told besides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refusal_cliff.errors import RefusalCliffError

Value = str | int | float | bool | None
"""What a chat template is told; JSON's values without lists and objects."""


@dataclass(frozen=True)
class Chat:
    """What stands around every prompt beside the chat template's own words.

    Attributes:
        system: System prompt of every conversation; empty for none.
        arguments: Variables of the chat template, such as ``enable_thinking`` or
            ``reasoning_effort``.
    """

    system: str = ""
    arguments: Mapping[str, Value] = field(default_factory=dict)

    def written_into(self, template: str) -> str:
        """The chat template that always speaks so.

        All that a tokenizer renders then follows it: prompts, the places of markers, the end of an
        answer, and the fingerprint of the model.
        """
        said = [
            f"{{%- set {name} = {_literal(value)} %}}" for name, value in self.arguments.items()
        ]
        if self.system:
            message = f"{{'role': 'system', 'content': {_literal(self.system)}}}"
            said.append(f"{{%- set messages = [{message}] + (messages | list) %}}")
        return "".join(said) + template


PLAIN = Chat()


def chat_of(system: str, arguments: Sequence[str]) -> Chat:
    """What a user said: a system prompt, and ``NAME=VALUE`` for each argument.

    A value is read as JSON (``false``, ``3``), and else is a text.

    Raises:
        RefusalCliffError: An argument is no such pair, or its value is a list or an object.
    """
    found: dict[str, Value] = {}
    for pair in arguments:
        name, equals, text = pair.partition("=")
        value = _value(text)
        if not (equals and name.isidentifier()) or isinstance(value, list | dict):
            raise RefusalCliffError(
                f"{pair!r} tells the chat template nothing. Write --template-arg NAME=VALUE, such "
                "as enable_thinking=false or reasoning_effort=high."
            )
        found[name] = value
    return Chat(system, found)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _literal(value: object) -> str:
    """A value as Jinja reads it, which knows JSON's words but ``null``."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
