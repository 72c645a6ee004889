"""Every format of `afina export`, written, loaded in its target and compared with the adapter, one row each.

    python -m benchmarks.exports [--run RUN] [--targets FOLDER] [NAME ...]

FOLDER has the targets' environments, as `make exports` sets them up: `llama` (node-llama-cpp), `light/bin/python`
(onnx, mlx), `vllm/bin/python`. Without a run, `tweets` is trained for 20 steps. Results are kept row by row in
benchmarks/results/exports.json; docs/exports.md has them as a table (`--page` writes it).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from afina import LoraConfig, get_peft_model
from afina.export.contract import Comparison, Subject
from afina.export.formats.all_formats import format_named
from afina.export.make import make
from afina.export.merged import encoded, logits
from afina.export.target import Environment
from afina.train.recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from afina.train.report.events import Reporter
from afina.train.tasks import named
from afina.train.tasks.base import Trained
from afina.train.use.trained import load_trained

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "exports.json"
PAGE = ROOT / "docs" / "exports.md"
MARK = "<!-- python -m benchmarks.exports --page -->"
WHERE = {"gguf": "llama", "gguf-lora": "llama", "vllm": "vllm/bin/python", "mlx": "light/bin/python",
         "onnx": "light/bin/python", "safetensors": None, "sglang": None}  # fmt: skip
ROWS = {  # name -> (format, storage)
    "safetensors": ("safetensors", None),
    "safetensors nf4": ("safetensors", "nf4"),
    **{name: (name, None) for name in ("onnx", "vllm", "sglang", "mlx", "gguf-lora")},
    **{f"gguf {s}": ("gguf", s) for s in ("f32", "f16", "bf16", "q8_0", "q4_0")},
}
SHAPES: dict[str, Callable[[], Any]] = {}


def shape(function: Callable[[], Any]) -> Callable[[], Any]:
    SHAPES[function.__name__] = function
    return function


def _sizes() -> dict[str, Any]:
    return {"vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 2,
            "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2}  # fmt: skip


@shape
def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_sizes()))


@shape
def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_sizes(), head_dim=32, tie_word_embeddings=True))


@shape
def llama3() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**_sizes(), attention_bias=True, mlp_bias=True, rope_parameters=rope))


@shape
def gemma() -> Any:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**{**_sizes(), "num_key_value_heads": 1}, head_dim=32))


@shape
def gemma2() -> Any:
    """Prompts are longer than its window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    own = {"num_hidden_layers": 4, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
    return Gemma2ForCausalLM(Gemma2Config(**{**_sizes(), **own}))


@shape
def gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}  # fmt: skip
    own = {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
           "rope_parameters": rope}  # fmt: skip
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**_sizes(), **own}))


PIECES = {"pieces of llama 2": ("LlamaTokenizer", "qwen3"), "pieces of gemma": ("GemmaTokenizer", "gemma3")}
"""Tokenizers that SentencePiece trains here: their class, and the shape of a model that has such."""


def pieces(name: str, folder: Path) -> Any:
    """A tokenizer that SentencePiece has trained on this project's pages, as transformers reads its file."""
    import sentencepiece
    from transformers import AutoTokenizer

    files = ",".join(str(path) for path in sorted((ROOT / "docs").glob("*.md")))
    kind, folder = PIECES[name][0], folder / "pieces"
    folder.mkdir(parents=True)
    own: dict[str, Any] = {"add_dummy_prefix": True, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if kind == "GemmaTokenizer":
        own = {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>",
               "eos_piece": "<eos>", "bos_piece": "<bos>",
               "user_defined_symbols": ["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n"]}  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=files, model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=1200, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.995,
        split_digits=True, minloglevel=2, **own)  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    return AutoTokenizer.from_pretrained(folder)


SPLITS = {f"tokens of {name}": name for name in ("gpt-2", "smollm", "llama-bpe", "qwen2")}
"""Ways in which tokenizers split texts, each with merges learnt here."""


