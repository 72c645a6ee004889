from __future__ import annotations

import json
from dataclasses import replace

import torch

from afina.devices.found import processor
from afina.plan import probe
from afina.plan.probe import SIZES, Speed, speed_of
from afina.plan.work import Product, Work


def test_a_step_takes_its_products_its_bytes_and_its_starts():
    speed = Speed((1e9, 1e9, 1e9), near=1e9, far=1e8, start=1e-6)
    work = Work(near=2 * 10**9, far=10**8, calls=1000)
    work.products[Product(torch.float32, 1, 1000, 1000, 1000)] = 3
    assert abs(speed.step(work) - (6 + 2 + 1 + 1e-3)) < 1e-9
    assert abs(replace(speed, overlaps=True).step(work) - 9) < 1e-9
    assert abs(replace(speed, overlaps=True, start=1).step(work) - 1000) < 1e-9


def test_small_products_are_slower_as_they_were_measured():
    speed = Speed((1e9, 1e10, 1e11), near=1e12, far=1e12, start=0)
    seconds = [speed.product(Product(torch.float32, 1, *size)) for size in SIZES]
    for size, took, flops in zip(SIZES, seconds, speed.flops, strict=True):
        assert abs(took * flops / (2 * size[0] * size[1] * size[2]) - 1) < 1e-9
    between = Product(torch.float32, 1, 128, 128, 512)
    assert 1e9 < between.flops / speed.product(between) < 1e10
    many = Product(torch.float32, 50, *SIZES[0])
    assert abs(speed.product(many) / seconds[0] - 50) < 1e-9


def test_few_rows_take_what_reading_the_weight_takes():
    speed = Speed((1e12, 1e12, 1e12), near=1e9, far=1e8, start=0)
    assert speed.product(Product(torch.float32, 1, 1, 100, 100)) == 100 * 100 * 4 / 1e9
    assert speed.product(Product(torch.bfloat16, 2, 1, 2000, 2000)) == 2 * 2000 * 2000 * 2 / 1e8


def test_the_speed_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_SECONDS", 0.01)
    first = speed_of(processor(), torch.float32)
    assert min(*first.flops, first.near, first.far) > 1e7
    assert 1e-8 < first.start < 1e-2
    (kept,) = json.loads((tmp_path / "speeds.json").read_text()).values()
    assert kept["near"] == first.near
    assert speed_of(processor(), torch.float32) == first
    assert speed_of(processor(), torch.float32, again=True) != first
