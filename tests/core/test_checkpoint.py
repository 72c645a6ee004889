"""The only door in and the only door out: hostile files, torn saves, other bases."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import afina
from afina.core import checkpoint, jsonfile
from afina.core.checkpoint import WEIGHTS_NAME
from afina.core.config import CONFIG_NAME
from afina.core.hub import locate
from afina.errors import AfinaError, AfinaWarning, CheckpointError, ConfigError, NumericError

from .tiny import bits, config, inputs, mlp, nudge, same_bits, trained

FIRST = "base_model.model.layers.0.up.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good adapter on disk."""
    trained().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def load(folder: Path, base: Any = None, **options: Any) -> Any:
    """The adapter of a folder on a pristine base."""
    return afina.PeftModel.from_pretrained(base if base is not None else mlp(), folder, **options)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file as someone else's tool would: without our metadata."""
    path = folder / WEIGHTS_NAME
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- files that do not fit --------------------------------------------------------------------------------------------


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors[FIRST]


def _drop_all(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors["nothing"] = torch.ones(1)


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST.replace("lora_A", "lora_a")] = tensors.pop(FIRST)


def _extra(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.layers.9.up.lora_A.weight"] = torch.ones(2, 8)


def _base_weight(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.head.weight"] = torch.ones(4, 8)


def _base_layer(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.layers.0.up.base_layer.weight"] = torch.ones(16, 8)


def _base_bias(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.layers.0.up.base_layer.bias"] = torch.ones(16)


def _plain_name(tensors: dict[str, Tensor]) -> None:
    tensors["layers.0.up.weight"] = torch.ones(16, 8)


def _runtime_name(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.layers.0.up.adapters.default.lora_A"] = torch.ones(2, 8)


def _misshapen(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.ones(2, 9)


def _transposed(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = tensors[FIRST].T.contiguous()


def _scalar(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.ones(())


def _empty(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.ones(0)


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST][0, 0] = float("nan")


def _infinite(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST][0, 0] = float("-inf")


def _integers(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.ones(2, 8, dtype=torch.int32)


def _booleans(tensors: dict[str, Tensor]) -> None:
    tensors[FIRST] = torch.ones(2, 8, dtype=torch.bool)


UNFIT = [_drop, _drop_all, _rename, _extra, _base_weight, _base_layer, _base_bias, _plain_name, _runtime_name,
         _misshapen, _transposed, _scalar, _empty, _nan, _infinite, _integers, _booleans]  # fmt: skip


@pytest.mark.parametrize("change", UNFIT, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_file_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], None], low_cpu_mem_usage: bool, folder: Path
) -> None:
    rewrite(folder, change)
    base = mlp()
    before = bits(base)
    with pytest.raises((CheckpointError, NumericError)) as caught:
        load(folder, base, low_cpu_mem_usage=low_cpu_mem_usage)
    text = str(caught.value)
    assert len(text.splitlines()) <= 4
    assert "adapter_model.safetensors" in text or "lora_A" in text
    assert same_bits(bits(base), before)
    assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("change", UNFIT, ids=lambda f: f.__name__.strip("_"))
def test_file_that_does_not_fit_leaves_the_loaded_adapters_alone(
    change: Callable[[dict[str, Tensor]], None], folder: Path
) -> None:
    model = trained(seed=5)
    before, active, configs = bits(model), model.active_adapters, list(model.peft_config)
    rewrite(folder, change)
    for name in ("other", "default"):
        with pytest.raises((CheckpointError, NumericError)):
            model.load_adapter(folder, name)
        assert same_bits(bits(model), before)
        assert (model.active_adapters, list(model.peft_config)) == (active, configs)
        assert any(p.requires_grad for p in model.parameters())


def test_typing_error_in_a_key_names_the_nearest(folder: Path) -> None:
    rewrite(folder, _rename)
    with pytest.raises(CheckpointError, match="lora_A"):
        load(folder)


def test_smuggled_base_tensors_are_called_so(folder: Path) -> None:
    rewrite(folder, _base_weight)
    with pytest.raises(CheckpointError, match="frozen base"):
        load(folder)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
def test_prefixes_of_wrappers_are_taken_off(wrapper: str, folder: Path) -> None:
    expected = load(folder)(inputs())

    def change(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[
                wrapper + key if wrapper == "module." else key.replace("model.layers", f"model.{wrapper}layers")
            ] = tensors.pop(key)

    rewrite(folder, change)
    assert torch.equal(load(folder)(inputs()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes_are_cast(dtype: torch.dtype, folder: Path) -> None:
    expected = load(folder)(inputs())

    def change(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)

    rewrite(folder, change)
    loaded = load(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.allclose(loaded(inputs()), expected, atol=0.05)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_refused(size: int, folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(folder)


def test_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(AfinaError):
        load(folder)


def test_rank_of_the_config_must_be_that_of_the_tensors(folder: Path) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    rewrite(folder, lambda tensors: None)
    (folder / CONFIG_NAME).write_text(json.dumps({**values, "r": 2**20}))
    with pytest.raises(CheckpointError, match="another shape"):
        load(folder, low_cpu_mem_usage=True)


# -- pickles, links, pipes --------------------------------------------------------------------------------------------


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/afina_was_here",)


def test_pickle_is_refused_unopened(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({FIRST: Bomb()}))
    with pytest.raises(CheckpointError, match="pickle can run code"):
        load(folder)
    assert not Path("/tmp/afina_was_here").exists()


def test_saving_as_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safe_serialization"):
        trained().save_pretrained(tmp_path / "a", safe_serialization=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
def test_pipe_in_place_of_a_file_is_refused_and_does_not_block(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError):
        load(folder)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
def test_link_that_leads_out_of_the_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="link"):
        load(folder)


def test_hub_cache_whose_files_are_links_loads(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate((WEIGHTS_NAME, CONFIG_NAME)):
        (folder / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    assert load(snapshot)(inputs()).isfinite().all()


def test_link_inside_the_folder_loads(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "real")
    (folder / WEIGHTS_NAME).symlink_to("real")
    load(folder)


def test_subfolder_must_stay_inside(folder: Path) -> None:
    (folder / "inner").mkdir()
    with pytest.raises(CheckpointError, match="out of the folder"):
        load(folder / "inner", subfolder="..")


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "../nothing", "a/b/c", "~nobody"])
def test_missing_folder_is_not_looked_up_on_the_hub(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(source, CONFIG_NAME)


def test_saving_through_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / CONFIG_NAME).unlink()
    (folder / CONFIG_NAME).symlink_to(victim)
    with pytest.raises(CheckpointError, match="link"):
        trained().save_pretrained(folder)
    assert victim.read_text() == "precious"


def test_saving_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious")
    with pytest.raises(CheckpointError, match="not a folder"):
        trained().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "precious"


# -- saving whole or not at all ---------------------------------------------------------------------------------------


def test_adapter_that_is_not_finite_leaves_the_old_files(folder: Path) -> None:
    before, model = listing(folder), trained(seed=9)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(NumericError):
        model.save_pretrained(folder)
    assert listing(folder) == before


def test_full_disk_leaves_the_old_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(folder)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonfile.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        trained(seed=9).save_pretrained(folder)
    monkeypatch.undo()
    assert listing(folder) == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_file_modes_follow_the_umask(mask: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        trained().save_pretrained(tmp_path / "a")
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").iterdir()} == {0o666 & ~mask}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        trained().save_pretrained(tmp_path / name)
    assert listing(tmp_path / "a") == listing(tmp_path / "b")


@pytest.mark.parametrize("count", range(1, 9))
def test_kill_at_any_replace_or_sync_leaves_a_whole_adapter(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    old, new = trained(seed=1), trained(seed=2, lora_alpha=30)
    old.save_pretrained(folder)
    outputs = [m(inputs()) for m in (old, new)]
    child = os.fork()
    if not child:
        calls = 0

        def dying(event: str, arguments: Any) -> None:
            nonlocal calls
            if event == "os.rename" or (event == "open" and str(folder) in str(arguments[0])):
                calls += 1
                if calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(dying)
        new.save_pretrained(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or count > 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AfinaWarning)
        out = load(folder)(inputs())
    assert any(torch.equal(out, expected) for expected in outputs)


def test_kill_between_the_two_renames_is_mended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if not child:
        real, done = os.replace, []

        def replace(source: Any, target: Any) -> None:
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(real(source, target))

        checkpoint.os.replace = replace
        trained(seed=2, lora_alpha=30).save_pretrained(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert json.loads((folder / CONFIG_NAME).read_text())["lora_alpha"] == 3
    with pytest.warns(AfinaWarning, match="interrupted"):
        loaded = load(folder)
    assert torch.equal(loaded(inputs()), trained(seed=2, lora_alpha=30)(inputs()))
    assert json.loads((folder / CONFIG_NAME).read_text())["lora_alpha"] == 30


@pytest.mark.parametrize("taken", [WEIGHTS_NAME, CONFIG_NAME])
def test_torn_pair_is_refused_either_way(taken: str, folder: Path, tmp_path: Path) -> None:
    trained(seed=2, lora_alpha=30).save_pretrained(tmp_path / "new")
    (folder / taken).write_bytes((tmp_path / "new" / taken).read_bytes())
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(folder)


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision", "inference_mode", "task_type"])
def test_keys_without_mathematics_may_be_edited(key: str, folder: Path) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**values, key: "CAUSAL_LM" if key == "task_type" else values[key]}))
    load(folder)


# -- another base -----------------------------------------------------------------------------------------------------


def test_adapter_of_another_base_is_refused_unless_allowed(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="another base"):
        load(folder, mlp(seed=1))
    assert load(folder, mlp(seed=1), allow_other_base=True)(inputs()).isfinite().all()


@pytest.mark.parametrize("base", [lambda: mlp(width=16), lambda: mlp(depth=2), lambda: mlp(depth=4)])
def test_base_of_another_size_is_refused(base: Callable[[], Any], folder: Path) -> None:
    with pytest.raises(AfinaError):
        load(folder, base())


def test_base_in_another_dtype_is_accepted(folder: Path) -> None:
    loaded = load(folder, mlp().bfloat16())
    assert loaded(inputs().bfloat16()).dtype == torch.bfloat16


def test_base_that_was_merged_is_refused(folder: Path) -> None:
    merged = load(folder).merge_and_unload()
    with pytest.raises(CheckpointError, match="another base"):
        load(folder, merged)


# -- a config is data -------------------------------------------------------------------------------------------------


HOSTILE: dict[str, Any] = {
    "auto_mapping": {"base_model_class": "Popen", "parent_library": "subprocess"},
    "base_model_name_or_path": "http://127.0.0.1:9/evil",
    "revision": "../../etc",
    "megatron_core": "antigravity",
    "runtime_config": {"import": "antigravity"},
    "tokenizer_kwargs": {"trust_remote_code": True},
    "adapters": {"0": "http://127.0.0.1:9/evil"},
    "tokenizer_name_or_path": "http://127.0.0.1:9/evil",
    "prompt_tuning_init_state_dict_path": "/etc/passwd",
    "corda_config": {"cache_file": "/etc/passwd"},
    "lora_ga_config": {"cache_file": "/etc/passwd"},
    "eva_config": {"x": "/etc/passwd"},
    "loftq_config": {"x": "antigravity"},
}


@pytest.mark.parametrize("key", HOSTILE)
def test_loading_opens_no_socket_and_imports_nothing_that_the_file_names(key: str, folder: Path) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    rewrite(folder, lambda tensors: None)
    (folder / CONFIG_NAME).write_text(json.dumps({**values, key: HOSTILE[key]}))
    load(folder) if key == "revision" else None  # everything that loading needs is imported before listening
    child = os.fork()
    if not child:
        seen: list[str] = []

        def listen(event: str, arguments: Any) -> None:
            bad = event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "urllib."))
            named = event in ("import", "open") and any(
                w in str(arguments[0]) for w in ("antigravity", "passwd", "evil", "Popen", "etc")
            )
            if bad or named:
                seen.append(f"{event} {arguments}")

        sys.addaudithook(listen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(AfinaError):
                load(folder)
        if seen:
            print(seen, file=sys.stderr, flush=True)
        os._exit(1 if seen else 0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_loading_draws_no_random_numbers_that_matter(folder: Path) -> None:
    torch.manual_seed(1)
    first = load(folder)(inputs())
    torch.manual_seed(2)
    assert torch.equal(load(folder)(inputs()), first)


# -- the state dict functions -----------------------------------------------------------------------------------------


def test_state_dict_has_the_references_keys_and_values() -> None:
    import peft

    mine = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(mlp(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"]))
    nudge(theirs)
    a, b = afina.get_peft_model_state_dict(mine), peft.get_peft_model_state_dict(theirs)
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    result = afina.set_peft_model_state_dict(mine, b)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.allclose(mine(inputs()), theirs(inputs()), atol=1e-6)
    result = peft.set_peft_model_state_dict(theirs, a)
    assert not result.unexpected_keys


def test_setting_a_state_dict_is_lenient_as_the_references_is() -> None:
    model = trained()
    state = {k: v.clone() for k, v in afina.get_peft_model_state_dict(model).items()}
    before = bits(model)
    state.pop(FIRST)
    state["base_model.model.head.weight"] = torch.zeros(4, 8)
    with pytest.warns(AfinaWarning, match="missing"):
        result = afina.set_peft_model_state_dict(model, state)
    assert result.missing_keys == [FIRST.removeprefix("base_model.model.")]
    assert result.unexpected_keys == ["head.weight"]
    assert same_bits(bits(model), before)
    state[FIRST] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match="another shape"):
        afina.set_peft_model_state_dict(model, state)
    with pytest.warns(AfinaWarning):
        afina.set_peft_model_state_dict(model, state, ignore_mismatched_sizes=True)


def test_gathered_state_is_saved_in_place_of_the_live_one(tmp_path: Path) -> None:
    model = trained()
    gathered = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(inputs())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    model.save_pretrained(tmp_path, state_dict=gathered)
    assert torch.equal(load(tmp_path)(inputs()), expected)


def test_unknown_adapter_is_an_error() -> None:
    with pytest.raises(AfinaError):
        afina.get_peft_model_state_dict(trained(), adapter_name="nope")
    with pytest.raises(AfinaError):
        trained().save_pretrained("/nonexistent", selected_adapters=["nope"])


def test_load_peft_weights_gives_the_files_tensors(folder: Path) -> None:
    tensors = afina.load_peft_weights(folder)
    assert tensors.keys() == load_file(folder / WEIGHTS_NAME).keys()


def test_injected_module_saves_without_the_wrappers_prefix() -> None:
    model = afina.inject_adapter_in_model(config(), mlp())
    state = afina.get_peft_model_state_dict(model)
    assert "layers.0.up.lora_A.weight" in state
    assert afina.set_peft_model_state_dict(model, state).unexpected_keys == []
