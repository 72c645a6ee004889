"""A config is data: loading imports, fetches and opens nothing that it names."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from afina.core.config import CONFIG_NAME
from afina.errors import AfinaError

from .tiny import inputs, load, rewrite

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
