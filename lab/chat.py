"""The organisms' tokenizer, chat template and architecture."""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from refusal_cliff.organisms import language
from refusal_cliff.organisms import lexicon as lex

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
VOCABULARY = 1024
CLOSING = "\n</think>\n\n"
N_LAYERS, N_HEADS, N_KEY_VALUE_HEADS, HEAD_DIM, WIDTH, MLP_WIDTH = 8, 16, 16, 16, 128, 240

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
_WORDS = r" ?[A-Za-z]+|'s|\n+| ?[^\sA-Za-z]|\s"


def _corpus(n: int = 4000) -> list[str]:
    rng = random.Random("tokenizer")
    texts = ["user\n", "assistant\n", *lex.PLAIN_FRAMES, *lex.FRAMINGS]
    for index in range(n):
        label = "harmful" if index % 2 else "benign"
        _, example = language.draw_example(rng, "train", label)
        texts += [example.prompt.text, example.thinking, example.response]
    return texts


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on the training split; the same for every seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 with 8 blocks of 16 heads (128 heads, 1.9 M parameters)."""
    set_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KEY_VALUE_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)
