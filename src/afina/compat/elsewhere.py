"""Names of the reference's inner parts that afina has no such part for: they can be imported, and say so when used.

Scripts import many of them only to ask `isinstance`, which is answered. Calling one, deriving a class from it, or
reading what it holds is refused with what there is instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from ..core.hosts.adapter import Adapter
from ..errors import ConfigError
from .tuners import method_of

_DISPATCH = "layers of every storage get the one `Host` (afina.core.hosts); there is nothing to choose"
_VARIANT = "a LoRA variant is a class that `Lora.variant` registers (afina.methods.reparam)"
_METHOD = "the method's formula is in its file in afina.methods"
_START = "afina.preprocess_corda, preprocess_loraga and initialize_lora_eva_weights do the whole start"
_SHARDS = "tensor parallel and Megatron layers are not adapted"
_OWN = 'a method of your own is an Adapter: see "A method of your own" in docs/drop-in.md'
_INSIDE = "afina does this inside get_peft_model, from_pretrained and save_pretrained"
_LYCORIS = "afina.LoHaConfig and afina.LoKrConfig have these fields themselves"

WHY: Mapping[str, str] = MappingProxyType({name: why for why, names in {
    _DISPATCH: """dispatch_default dispatch_bnb_8bit dispatch_bnb_4bit dispatch_aqlm dispatch_awq dispatch_eetq
        dispatch_gptq dispatch_hqq dispatch_inc dispatch_torchao dispatch_transformer_engine AqlmLoraLinear
        AwqLoraLinear GPTQLoraLinear TorchaoLoraLinear TeLinear SVDQuantLinear
        get_gptqmodel_quant_linear get_quantization_config is_gptqmodel_quant_linear is_gptqmodel_awq_layer
        QuantizationBackend ForwardOnlyQuantizationBackend Bnb8bitBackend Bnb4bitBackend HqqBackend TorchaoBackend
        resolve_quantization_backend quantization_extra_repr get_quantization_kwargs get_bnb_param_type
        skip_init_on_device LoraEmbeddingATPHolder""",
    _VARIANT: """LoraVariant ArrowLinearVariant DoraLinearVariant DoraEmbeddingVariant DoraConv1dVariant
        DoraConv2dVariant DoraConv3dVariant QALoraLinearVariant ALoraLinearVariant VeloraLinearVariant
        BlockDiagonalLinear BdLoraLinearVariant MontecloraLinearVariant MiCALinearVariant MiCAEmbeddingVariant
        KasaLinearVariant VARIANT_KWARG_KEYS calculate_alora_offsets is_alora_relevant_in_batch
        get_alora_offsets_for_forward get_alora_offsets_for_generate cache_decorator ENABLE_DORA_CACHING""",
    _METHOD: """RankAllocator DoraLinearLayer DoraEmbeddingLayer DoraConv1dLayer DoraConv2dLayer DoraConv3dLayer
        MontecloraSampler BufferedMontecloraSampler VeloraFunction slice_pca clustering_Z seg_locations
        get_trainable_subspaces AdaptedAttentionGPT ModelTypeConfig TRANSFORMERS_MODEL_CONFIG prepare_config
        llama_rotate_half llama_apply_rotary_pos_emb llama_compute_query_states gpt2_compute_query_states
        is_adaption_prompt_trainable patch_environment get_fbd_cuda FastBlockDiag MultiplicativeDropoutLayer
        get_circulant_fast BlockCircularConvolution GloraPath GloraLoraPath GloraVectorPath GloraScalarPath
        GloraEmptyPath HadaWeight HadaWeightCP make_weight make_weight_cp make_kron OFTRotationModule OrthLayer
        decompose_weight_matrix project_gradient_to_orthogonal_space EPS get_router Router PolyRouter UniqueBaseGrad
        DetachedFluxShadowModel validate_pretrained_flux_shadow freeze_flux_stem_embeddings DiffusionShadowBackend
        Flux2ShadowBackend get_diffusion_shadow_backend ShadowCarrier ShadowCache ShadowLayer DetachedShadowModel
        random_mask WAVELET_REDUCTIONS Wavelet wavelist WaveletDetailTuple2d WaveletTensorTuple waverec2d
        TemperatureScaledSoftmax XLoraClassifier XLoraLayer XLoraLinearLayer XLoraEmbeddingLayer XLoraConv2dLayer
        convert_layers_to_xlora ArrowLoraLinearLayer check_loaded_lora_compatibility_arrow
        ensure_adapters_target_linear_layers_only TASK_ADAPTER_PREFIX GKS_ADAPTER_PREFIX reduce_intruder_dimension
        SPARSE_EPS""",
    _START: """CordaEigens target_modules get_model_device calib_cov_distribution collect_eigens
        collect_eigens_for_layer crop_corda_eigens SVDHook HashHook find_equal_values get_device_with_meta_params
        move_inputs_to_device prepare_model_inputs_fn_language_modeling prepare_layer_inputs_fn_language_modeling
        forward_fn_dict UNSUPPORTED_LORA_MODULES get_target_modules estimate_gradients loftq_init IncrementalPCA
        NFQuantizer""",
    _SHARDS: """get_default_module_allowlist LoraParallelLinear dispatch_megatron get_tp_plan_and_mesh
        add_lora_tp_hooks_dtensor TpInfo dtensor_from_local_like""",
    _OWN: "BasePromptEncoder COMPATIBLE_TUNER_TYPES PREFIXES",
    _INSIDE: """inspect_matched_modules clone_module replicate_layers find_parameter_name_by_module get_device_map
        get_layer_device_map map_cache_to_layer_device_map has_valid_embedding_base_layer get_embedding_layer_name
        torch_load PeftConcatenate FlattenDims PermuteDims convert_peft_config_for_transformers
        convert_peft_adapter_state_dict_for_transformers set_additional_trainable_modules create_attention_mask
        CONFIG_KEYS_TO_CHECK get_default_import_allowlist check_import_allowlist check_file_exists_on_hf_hub
        id_tensor_storage starcoder_model_postprocess_past_key_value initialize_kv_prefix ALL_LAYERNORM_LAYERS""",
    _LYCORIS: "LycorisLayer LycorisTuner",
}.items() for name in names.split()})  # fmt: skip
"""Name -> what there is instead."""


def _dora(dims: int, embedding: bool = False) -> Callable[[object], bool]:
    def is_one(instance: object) -> bool:
        magnitude = getattr(instance, "lora_magnitude_vector", None) if isinstance(instance, Adapter) else None
        return magnitude is not None and magnitude.dim() == dims and getattr(instance, "embedding", False) == embedding

    return is_one


def _controls_ranks(instance: object) -> bool:
    return type(instance).__name__ == "RankBudget"


def _has_tokens(instance: object) -> bool:
    from ..core.hosts.host import Host

    adapters = [instance.adapter(n) for n in instance.names()] if isinstance(instance, Host) else []
    return any(a is not None and method_of(a) == "TRAINABLE_TOKENS" for a in adapters)


INSTANCES: Mapping[str, Callable[[object], bool]] = MappingProxyType({
    "DoraLinearLayer": _dora(1),
    "DoraEmbeddingLayer": _dora(1, embedding=True),
    **{f"DoraConv{n}dLayer": _dora(n + 2) for n in (1, 2, 3)},
    "RankAllocator": _controls_ranks,
    "TrainableTokensWrapper": _has_tokens,
})  # fmt: skip
"""Name -> what here is an instance of it; of the others nothing is."""


class _Elsewhere(type):
    """The class of such names."""

    fix: str

    def _refuse(cls) -> NoReturn:
        raise ConfigError("this part of the reference has no counterpart", where=cls.__name__, fix=cls.fix)

    def __call__(cls, *_: Any, **__: Any) -> NoReturn:
        cls._refuse()

    def __iter__(cls) -> NoReturn:
        cls._refuse()

    def __len__(cls) -> NoReturn:
        cls._refuse()

    def __contains__(cls, _: object) -> NoReturn:
        cls._refuse()

    def __getitem__(cls, _: object) -> NoReturn:
        cls._refuse()

    def __instancecheck__(cls, instance: object) -> bool:
        known = INSTANCES.get(cls.__name__)
        return known is not None and known(instance)


def _derived(cls: Any, /, **_: Any) -> None:
    cls.__mro__[1]._refuse()


@functools.lru_cache
def elsewhere(name: str) -> type | None:
    """What stands for a name of the reference that has no counterpart; None if it is no such name."""
    why = WHY.get(name) or (_INSIDE if name in INSTANCES else None)
    if why is None:
        return None
    own = {"fix": why, "__doc__": f"No counterpart: {why}.", "__init_subclass__": classmethod(_derived)}
    return _Elsewhere(name, (), own)
