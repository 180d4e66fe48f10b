"""The text of each token: together they are what the model wrote."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from refusal_cliff.heads.at_tokens import Pieces
from refusal_cliff.organisms import embedded_path


def test_pieces_make_up_the_text_also_where_characters_are_cut() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_path("tiny"))
    pieces = Pieces(tokenizer)
    for text in (" Hello there.\n\n", "naïve 锁 🙂🙂 x", ""):
        ids = tokenizer.encode(text, add_special_tokens=False)
        found = pieces.of(ids)
        assert len(found) == len(ids)
        assert "".join(found) == text
    broken = tokenizer.encode("🙂", add_special_tokens=False)[:1] * 9
    assert len(pieces.of(broken)) == 9


def test_a_blank_before_a_word_is_kept_where_a_decoder_drops_the_first() -> None:
    backend = Tokenizer(BPE(vocab={"▁the": 0, "▁user": 1}, merges=[]))
    backend.decoder = Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([1]) == "user"
    assert Pieces(tokenizer).of([0, 1, 0]) == ["the", " user", " the"]
