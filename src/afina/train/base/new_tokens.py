"""Tokens that a run adds to a model's vocabulary (`model.new_tokens`): they start from the words that they are spelt
with, and their embeddings alone train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.config import PeftConfig
from ...errors import RecipeError
from ..recipe.sections import ModelSection
from ..report.events import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRAINED_BY = ("LORA", "TRAINABLE_TOKENS", "FULL")


def added(tokenizer: PreTrainedTokenizerBase, section: ModelSection, reporter: Reporter) -> PreTrainedTokenizerBase:
    """The tokenizer with the section's new tokens; those that it knows stay as they are, which is said.

    Raises:
        RecipeError: a token is empty, or named twice.
    """
    from transformers import AddedToken

    tokens = section.new_tokens or []
    for token in tokens:
        if not token.strip() or tokens.count(token) > 1:
            raise RecipeError("a new token is empty, or named twice", where="model.new_tokens", got=repr(token)[:80])
    known = [token for token in tokens if token in tokenizer.get_vocab()] if tokens else []
    if known:
        reporter.warn(f"model.new_tokens: {', '.join(map(repr, known))}: the tokenizer has {_it(known)} already; the "
                      "embedding starts as it is, and trains")  # fmt: skip
    # Not special, because special tokens are left out of answers.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    return tokenizer


def _it(tokens: list[str]) -> str:
    return "it" if len(tokens) == 1 else "them"


def grown(model: Any, tokenizer: PreTrainedTokenizerBase, plain: PreTrainedTokenizerBase, section: ModelSection) -> Any:
    """The model with a row of every embedding for each new token: the mean of the rows of the tokens that spell it.

    Args:
        plain: the tokenizer without the new tokens.
    """
    import torch

    known = plain.get_vocab()
    new = [token for token in section.new_tokens or [] if token not in known]
    if not new:
        return model
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in _embeddings(model).values():
            for token in new:
                spelt = plain(token, add_special_tokens=False)["input_ids"]
                layer.weight[tokenizer.convert_tokens_to_ids(token)] = layer.weight[spelt].mean(0)
    return model


def trains_new_tokens(
    config: PeftConfig, model: Any, tokenizer: PreTrainedTokenizerBase, section: ModelSection
) -> PeftConfig:
    """The config, told to train the new tokens too, in the input embedding and in an output head of its own.

    Raises:
        RecipeError: the method cannot.
    """
    if not section.new_tokens:
        return config
    kind = config.method_type
    if kind not in _TRAINED_BY:
        raise RecipeError("this method does not train new tokens", where="model.new_tokens", got=kind.lower(),
                          expected=", ".join(name.lower() for name in _TRAINED_BY))  # fmt: skip
    ids: Any = tokenizer.convert_tokens_to_ids(section.new_tokens)
    names = list(_embeddings(model))
    if kind == "LORA":
        given = config.get("trainable_token_indices")
        if isinstance(given, dict):
            if all({*ids} <= {*given.get(name, ())} for name in names):  # an adapter that goes on has them already
                return config
            raise RecipeError("new tokens are added to a list of token ids", where="method.trainable_token_indices",
                              got=given, expected="a list")  # fmt: skip
        own = sorted({*ids, *(given or [])})
        config.trainable_token_indices = dict.fromkeys(names, own)  # type: ignore[attr-defined]
    if kind == "TRAINABLE_TOKENS":
        config.token_indices = sorted({*ids, *config.get("token_indices")})  # type: ignore[attr-defined]
        config.target_modules = config.get("target_modules") or names  # type: ignore[attr-defined]
    return config


def _embeddings(model: Any) -> dict[str, Any]:
    """Path -> the input embedding, and the output head where it has a weight of its own."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    own = [layer for layer in found if layer is not None and (layer is found[0] or layer.weight is not found[0].weight)]
    return {name: module for name, module in model.named_modules() if any(module is layer for layer in own)}
