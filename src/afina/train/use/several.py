"""Several adapters on one base, answering side by side in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ..answers.generate import Sampling, left_padded, stream
from ..base.base_model import base_location, load_tokenizer, settled
from ..data.encode import token_ids
from ..data.prompts import Prompter
from ..recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from ..report.events import Progress, Reporter
from ..tasks import named
from .trained import recipe_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE = "base"
"""The name under which the base model without an adapter answers."""


@dataclass
class Several:
    """A base with several adapters.

    Attributes:
        model: the `PeftModel`, in eval mode.
        tokenizer: the base's.
        prompters: an answering name (an adapter's, or `BASE`) -> what renders its prompts.
        histories: the same names -> the messages so far.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    prompters: dict[str, Prompter]
    histories: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def adapters(self) -> list[str]:
        """The adapters' names."""
        return [n for n in self.prompters if n != BASE]

    @property
    def alone(self) -> list[str]:
        """Adapters that decide over a whole batch, so that they cannot share it with others."""
        from ...core.hosts.routing import routers

        tuner = self.model.base_model
        return [n for n in self.adapters if n in tuner.prompt_encoder or n in routers(tuner)]

    def asked(self, name: str, text: str, raw: bool = False) -> str:
        """A message as `name` reads it, after what was said before; it is remembered."""
        prompter = self.prompters[name]
        history = self.histories.setdefault(name, [])
        if prompter.data.prompt is not None or not prompter.chats:
            history.clear()  # trained on single messages
        history.append({"role": "user", "content": text if raw else prompter.asked(text)})
        return prompter.conversation(list(history))

    def answered(self, name: str, text: str) -> None:
        """Remember an answer."""
        self.histories[name].append({"role": "assistant", "content": self.prompters[name].remembered(text)})

    def one(self, name: str, text: str, *, sampling: Sampling, raw: bool, on_text: Callable[[str], None]) -> str:
        """The answer of one name; `on_text` gets its pieces as they come."""
        prompt = self.asked(name, text, raw)
        if name != BASE:
            self.model.set_adapter(name, inference_mode=True)
        with self.model.disable_adapter() if name == BASE else nullcontext():
            answer = stream(self.model, self.prompters[name], prompt, sampling=sampling, on_text=on_text)
        self.answered(name, answer)
        return answer

    def all(self, text: str, *, sampling: Sampling, raw: bool = False) -> dict[str, str]:
        """The answers of the base and of every adapter, from one batch (those of `alone` one by one)."""
        import torch

        alone = self.alone
        together = [n for n in self.prompters if n not in alone]
        prompts = {n: self.asked(n, text, raw) for n in together}
        encoded = [token_ids(self.prompters[n], p, first=True) for n, p in prompts.items()]
        inputs = left_padded(encoded, self.tokenizer.pad_token_id, self.model.device)
        rows = ["__base__" if n == BASE else n for n in together]
        with torch.no_grad():
            options = sampling.options(self.model, self.prompters[BASE])
            tokens = self.model.generate(**inputs, **options, adapter_names=rows)
        out = {}
        for name, row in zip(together, tokens[:, inputs["input_ids"].shape[1] :], strict=True):
            out[name] = self.prompters[name].decoded(row)
            self.answered(name, out[name])
        for name in alone:
            out[name] = self.one(name, text, sampling=sampling, raw=raw, on_text=lambda piece: None)
        return {n: out[n] for n in self.prompters}


def load_several(
    base: str, adapters: Mapping[str, Path], reporter: Reporter, storage: str | None = None, *, device: str = "auto"
) -> Several:
    """Load a base model and adapters by name.

    Args:
        base: a folder, GGUF file, hub id or package reference.
        storage: of the base (`model.quantize`).
        device: where they answer.

    Raises:
        RecipeError: no such base or device, a name that cannot be used, or an adapter that does not generate text.
        CheckpointError: an adapter is damaged or for another base.
    """
    from ...core.combine.folder import load_adapters
    from ...core.model.peft_model import PeftModel

    if BASE in adapters:
        raise RecipeError("this name is the base model's", got=f"{BASE}={adapters[BASE]}", expected="another name")
    recipes = {name: recipe_of(folder, base) for name, folder in adapters.items()}
    other = next((n for n, r in recipes.items() if not named(r.task).fast), None)
    if other is not None:
        raise RecipeError("only language models answer side by side", where=other, got=recipes[other].task,
                          fix=f"afina chat {adapters[other]}")  # fmt: skip
    on_top = next((n for n, r in recipes.items() if r.model.adapter_as == "base"), None)
    if on_top is not None:
        raise RecipeError("this adapter stands on another one", where=on_top, got=recipes[on_top].model.adapter,
                          fix=f"afina chat {adapters[on_top]}")  # fmt: skip
    section = ModelSection.model_validate({"path": base, **({} if storage is None else {"quantize": storage})})
    plain = Recipe(model=section, data=DataSection(train=""), output=OutputSection(dir=""))
    location = base_location(section, reporter)
    section.device = settled(device, location, reporter)
    tokenizer = load_tokenizer(location, section, reporter)
    first, *others = adapters
    loaded = named(plain.task).load(section, location, None, tokenizer)
    model = PeftModel.from_pretrained(loaded, adapters[first], first)

    def progress(done: int, total: int) -> None:
        reporter.progress(Progress("loading adapters", done, total))

    load_adapters(model, {n: adapters[n] for n in others}, progress=progress)
    model.eval()
    data = {BASE: plain.data, **{n: r.data for n, r in recipes.items()}}
    return Several(model, tokenizer, {n: Prompter(d, tokenizer) for n, d in data.items()})
