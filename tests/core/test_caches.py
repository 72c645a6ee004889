"""Caches are found and given by the name that a model has for them, the former or the one since transformers 5.24."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.modeling_outputs import BaseModelOutputWithPast

from afina.core.caches import NEW, OLD, cache_in, cache_name, cache_of, given_cache


def of_former(input_ids: Any, past_key_values: Any = None, **more: Any) -> None: ...


def of_now(input_ids: Any, cache: Any = None, **more: Any) -> None: ...


def of_any(*args: Any, **kwargs: Any) -> None: ...


def test_the_name_is_the_models_own() -> None:
    assert (cache_name(of_former), cache_name(of_now)) == (OLD, NEW)


def test_what_only_hands_it_on_takes_the_name_of_the_outputs_here() -> None:
    assert cache_name(of_any) == next(iter(cache_in(BaseModelOutputWithPast())))


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_cache_is_seen_under_either_name(name: str) -> None:
    assert given_cache({"input_ids": 1, OLD: None, NEW: None} | {name: "it"}) == "it"
    assert given_cache({OLD: None}) is None
    assert cache_of(SimpleNamespace(**{name: "it"})) == "it"
    assert cache_in(SimpleNamespace(**{name: "it"})) == {name: "it"}


def test_an_output_without_one_has_none() -> None:
    assert cache_of(SimpleNamespace()) is None
