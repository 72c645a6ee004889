"""AdaMSS: clusters as the reference finds them, ranks that a file decides, fewer and fewer subspaces that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.errors import AfinaWarning
from afina.methods.reparam.subspaces import SEED, k_means

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
CLUSTER = pytest.importorskip("sklearn.cluster", reason="the reference clusters with scikit-learn")
X, Y = torch.randn(2, 16, 20, generator=torch.Generator().manual_seed(2))


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 20, bias=False)).eval()


def model(library: Any, **options: Any) -> Any:
    config = library.AdamssConfig(target_modules=["0", "2"], r=8, num_subspaces=4, **options)
    adapted = library.get_peft_model(base(), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted((n.replace(".adapters", ""), p) for n, p in adapted.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.mark.parametrize("rows", [1, 5, 12, 700])
@pytest.mark.parametrize("clusters", [1, 5, 12])
def test_clusters_are_those_of_scikit_learn(rows: int, clusters: int) -> None:
    for seed in range(20):
        points = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
        labels = CLUSTER.KMeans(
            min(clusters, rows), init="random", n_init=1, max_iter=10, random_state=SEED
        ).fit_predict(points.numpy())
        mine = k_means(points, clusters, 10)
        assert [m.tolist() for m in mine] == [(labels == k).nonzero()[0].tolist() for k in range(min(clusters, rows))]


def test_rows_that_are_equal_leave_no_cluster_empty_while_others_can_fill_it() -> None:
    points = torch.cat([torch.zeros(30, 3), torch.eye(3)])
    assert sorted(len(m) for m in k_means(points, 4, 10)) == [1, 1, 1, 30]


@pytest.mark.parametrize(("writer", "reader"), [(afina, REFERENCE), (REFERENCE, afina), (afina, afina)],
                         ids=["to-reference", "from-reference", "own"])  # fmt: skip
def test_ranks_that_follow_from_the_weight_are_exchanged(writer: Any, reader: Any, tmp_path: Path) -> None:
    written = model(writer, subspace_rank=6, use_dynamic_rank=True, svd_threshold=0.3)
    ranks = {p.shape[0] for n, p in written.named_parameters() if "adamss_A" in n}
    assert len(ranks) > 1
    written.save_pretrained(tmp_path)
    read = reader.PeftModel.from_pretrained(base(), tmp_path)
    with torch.no_grad():
        assert (read.eval()(X) - written.eval()(X)).abs().max() < 1e-5


def test_ranks_of_a_file_win_over_those_of_the_weight(tmp_path: Path) -> None:
    options = {"subspace_rank": 6, "use_dynamic_rank": True}
    written = model(afina, svd_threshold=0.9, **options)
    written.save_pretrained(tmp_path)
    other = afina.get_peft_model(base(), afina.AdamssConfig(target_modules=["0", "2"], r=8, num_subspaces=4, **options))
    state = afina.load_peft_weights(tmp_path)
    before = {n: p.shape for n, p in other.named_parameters()}
    assert afina.set_peft_model_state_dict(other, state) == ([], [])
    assert {n: p.shape for n, p in other.named_parameters()} != before
    with torch.no_grad():
        assert torch.equal(other.eval()(X), written.eval()(X))


def learning(adapted: Any) -> set[str]:
    return {n.replace(".adapters", "").replace(".default", "") for n, p in adapted.named_parameters()
            if p.requires_grad and "adamss" in n}  # fmt: skip


def trained(library: Any, target: int) -> Any:
    """After some steps whose last one leaves `target` subspaces of 8."""
    options = {"use_asa": True, "init_warmup": 1, "final_warmup": 6, "mask_interval": 6, "asa_target_subspaces": target}
    adapted = model(library, **options)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for step in range(1, 9):
        optimizer.zero_grad()
        (adapted(X) - Y).square().mean().backward()
        optimizer.step()
        adapted.base_model.update_and_allocate(step)
    return adapted


def test_same_subspaces_go_on_learning_as_in_the_reference() -> None:
    # The reference keeps one less than its target.
    mine, theirs = trained(afina, 3), trained(REFERENCE, 4)
    assert len(learning(mine)) == 2 * 3
    assert learning(mine) == learning(theirs)
    with torch.no_grad():
        assert (mine(X) - theirs(X)).abs().max() < 1e-5
    mine.set_adapter("default")
    assert len(learning(mine)) == 2 * 3


def test_rows_that_are_all_equally_far_apart_are_told_of() -> None:
    with pytest.warns(AfinaWarning, match="rounding decides"):
        afina.get_peft_model(base(), afina.AdamssConfig(target_modules=["2"]))
