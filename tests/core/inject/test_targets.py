"""Which modules a config adapts."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.host import hosts
from afina.core.inject.targets import layer_number, select
from afina.errors import AfinaError, AfinaWarning, ConfigError, TargetError

from ..tiny import bert, config, gpt2, llama, mlp, t5

UPS = [f"layers.{i}.up" for i in range(3)]
DOWNS = [f"layers.{i}.down" for i in range(3)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["up"]}, UPS),
        ({"target_modules": ["layers.1.up"]}, ["layers.1.up"]),
        ({"target_modules": ["1.up", "head"]}, ["layers.1.up", "head"]),
        (
            {"target_modules": r"layers\.[02]\.(up|down)"},
            ["layers.0.up", "layers.0.down", "layers.2.up", "layers.2.down"],
        ),
        ({"target_modules": ".*up"}, UPS),
        ({"target_modules": ["up"], "layers_to_transform": [0, 2]}, [UPS[0], UPS[2]]),
        ({"target_modules": ["up"], "layers_to_transform": 1}, [UPS[1]]),
        ({"target_modules": ["up"], "layers_to_transform": 1, "layers_pattern": "layers"}, [UPS[1]]),
        ({"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, [UPS[1]]),
        ({"target_modules": ["up", "down"], "exclude_modules": ["down"]}, UPS),
        ({"target_modules": ["up", "down"], "exclude_modules": r".*\.[12]\..*"}, [UPS[0], DOWNS[0]]),
        ({"target_modules": ["up"], "exclude_modules": ["layers.0.up"]}, UPS[1:]),
        ({"target_modules": "all-linear"}, [*UPS, *DOWNS, "head"]),
        ({"target_modules": "all-linear", "modules_to_save": ["head"]}, sorted([*UPS, *DOWNS])),
        ({"target_modules": "all-linear", "exclude_modules": ["down"]}, [*UPS, "head"]),
    ],
    ids=str,
)
def test_same_modules_as_the_reference(options: dict[str, Any], expected: list[str]) -> None:
    import peft

    model = mlp()
    assert sorted(select(model, config(**options))) == sorted(expected)
    if "layers_to_transform" in options and "layers_pattern" not in options:
        return  # the reference wants a component before `layers` then
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(mlp(), peft.LoraConfig(**options))
    assert sorted(theirs.targeted_module_names) == sorted(expected)


def test_a_suffix_matches_whole_components_only() -> None:
    assert select(mlp(), config(target_modules=["up"])) == UPS
    with pytest.raises(TargetError):
        select(mlp(), config(target_modules=["p"]))
    with pytest.raises(TargetError):
        select(mlp(), config(target_modules="up"))


def test_no_match_names_the_five_nearest() -> None:
    with pytest.raises(TargetError, match=r"nearest names: .*up") as caught:
        select(mlp(), config(target_modules=["upp"]))
    assert len(str(caught.value).splitlines()) <= 4
    with pytest.raises(TargetError, match="q_proj"):
        afina.get_peft_model(llama(), config(target_modules=["q_prj", "v_prj"]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target_modules": ["up"], "exclude_modules": ["up"]}, "excluded"),
        ({"target_modules": ["up"], "layers_to_transform": [9]}, "none in the chosen layers"),
        ({"target_modules": []}, "match no module"),
        ({"modules_to_save": ["haed"]}, "modules_to_save"),
        ({"target_modules": ["up"], "target_parameters": ["nope"]}, "no parameter"),
        ({"target_modules": ["layers"]}, "cannot adapt this kind"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_says_why_and_leaves_the_model(options: dict[str, Any], told: str) -> None:
    model = mlp()
    with pytest.raises(AfinaError, match=told) as caught:
        afina.get_peft_model(model, config(**options))
    assert len(str(caught.value).splitlines()) <= 4
    assert not list(hosts(model))
    assert all(p.requires_grad for p in model.parameters())


REDOS = [
    r"(a+)+!",
    r"(a|a)*!",
    r"(a|aa)+!",
    r"(.*)*!",
    r"(.+)+!",
    r"([a-z]+)*!",
    r"(\w+)*!",
    r"(\w*)*!",
    r"(a*)*b!",
    r"^(([a-z])+.)+[A-Z]([a-z])+!$",
    r"(.*a){20}!",
    r"(.*,){12}P!",
    r"((a+)+)+!",
    r"(?:(?:a+)+)+!",
    r"(x+x+)+y!",
    r"(\S+\s*)+!",
    r"(\d|\w)*!",
    r"(.|.)*!",
    r"(..|...)*!",
    r"(a?){30}a{30}!",
    r"([\s\S]+)+!",
    r"(.{1,9}){1,30}!",
    r"(((\w+)*)*)*!",
    r"(\w+\d*)+!",
    r"(l|la|lay)*!",
    r"(.*?)*!",
    r"(.+?)+!",
    r"(.*.*.*.*.*.*)*!",
    r"(\w|\W|_)*!",
    r"(?=(.+)+!)x",
]


def test_catastrophic_patterns_are_stopped_within_two_seconds() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a" * 60 + "aaaaaaaaaaaaaaaaaaaaaaaaaaa", nn.Linear(2, 2))

    model = Deep()
    start = time.process_time()
    for pattern in REDOS:
        with pytest.raises((ConfigError, TargetError)):
            afina.get_peft_model(model, config(target_modules=pattern))
    # The promise itself is a bound in time, so it is checked, in processor seconds and with room.
    assert time.process_time() - start < 4
    assert len(REDOS) == 30


@pytest.mark.parametrize(
    "key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
@pytest.mark.parametrize("pattern", ["(", "[a", "*x", "(?P<n", "x" * 3000])
def test_invalid_patterns_name_their_key(key: str, pattern: str) -> None:
    options: dict[str, Any] = {key: {pattern: 3} if key.endswith("k_pattern") or key == "alpha_pattern" else pattern}
    if key == "layers_pattern":
        options["layers_to_transform"] = [0]
    with pytest.raises((ConfigError, TargetError)) as caught:
        afina.get_peft_model(mlp(), config(**options))
    assert key in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "pattern", "number"),
    [
        ("layers.3.up", None, 3),
        ("model.layers.12.self_attn.q_proj", None, 12),
        ("h.0.attn.c_attn", "h", 0),
        ("up", None, None),
        ("blocks.1.layers.2.up", "layers", 2),
        ("blocks.1.layers.2.up", "blocks", 1),
        ("model.layers.2.mlp.experts.5.up", "layers", 2),
        ("model.layers.3.layers.5.up", "layers", 3),
        ("layers.3.layers.5.up", "layers", 3),
        ("model.layers.3.layers.5.up", r"\d+\.layers", 5),
        ("model.layers.2.mlp.experts.5.up", None, 2),
        ("layers.2.up", None, 2),
        ("towers.1.layers.2.up", None, 2),
    ],
)
def test_layer_number(name: str, pattern: str | None, number: int | None) -> None:
    assert layer_number(name, pattern) == number


@pytest.mark.parametrize(
    "build", [llama, bert, t5, gpt2, lambda: t5("MT5")], ids=["llama", "bert", "t5", "gpt2", "mt5"]
)
def test_default_targets_are_those_of_the_reference(build: Any) -> None:
    import peft

    mine = afina.get_peft_model(build(), afina.LoraConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(build(), peft.LoraConfig())
    assert sorted(n for n, _ in hosts(mine.get_base_model())) == sorted(theirs.targeted_module_names)


def test_default_table_agrees_with_the_references_where_both_know_a_model() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as THEIRS

    from afina.core.inject.architectures import DEFAULT_TARGETS

    different = {
        k: (DEFAULT_TARGETS.get(k), v)
        for k, v in THEIRS.items()
        if (set(v) if isinstance(v, list) else v) != (set(m) if isinstance(m := DEFAULT_TARGETS.get(k), list) else m)
    }
    assert different == {}


def test_unknown_architecture_says_what_to_set() -> None:
    with pytest.raises(TargetError, match='target_modules="all-linear"'):
        afina.get_peft_model(mlp(), afina.LoraConfig())


@pytest.mark.parametrize("build", [llama, bert, t5, gpt2], ids=["llama", "bert", "t5", "gpt2"])
def test_all_linear_is_the_references(build: Any) -> None:
    import peft

    mine = afina.get_peft_model(build(), afina.LoraConfig(target_modules="all-linear"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(build(), peft.LoraConfig(target_modules="all-linear"))
    assert sorted(n for n, _ in hosts(mine.get_base_model())) == sorted(theirs.targeted_module_names)


def test_module_at_two_places_is_adapted_at_the_first_and_told_of() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x))

    with pytest.warns(AfinaWarning, match="also stands elsewhere"):
        model = afina.get_peft_model(Twice(), config(target_modules=["a", "b"]))
    assert [n for n, _ in hosts(model.get_base_model())] == ["a"]


def test_patterns_of_ranks_match_as_in_the_reference() -> None:
    import peft

    options = {
        "target_modules": ["up", "down"],
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {"up": 3, r"layers\.1\.down": 4, "^layers.2.down": 5},
        "alpha_pattern": {r".*\.0\.up": 9},
    }
    mine = afina.get_peft_model(mlp(), afina.LoraConfig(**options)).get_base_model()
    theirs = peft.get_peft_model(mlp(), peft.LoraConfig(**options)).base_model.model
    for name in [*UPS, *DOWNS]:
        a, b = mine.get_submodule(name), theirs.get_submodule(name)
        assert (a.r["default"], a.scaling["default"]) == (b.r["default"], b.scaling["default"]), name


def test_defaults_of_a_model_with_images_are_those_of_its_language_model():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    import afina

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(**small, vocab_size=40),
        vision_config=CLIPVisionConfig(**small, patch_size=4, image_size=8), image_token_index=39,
    )  # fmt: skip
    model = afina.get_peft_model(LlavaForConditionalGeneration(config), afina.LoraConfig())
    adapted = sorted(name.partition("layers.")[2] for name in model.targeted_module_names)
    assert adapted == ["0.self_attn.q_proj", "0.self_attn.v_proj"]
    assert all("language_model" in name for name in model.targeted_module_names)
    eyes = [name for name, _ in model.named_modules() if "vision" in name and name.endswith("q_proj")]
    assert eyes  # which have layers of the same names


# How many layers of each family's usual config are adapted by default.
SEEING = {"vit": 24, "deit": 24, "beit": 24, "dinov2": 24, "dinov3_vit": 24, "swin": 24, "swinv2": 24, "mobilevit": 18,
          "segformer": 16, "convnext": 36, "convnextv2": 36, "resnet": 53, "regnet": 48, "efficientnet": 106,
          "mobilenet_v1": 13, "mobilenet_v2": 34, "poolformer": 24, "clip": 48, "siglip": 48}  # fmt: skip


_OTHERS = pytest.mark.whole("found the same way for all")


@pytest.mark.parametrize(
    "kind", [k if k in ("vit", "regnet", "mobilenet_v1") else pytest.param(k, marks=_OTHERS) for k in SEEING]
)
def test_models_of_images_have_defaults_that_lora_can_adapt(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind))
    adapted = afina.get_peft_model(model, afina.LoraConfig(), low_cpu_mem_usage=True)
    assert len(list(hosts(adapted.get_base_model()))) == SEEING[kind]
    assert all(getattr(h.base_layer, "groups", 1) == 1 for _, h in hosts(adapted.get_base_model()))
