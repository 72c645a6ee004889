"""Kernels on a GPU: `make test-gpu`. The same code runs on the processor, where there is something to run."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.devices.place import place
from afina.kernels import loss
from afina.kernels.cuda import loss_trial, offload
from afina.kernels.cuda.few_bits import share_buffer
from afina.kernels.cuda.flash import use_flash
from afina.kernels.cuda.varlen import RowLengths
from afina.kernels.selftest import self_test
from afina.kernels.speed import are_on, speed_up
from afina.kernels.updates import siblings
from afina.kernels.updates.wide import Way
from afina.kernels.updates.wide_trial import candidates, way
from afina.train.base.quantize import in_fp8

from .cuda.test_eight_bits import llama as llama_in_8_bits
from .cuda.test_few_bits import llama as llama_in_4_bits
from .updates import test_rows_of_dora as rows_of_dora
from .updates.test_wide import always

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
LORA = afina.LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
LENGTHS = (40, 3, 64, 21)
ALL_TILES = list(candidates())[2:]
CHOSEN = [("cpu", always), *(pytest.param("cuda", one, marks=pytest.mark.gpu) for one in (always, way))]
"""Ways that updates take, of which the trial is the device's."""
IN_ONE_KERNEL = [lambda *_, how=how: Way(how, how) for how in ALL_TILES]


def adapted(device, dtype):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)  # fmt: skip
    model = LlamaForCausalLM(config).to(device, dtype)
    return afina.get_peft_model(model, LORA).train()


