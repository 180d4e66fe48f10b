"""The text of each token, so that all of them together are the text that the model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4


class Pieces:
    """Token ids to the text that each adds.

    A token cannot be decoded alone: some tokenizers drop a blank in front of the first one, and a
    character may be spread over several. So each is decoded after the tokens before it, and what is
    already known is not decoded again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token.

        Args:
            token_ids: Of one trace, from its beginning on.

        Returns:
            One text a token; the last of the tokens that make up a character has it, and the others
            have nothing.
        """
        pieces: list[str] = []
        before, start = 0, 0
        for end in range(1, len(token_ids) + 1):
            old = self._decoded(tuple(token_ids[before:start]))
            new = self._decoded(tuple(token_ids[before:end]))
            last = end - start == _LONGEST_CHARACTER or end == len(token_ids)
            whole = last or not new.endswith(_UNFINISHED)
            pieces.append(new[len(old) :] if whole else "")
            if whole:
                before, start = start, end
        return pieces

    def _decoded(self, token_ids: tuple[int, ...]) -> str:
        if token_ids not in self._known:
            text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
            self._known[token_ids] = str(text)
        return self._known[token_ids]
