"""Import lines that scripts have, with afina's name in the place of `peft`."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest

import afina
from afina.compat.modules import TREE, offered, public_names

LINES = """
from peft import LoraConfig, get_peft_model, PeftModel, LoraRuntimeConfig, PeftMixedModel, register_peft_method
from peft.import_utils import is_bnb_available, is_bnb_4bit_available, is_gptqmodel_available, is_eetq_available
from peft.import_utils import is_aqlm_available, is_hqq_available
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict, load_peft_weights, infer_device
from peft.utils import ModulesToSaveWrapper, _get_submodules, transpose, TaskType, PeftType, AuxiliaryTrainingWrapper
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, CONFIG_NAME, prepare_model_for_kbit_training
from peft.utils import bloom_model_postprocess_past_key_value, shift_tokens_right, cast_mixed_precision_params
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import fsdp_auto_wrap_policy, prepare_model_for_kbit_training
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict, load_peft_weights
from peft.utils.loftq_utils import replace_lora_weights_loftq
from peft.utils.merge_utils import ties, dare_ties, dare_linear, magnitude_prune, task_arithmetic
from peft.utils.integrations import dequantize_module_weight, init_empty_weights
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from peft.utils.peft_types import PeftType, TaskType, register_peft_method
from peft.optimizers import create_loraplus_optimizer, create_lorafa_optimizer
from peft.optimizers.lorafa import create_lorafa_optimizer
from peft.optimizers.loraplus import create_loraplus_optimizer
from peft.helpers import rescale_adapter_scale, check_if_peft_model, update_forward_signature
from peft.helpers import disable_input_dtype_casting
from peft.tuners import LoraConfig, LoraModel, AdaLoraModel, IA3Model, PrefixEncoder, PromptEmbedding, PromptEncoder
from peft.tuners.lora import LoraConfig, LoraLayer, LoraModel, Linear, Embedding, Conv2d
from peft.tuners.lora.layer import LoraLayer, Linear, Conv2d, Embedding, MultiheadAttention, ParamWrapper
from peft.tuners.lora.config import LoraConfig, LoftQConfig, EvaConfig, CordaConfig, LoraRuntimeConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict, initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.lora.arrow import create_arrow_model
from peft.tuners.lora.model import LoraModel
from peft.tuners.lora.conversion import convert_to_lora, save_as_lora
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists, onload_layer
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.tuners.adalora import AdaLoraModel, AdaLoraLayer, SVDLinear
from peft.tuners.ia3 import IA3Layer, Linear
from peft.tuners.mixed import MixedModel
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.xlora.model import XLoraModel
from peft.mapping import get_peft_model, PEFT_TYPE_TO_CONFIG_MAPPING, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.mapping_func import get_peft_model, MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.peft_model import PeftModel, PeftModelForCausalLM, get_layer_status, get_model_status, TunerLayerStatus
from peft.config import PeftConfig, PeftConfigMixin, PromptLearningConfig
from peft.auto import AutoPeftModelForCausalLM, MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from peft.mixed_model import PeftMixedModel
from peft.functional import set_adapter, delete_adapter, inject_adapter_in_model, get_peft_model_state_dict
""".strip().splitlines()


@pytest.mark.parametrize("line", LINES)
def test_the_line_works_with_afinas_name(line):
    exec(line.replace("from peft", "from afina"), {})


def test_all_lines_work_where_afina_stands_in():
    code = "import afina.compat; afina.compat.stand_in()\n" + "\n".join(LINES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(peft.__all__))
def test_the_references_public_name_is_in_afina(name):
    assert getattr(afina, name) is not None


def test_modules_of_both_names_have_the_same_objects():
    ours = importlib.import_module("afina.tuners.lora.layer")
    assert ours.LoraLayer is importlib.import_module("afina.tuners.lora").LoraLayer
    assert afina.tuners.lora.layer is ours


def test_a_module_that_is_nowhere_is_told_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"afina\.nowhere"):
        importlib.import_module("afina.nowhere")
    with pytest.raises(ImportError, match="nothing_like_it"):
        exec("from afina.utils import nothing_like_it", {})


def reference_files() -> Iterator[tuple[str, ast.Module]]:
    """The reference's modules and what stands in them."""
    root = Path(peft.__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(("peft", *(p for p in parts if p != "__init__"))), ast.parse(path.read_text())


def own_names(module: ast.Module) -> Iterator[str]:
    """Public classes, functions and constants that a module defines."""
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [t.id for t in targets if isinstance(t, ast.Name) and t.id.isupper()]
        else:
            continue
        yield from (name for name in found if not name.startswith("_"))


PRIVATE = ("peft.utils.generate_doc_table",)


def test_every_public_name_of_every_inner_module_can_be_imported():
    asked = {(m, n) for m, tree in reference_files() if m != "peft" and not m.startswith(PRIVATE)
             for n in own_names(tree)}  # fmt: skip
    assert len(asked) > 500
    missing = [(m, n) for m, n in asked if m not in TREE or (not hasattr(afina, n) and offered(m, n) is None)]
    assert not missing


def test_names_of_no_module_are_not_made_up():
    for module in ("peft.utils", "peft.tuners.lora.layer", "peft.tuners.lycoris_utils"):
        assert offered(module, "NothingLikeIt") is None
    assert offered("peft", "dispatch_default") is None


def test_all_names_of_the_package_come_with_a_star() -> None:
    names = public_names("peft")
    assert set(peft.__all__) <= set(names)
    assert not [n for n in names if n.startswith("_")]
    scope: dict[str, object] = {}
    exec("from afina.utils import *", scope)
    assert scope["LoraConfig"] is afina.LoraConfig
    assert "infer_device" in scope
