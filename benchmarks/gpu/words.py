"""A tokenizer of made-up words, for peers that load models from folders."""

from __future__ import annotations

from typing import Any


def tokenizer(size: int) -> Any:
    """One of `size` words, the first three special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(size - 3))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   pad_token="<unk>")  # fmt: skip
