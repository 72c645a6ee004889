"""Adapter files that someone damaged or forged: each is refused, and nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afina.core.config import CONFIG_NAME
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.files.hub import locate
from afina.errors import AfinaError, CheckpointError, ConfigError, NumericError

from ..tiny import FIRST, bits, inputs, load, mlp, rewrite, same_bits, trained

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
