from __future__ import annotations

import pytest

from afina.devices import packages as module
from afina.devices.found import Device
from afina.devices.packages import packages

CPU, T4 = Device("cpu", "a processor"), Device("cuda:0", "Tesla T4", capability=(7, 5))
H100 = Device("cuda:0", "NVIDIA H100", capability=(9, 0))


@pytest.mark.parametrize(
    ("there", "useful"),
    [([CPU], set()), ([T4, CPU], {"triton", "liger-kernel"}), ([H100, CPU], {"triton", "liger-kernel", "flash-attn"})],
)
def test_packages_for_gpus_are_useful_where_there_is_one_that_they_are_for(there, useful):
    assert {p.name for p in packages(there) if p.needs and p.useful} == useful


def test_what_is_missing_has_a_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(module, "_version", lambda name: None)
    assert all(p.version is None and p.install.startswith("pip install ") for p in packages([CPU]))


def test_what_is_installed_has_its_version():
    assert module._version("pytest")[0].isdigit()
    assert module._version("no-such-package-of-anybody") is None
