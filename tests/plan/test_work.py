from __future__ import annotations

import torch

from afina.plan.work import Product, Work


def test_work_is_added_and_taken_so_many_times():
    product = Product(torch.float32, 1, 2, 3, 4)
    one = Work(near=10, far=4, calls=2)
    one.products[product] = 2
    both = one + one * 1.5
    assert (both.near, both.far, both.calls, both.products[product]) == (25, 10, 5, 5)
    assert (one.near, one.products[product]) == (10, 2)
