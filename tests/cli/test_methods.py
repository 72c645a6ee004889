from __future__ import annotations

import json

from afina.core.config import methods

from ..train.child import command


def test_methods_lists_every_method_once_under_its_family(child):
    code, out, _ = child(command, "methods")
    assert code == 0
    lines = out.splitlines()
    families = [line for line in lines if not line.startswith(" ")]
    assert families == ["baseline:", "selective:", "additive:", "prompt:", "reparam:"]
    listed = [line.split()[0] for line in lines if line.startswith(" ") and not line.startswith("  #")]
    assert sorted(listed) == sorted(name.lower() for name in methods())
    (ia3,) = [line for line in lines if line.startswith("  ia3 ")]
    assert "0.005" in ia3
    assert ia3.endswith("arXiv 2205.05638")


def test_every_family_says_what_it_is_for(child):
    lines = command("methods")[1].splitlines()
    for number, line in enumerate(lines):
        if not line.startswith(" "):
            assert lines[number + 1].startswith("  # For ")


def test_every_method_shows_its_file_and_its_settings():
    for name in methods():
        code, out, _ = command("methods", name.lower())
        assert code == 0
        about, _, settings = out.partition("settings:\n")
        assert "learning rate: " in about
        assert len(about) > 200
        assert settings.endswith(f"afina train RECIPE method={name.lower()}\n")
    assert "  lora_alpha: 8  (int | float)" in command("methods", "lora")[1]


def test_unknown_method_is_refused_with_the_nearest():
    code, _, err = command("methods", "lorra")
    assert code == 2
    assert "LORA" in err
    assert len(err.splitlines()) <= 4


def test_methods_as_json_holds_the_same_facts(child):
    code, out, _ = child(command, "methods", "--json")
    assert code == 0
    found = {about["name"]: about for about in json.loads(out)}
    assert set(found) == set(methods())
    assert {n: a["learning_rate"] for n, a in found.items()} == {
        n: m.config.default_learning_rate for n, m in methods().items()
    }
    assert found["LORA"]["family"] == "reparam"
    assert found["LORA"]["mergeable"]