def learnt(name: str) -> Any:
    """A tokenizer that splits texts in this way, with merges learnt on this project's pages."""
    from tests.train.tiny import CHAT_TEMPLATE
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from afina.export.formats.gguf_tokens import SPLITS as PATTERNS

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    before = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(name)
    if before is None:
        pattern = next(pattern for pattern, known in PATTERNS.items() if known == name)
        before = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    core = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    core.pre_tokenizer = pre_tokenizers.Sequence([*before, words]) if before else words
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<|user|>", "<|assistant|>", "<|system|>"]
    core.train([str(path) for path in sorted((ROOT / "docs").glob("*.md"))], trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    out = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    out.chat_template = CHAT_TEMPLATE
    return out


def tiny(name: str, folder: Path) -> Trained:
    """A random model of a shape with a random adapter on all its layers."""
    from tests.train.tiny import tokenizer

    torch.manual_seed(0)
    if name in SPLITS:
        tokens = learnt(SPLITS[name])
        model = SHAPES["qwen3"]()
        model.resize_token_embeddings(len(tokens))
    elif name in PIECES:
        tokens, model = pieces(name, folder), SHAPES[PIECES[name][1]]()
        model.resize_token_embeddings(len(tokens))
    else:
        tokens, model = tokenizer(), SHAPES[name]()
    for key, value in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    model = type(model).from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    recipe = Recipe(task="causal_lm", model=ModelSection(path=str(folder)), data=DataSection(train=""),
                    output=OutputSection(dir=str(folder / "run")))  # fmt: skip
    return Trained(folder / "run", recipe, named("causal_lm"), model.eval(), tokens)


@contextmanager
def anonymous_memory(out: dict[str, float]) -> Iterator[None]:
    """The growth of memory that is no mapped file, MiB, at its peak."""

    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    gc.collect()
    ended, before = threading.Event(), now()
    seen = [before]

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(now())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        out["growth_MiB"] = round(max(seen) - before)


def shards(run: Path, folder: Path) -> dict[str, Any]:
    """The memory of writing a base in shards of 60 MB, all layers adapted, beside the size of its largest shard."""
    base, out = folder / "base", folder / "merged"
    whole = load_trained(run, Reporter(), "none", dtype="auto", device="cpu")
    whole.model.unload().save_pretrained(base, max_shard_size="60MB")
    whole.tokenizer.save_pretrained(base)
    del whole
    like = load_trained(run, Reporter(), "none", str(base), dtype="auto", device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    subject = Subject(replace(like, model=model))
    writer, found = format_named("safetensors"), {}
    subject.outputs = logits(model, encoded(subject.trained))
    out.mkdir()
    with anonymous_memory(found):
        writer.write(subject, out)
    files = sorted(out.glob("*.safetensors"))
    sizes = [file.stat().st_size / 2**20 for file in files]
    return {"shards": len(files), "largest_MiB": round(max(sizes)), "model_MiB": round(sum(sizes)), **found,
            **asdict(writer.check(subject, out))}  # fmt: skip


def row(name: str, run: Path, targets: Path, folder: Path) -> dict[str, Any]:
    """One export."""
    if name == "safetensors in shards":
        return shards(run, folder)
    shape_name, _, rest = name.partition("/")
    trained = (tiny(shape_name, folder / "tiny") if rest else
               load_trained(run, Reporter(), "none", dtype="auto", device="cpu"))  # fmt: skip
    kind, storage = (rest, "f32") if rest else ROWS[name]
    where = WHERE[kind]
    environment = Environment(targets / where if where is not None else None)
    began = time.monotonic()
    found: Comparison = make(format_named(kind), Subject(trained, storage, environment), folder / "out")
    size = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
    return {**asdict(found), "bytes": size, "seconds": round(time.monotonic() - began)}


def page() -> None:
    """Renew the table of docs/exports.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARK)
    tail = rest.partition("<!-- end -->")[2]
    PAGE.write_text(f"{head}{MARK}\n\n{table()}\n<!-- end -->{tail}", encoding="utf-8")


def table() -> str:
    """All kept rows."""
    lines = ["| export | target | compared | same text | largest difference, of the largest logit | held to | size |",
             "|---|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for name, one in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"].items():
        if one.get("missing"):
            lines.append(f"| {name} | {one['target']} | nothing: {one['missing']} | | | | |")
            continue
        same = "" if one["same"] is None else f"{one['same']:.0%}"
        size = f"{one['bytes'] / 1e6:,.1f} MB" if "bytes" in one else f"{one['model_MiB']} MiB"
        if "growth_MiB" in one:
            one["what"] += (f"; memory that is no mapped file grew by {one['growth_MiB']} MiB, the largest of "
                            f"{one['shards']} shards has {one['largest_MiB']} MiB")  # fmt: skip
        held = f"{one['tolerance']:.0e}" if one["tolerance"] is not None else f"told only; {one['note']}"
        lines.append(f"| {name} | {one['target']} {one['version']} | {one['what']} | {same} | "
                     f"{one['difference']:.1e} | {held} | {size} |")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    every = [*ROWS, "safetensors in shards", *(f"{s}/{f}" for s in SHAPES for f in ("gguf", "gguf-lora")),
             *(f"{s}/gguf" for s in (*SPLITS, *PIECES))]  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(every))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--targets", type=Path, default=ROOT / ".venv-exports")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        page()
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="afina-exports-") as work:
        run = given.run or trained_here(Path(work) / "run")
        for i, name in enumerate(given.names or every):
            try:
                found = row(name, run, given.targets, Path(work) / str(i))
            except Exception as error:  # the other rows are still worth having
                print(f"{name}: {error}", flush=True)
                failed += 1
                continue
            keep(name, found)
            print(f"{name}: {json.dumps(found)}", flush=True)
    return failed


def trained_here(folder: Path) -> Path:
    words = ["train", "tweets", "dtype=float32", f"output.dir={folder}", "max_steps=20", "max_eval_rows=32"]
    subprocess.run([sys.executable, "-m", "afina", *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    return folder


def keep(name: str, found: dict[str, Any]) -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"rows": {}}
    kept["rows"][name] = found
    kept |= {"torch": torch.__version__, "run": "tweets, LoRA of rank 8 on q_proj and v_proj, 20 steps"}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