@pytest.mark.parametrize("device", DEVICES)
def test_every_kernel_is_its_formula(device):
    found = self_test(torch.device(device))
    assert not [f"{c.kernel}: {c.error} {c.why}" for c in found if c.state == "wrong"]
    assert [c for c in found if c.state == "right"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_with_its_fast_paths_a_model_has_its_losses_and_gradients(device, alone, dtype):
    ids = torch.randint(1, 160, (2, 70), generator=torch.Generator().manual_seed(0)).to(device)
    found = []
    for fast in (False, True):
        model = adapted(device, dtype)
        if fast:
            assert are_on(speed_up(model, keep_logits=not alone))
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        found.append((float(out.loss), [p.grad.float() for p in model.parameters() if p.grad is not None]))
    (plain, expected), (fast, gradients) = found
    far = 1e-4 if dtype == torch.float32 else 3e-2
    assert fast == pytest.approx(plain, rel=far)
    assert len(gradients) == len(expected) > 0
    for a, b in zip(gradients, expected, strict=True):
        assert float((a - b).norm()) <= 2 * far * float(b.norm())


@pytest.mark.gpu
def test_packed_rows_on_a_gpu_have_the_losses_and_gradients_of_padded_ones():
    device, rows = place("cuda"), [torch.randint(1, 160, (n,)) for n in LENGTHS]
    if device.capability < (8, 0):
        pytest.skip("attention by lengths needs Ampere")
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    padded = {"input_ids": labels.clamp_min(0), "labels": labels, "attention_mask": (labels >= 0).long()}
    first = [torch.cat([torch.tensor([-100]), row[1:]]) for row in rows]
    laid = {"input_ids": torch.cat(rows)[None], "labels": torch.cat(first)[None], **RowLengths.of(LENGTHS).inputs()}
    found = []
    for batch in (padded, laid):
        model = adapted("cuda", torch.bfloat16)
        if batch is laid:
            assert use_flash(model, device, packed=True) == "attention by lengths: on"
        loss = model(**{k: v.to("cuda") if torch.is_tensor(v) else v for k, v in batch.items()}, use_cache=False).loss
        loss.backward()
        found.append((float(loss), [p.grad.float() for p in model.parameters() if p.grad is not None]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        assert float((a - b).norm()) <= 0.05 * float(b.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("whose", [loss_trial.OURS, loss_trial.LIGERS])
@pytest.mark.parametrize("words", [300, 128256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_in_triton_is_torchs_operations(dtype, words, whose):
    if whose not in loss_trial.candidates():
        pytest.skip("no liger-kernel installed")
    losses = loss_trial.candidates()[whose]()[0]
    z = (4 * torch.randn(37, words, device="cuda")).to(dtype)
    targets = torch.randint(0, words, (37, 1), device="cuda")
    exact = z.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets[:, 0], reduction="sum")
    expected.backward()
    gradient = z.clone()
    found = losses(gradient, targets, 0.0, True).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    far = 1e-5 if dtype == torch.float32 else 1e-2
    assert float((gradient.double() - exact.grad).norm() / exact.grad.norm()) <= far
    assert loss.has_triton()


def step(model, device="cuda", **inputs):
    words = model.get_input_embeddings().num_embeddings
    ids = torch.randint(1, words, (2, 70), generator=torch.Generator().manual_seed(0)).to(device)
    loss = model(input_ids=ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return float(loss), [p.grad.float() for p in model.parameters() if p.grad is not None]


def near(found, expected, far):
    assert found[0] == pytest.approx(expected[0], rel=far)
    assert len(found[1]) == len(expected[1]) > 0
    for a, b in zip(found[1], expected[1], strict=True):
        assert float((a - b).norm()) <= 2 * far * float(b.norm())


@pytest.mark.gpu
def test_activations_in_pinned_memory_come_back_as_they_were(monkeypatch):
    monkeypatch.setattr(offload, "LEAST", 256)
    plain, moved = adapted("cuda", torch.float32), adapted("cuda", torch.float32)
    assert offload.offload_layers(moved, offload.Streams(torch.device("cuda:0"))) == 2
    near(step(moved), step(plain), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_layers_in_4_bits_that_share_a_buffer_are_bitsandbytes_own(device, writes_where_it_is_told):
    plain, shared = (llama_in_4_bits().to(device) for _ in range(2))
    assert share_buffer(shared) == 14
    expected = step(plain, device)
    near(step(shared, device), expected, 1e-3)
    shared.zero_grad()
    ids = torch.arange(8, device=device)[None]
    assert siblings.join(shared.get_base_model(), lambda: shared(input_ids=ids)) == 4
    near(step(shared, device), expected, 1e-3)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_layers_in_8_bits_made_together_are_bitsandbytes_own(device, dtype, threshold):
    pytest.importorskip("bitsandbytes")
    # On the processor its products are in 8 bits in evaluation only.
    plain, shared = (llama_in_8_bits(threshold, dtype).to(device).train(device == "cuda") for _ in range(2))
    assert share_buffer(shared) == 14
    # A rounding in float32 may turn one in 8 bits over.
    expected, far = step(plain, device), 1e-2 if dtype == torch.float32 else 3e-2
    near(step(shared, device), expected, far)
    shared.zero_grad()
    ids = torch.arange(8, device=device)[None]
    assert siblings.join(shared.get_base_model(), lambda: shared(input_ids=ids)) == 4
    near(step(shared, device), expected, far)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", ALL_TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(4096, 2048, 8192, 16), (1000, 520, 333, 24), (1, 64, 40, 1)], ids=str)
def test_a_product_and_its_update_in_one_kernel_are_the_formula(sizes, dtype, tiles):
    from afina.kernels.updates.epilogue import product

    tokens, inputs, outputs, rank = sizes
    x, w, t, b, bias = (torch.randn(s, device="cuda").mul_(s[-1] ** -0.5).to(dtype) for s in
                        ((tokens, inputs), (outputs, inputs), (tokens, rank), (outputs, rank), (outputs,)))  # fmt: skip
    g, a = torch.randn(tokens, outputs, device="cuda").to(dtype), torch.randn(rank, inputs, device="cuda").to(dtype)
    far = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    plain = x.double() @ w.double().mT + bias.double()
    for found, exact in (
        (product(x, w.mT, t, b.mT, bias, tiles), plain + t.double() @ b.double().mT),
        (product(g, w, t, a, None, tiles), g.double() @ w.double() + t.double() @ a.double()),
    ):
        assert found.dtype == dtype
        assert float((found.double() - exact).norm() / exact.norm()) <= far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("device", "choose"), CHOSEN)
def test_rows_with_adapters_of_their_own_are_those_one_after_the_other(device, choose, dtype):
    found = []
    for chosen in (None, choose):
        model = adapted(device, dtype)
        torch.manual_seed(1)
        model.add_adapter("b", afina.LoraConfig(target_modules="all-linear", init_lora_weights=False, r=5))
        for _, host in siblings.hosts(model.get_base_model()):
            host.require_grad(("default", "b"))
        ids = torch.arange(8, device=device)[None]
        assert siblings.join(model.get_base_model(), lambda m=model, i=ids: m(input_ids=i), chosen) == 4
        found.append(step(model, device, adapter_names=["b", "default"]))
    near(found[1], found[0], 1e-5 if dtype == torch.float32 else 3e-2)
    assert len(found[0][1]) == 2 * 28


@pytest.mark.sampled(4, "updates/test_rows_of_dora.py has them on the processor")
@pytest.mark.parametrize("names", [["dora", "wide"], ["lora", "default"], ["dora", "default"]], ids=" ".join)
@pytest.mark.parametrize("made", [rows_of_dora.dense, rows_of_dora.in_4_bits, rows_of_dora.in_8_bits])
@pytest.mark.parametrize(("device", "choose"), CHOSEN)
def test_rows_with_dora_and_on_layers_in_few_bits_are_those_one_after_the_other(
    device, choose, made, names, writes_where_it_is_told
):  # fmt: skip
    one_by_one, together = (rows_of_dora.with_more(made, chosen, device) for chosen in (None, choose))
    # A rounding in float32 may turn one in 8 bits over.
    far = 1e-2 if made is rows_of_dora.in_8_bits else 1e-3
    found, expected = (step(model, device, adapter_names=names) for model in (together, one_by_one))
    near(found, expected, far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("device", "choose"), [*CHOSEN, *(pytest.param("cuda", one, marks=pytest.mark.gpu)
                                                           for one in IN_ONE_KERNEL)])  # fmt: skip
def test_updates_in_the_layers_own_products_are_those_that_are_added(device, choose, dtype):
    found = []
    for chosen in (None, choose):
        model = adapted(device, dtype)
        ids = torch.arange(8, device=device)[None]
        assert siblings.join(model.get_base_model(), lambda m=model, i=ids: m(input_ids=i), chosen) == 4
        found.append(step(model, device))
    lie = [not host.base.weight.is_contiguous() for _, host in siblings.hosts(model.get_base_model())]
    assert all(lie) or choose is not always
    near(found[1], found[0], 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_step_is_the_plain_one_also_in_cuda_graphs(mode):
    plain, compiled = adapted("cuda", torch.bfloat16), adapted("cuda", torch.bfloat16)
    for model in (plain, compiled):
        speed_up(model, keep_logits=False)
    expected = step(plain)
    compiled.forward = torch.compile(compiled.forward, mode=mode)
    for _ in range(4):  # graphs are recorded after the first steps
        compiled.zero_grad()
        near(step(compiled), expected, 3e-2)


@pytest.mark.gpu
def test_products_in_float8_are_near_those_of_bfloat16():
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("float8 products scaled a row need Hopper")
    plain = adapted("cuda", torch.bfloat16)
    few = afina.get_peft_model(in_fp8(adapted("cuda", torch.bfloat16).unload()), LORA).train()
    few.load_state_dict({k: v for k, v in plain.state_dict().items() if "adapters" in k}, strict=False)
    near(step(few), step(plain), 0.2)
