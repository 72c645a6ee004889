"""The card beside an adapter, and where a base came from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from afina.core.disk.card import origin, write_card

from ..tiny import config, trained


def card(folder: Path, **options: object) -> str:
    write_card(folder / "new" / "adapter", config(**options), (1234, 56789))
    return (folder / "new" / "adapter" / "README.md").read_text(encoding="utf-8")


def front(text: str) -> list[str]:
    """The lines between the two rules."""
    _, matter, _ = text.split("---\n", 2)
    return matter.splitlines()


def test_card_names_base_method_and_task_for_the_hub(tmp_path: Path) -> None:
    text = card(tmp_path, base_model_name_or_path="some/base", task_type="CAUSAL_LM")
    assert front(text) == [
        'base_model: "some/base"', "library_name: peft", "tags:", "- lora", '- "base_model:adapter:some/base"',
        "- afina", "pipeline_tag: text-generation",
    ]  # fmt: skip
    assert "A LORA adapter for `some/base`: 1,234 trained parameters on 55,555." in text


@pytest.mark.parametrize("base", [None, "/home/someone/base"])
def test_card_keeps_folders_of_this_machine_and_other_tasks_out_of_the_hubs_lists(
    base: str | None, tmp_path: Path
) -> None:
    text = card(tmp_path, base_model_name_or_path=base, task_type="SEQ_CLS")
    assert front(text) == ["library_name: peft", "tags:", "- lora", "- afina"]
    assert f"for `{base or 'the base model'}`" in text


def test_card_written_again_keeps_what_a_user_wrote_above_and_renews_the_rest(tmp_path: Path) -> None:
    first = card(tmp_path)
    assert card(tmp_path) == first
    path = tmp_path / "new" / "adapter" / "README.md"
    path.write_text(first.replace("# Adapter", "my own words") + "old words", encoding="utf-8")
    again = card(tmp_path, base_model_name_or_path="other")
    assert "---\n\nmy own words\n\n<!--" in again
    assert "old words" not in again
    assert "`other`" in again
    assert again.count("trained parameters") == 1
    path.write_text("# Mine", encoding="utf-8")
    assert "---\n\n# Mine\n\n<!--" in card(tmp_path)


def test_origin_is_where_the_model_was_loaded_from() -> None:
    def of(**values: object) -> str | None:
        return origin(SimpleNamespace(**values))  # type: ignore[arg-type]

    assert of(config=SimpleNamespace(_name_or_path="a"), name_or_path="b") == "a"
    assert of(config=SimpleNamespace(_name_or_path=""), name_or_path="b") == "b"
    assert of(name_or_path="") is None
    assert of() is None


def test_card_says_the_format_that_the_config_says(tmp_path: Path) -> None:
    from afina.core.config import FORMAT_VERSION

    assert f"PEFT {FORMAT_VERSION}" in card(tmp_path)


@pytest.mark.parametrize(
    "before", ["My text.\n", "---\nlicense: mit\ntags:\n- mine\n---\n\nMy text.\n"], ids=["plain", "own"]
)
def test_a_card_that_is_there_gains_what_the_hub_wants_and_loses_nothing(tmp_path: Path, before: str) -> None:
    import yaml

    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    model = trained(task_type=None)
    model.peft_config["default"].base_model_name_or_path = "some/base"
    for _ in range(2):
        model.save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        _, head, body = text.split("---\n", 2)
        found = yaml.safe_load(head)
        assert found["library_name"] == "peft"
        assert found["base_model"] == "some/base"
        assert found["tags"] == (["mine"] if "mine" in before else ["lora", "base_model:adapter:some/base", "afina"])
        assert found.get("license") == ("mit" if "mit" in before else None)
        assert body.strip() == "My text."
