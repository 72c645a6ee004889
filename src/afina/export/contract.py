"""The contract of a format: what it can hold, how it is written, and how it is compared in what loads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from ..core.inject.slots import output_head, plain_module, tied_slots
from ..errors import NotMergeable
from ..train.answers.generate import keep_ends
from ..train.data.prompts import Prompter
from ..train.tasks.base import Known, Trained
from .factors import Factor, class_fault, factors_of, merge_fault
from .said import NEW_TOKENS, TEXTS, Held, Said, held, say
from .target import Environment

MERGED, LOW_RANK, ANY = "merged", "low-rank", "any"
"""What formats hold."""
_STORAGES = {"float64": "f32", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
TOLERANCES: Mapping[str, float] = {"f32": 1e-3, "f16": 5e-2, "bf16": 5e-2, "q8_0": 5e-2, "q4_0": 0.3}
"""Largest difference of logits over their largest size that storages may make: float32 sums in another order; what
16, 8 and 4 bits round away, over tens of layers."""


@dataclass(frozen=True)
class Comparison:
    """How an export compares with the adapter, in the program that it is made for.

    Attributes:
        target: that program.
        version: of the program; None where it was not run.
        what: what was compared, in words.
        same: share of the prompts with the same greedy text.
        difference: relative to the largest logit, the largest difference of logits or log-probabilities where the
            target gives them, and the most by which the adapter's logit of a token that the target chose is below that
            of its own choice.
        logprob: largest difference of the log-probabilities of the chosen tokens, where the target gives them.
        tolerance: what the difference was held to; None where it is only told.
        missing: why nothing was compared; None where something was.
        note: what else is to be known.
    """

    target: str
    version: str | None = None
    what: str = ""
    same: float | None = None
    difference: float | None = None
    logprob: float | None = None
    tolerance: float | None = None
    missing: str | None = None
    note: str | None = None


@dataclass
class Subject:
    """A trained adapter, or a model that was trained as a whole, which is to be exported.

    Attributes:
        trained: the adapter on its base, or that model.
        storage: how the format stores numbers, as `--dtype` says; None for the format's own.
        environment: where the target is installed.
        prompts, new_tokens: how much text is compared.
        outputs: what the adapter gives for whole inputs, where a format compares those.
        licence: as the hub writes it, where a card is written.
        hub_base: the base's id there, where the recipe does not say it.
        note: what was done to the adapter before.
        base_storage: how the base stores numbers, as `TOLERANCES` names it.
    """

    trained: Trained
    storage: str | None = None
    environment: Environment = field(default_factory=Environment)
    prompts: int = len(TEXTS)
    new_tokens: int = NEW_TOKENS
    outputs: list[Any] | None = None
    licence: str | None = None
    hub_base: str | None = None
    note: str | None = None
    base_storage: str = field(init=False)

    def __post_init__(self) -> None:
        """Merging and writing may change the model's dtype."""
        self.base_storage = _STORAGES.get(str(self.base.dtype).removeprefix("torch."), "bf16")

    @property
    def tolerance(self) -> float:
        """What the base's own dtype lets two programs differ by."""
        return TOLERANCES[self.base_storage]

    @property
    def name(self) -> str:
        """The adapter's."""
        return str(self.trained.model.active_adapter)

    @property
    def base(self) -> Any:
        """The model below, with hosts in it as long as nothing was merged."""
        return self.trained.model.get_base_model() if self.trained.is_adapter else self.trained.model

    @cached_property
    def said(self) -> Said:
        """What the adapter says; taken before anything is merged."""
        return say(self.trained, self.prompts, self.new_tokens)

    @cached_property
    def merged(self) -> Any:
        """The plain model with the adapter folded in; from then on `trained.model` has no adapter any more.

        Raises:
            NotMergeable: the method has no merged form for this model.
        """
        if self.trained.task.streams:
            _ = self.said
        model = self.trained.model
        if self.trained.is_adapter:
            model = model.merge_and_unload(safe_merge=True)
        if self.trained.task.streams:
            keep_ends(model, self.trained.prompter)
        return model

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """Module path -> the low-rank update there.

        Raises:
            NotMergeable: the adapter is more than that.
        """
        return factors_of(self.trained.model, self.name)

    def held(self, told: Mapping[str, Any]) -> Held:
        """What a target's program told, held against the adapter."""
        model = self.__dict__.get("merged", self.trained.model)
        logprobs = told.get("logprobs")
        if logprobs is not None:  # JSON has no infinity
            logprobs = [[-inf if value is None else value for value in row] for row in logprobs]
        last = None
        if told.get("last") is not None:
            import torch

            last = [torch.tensor(row) for row in told["last"]]
        return held(model, self.said, told["ids"], logprobs, last)


class Format(ABC):
    """What an adapter can be exported to.

    Attributes:
        name: as `--to` names it.
        target: the program that loads it.
        holds: `MERGED` models, `LOW_RANK` updates, or adapters of `ANY` method.
        storages: what `--dtype` may be; the first is what is taken without it.
        writes: whether only models that write text can be held.
        module: what has to be installed for the comparison.
        program: the file of `programs` that does it.
        packages: what has to be installed here for writing.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    holds: ClassVar[str]
    storages: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[bool] = True
    module: ClassVar[str]
    program: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def foreseen(self, known: Known, *, as_lora: bool = False) -> str | None:
        """Why the target cannot hold this adapter, as far as its files tell; None if it may.

        Args:
            as_lora: whether LoRA is made of it first.
        """
        if self.writes and not known.task.streams:
            return f"{self.target} is given models that write after a prompt, not {known.task.name}"
        if self.holds == MERGED:
            return class_fault(known.folder) if known.is_adapter and not as_lora else None
        if not known.is_adapter:
            return "the whole model was trained, and there is no adapter"
        below = known.recipe.model
        if below.adapter is not None and below.adapter_as == "base":
            return "it stands on another adapter, which would be left out"
        return None

    def unread(self, prompter: Prompter) -> str | None:
        """Why the target cannot read texts as the adapter does; None if it can, or reads none."""
        return None

    def shared_head(self, subject: Subject) -> str | None:
        """Why an update of a head that shares the embedding's weight is refused: programs keep no layer there."""
        head = plain_module(output_head(subject.base))
        if not any(plain_module(s.module) is head for s in tied_slots(subject.base)):
            return None
        at = next((p for p in subject.factors if plain_module(subject.base.get_submodule(p)) is head), None)
        return None if at is None else f"{at}: the base's head is its embedding, where {self.target} has no layer"

    def refusal(self, subject: Subject) -> str | None:
        """Why the target cannot hold this adapter; None if it can."""
        found = Format.foreseen(self, subject.trained, as_lora=True)  # its class was looked at, or LoRA was made of it
        if found is not None:
            return found
        if self.holds == MERGED:
            return merge_fault(subject.trained.model, subject.name) if subject.trained.is_adapter else None
        if self.holds == ANY:
            return None
        try:
            _ = subject.factors
        except NotMergeable as error:
            return f"{self.target} holds low-rank updates of linear layers; {error.where}: {error.what}"
        return None

    @abstractmethod
    def write(self, subject: Subject, folder: Path) -> None:
        """Write the export into an empty folder."""

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """Load the export in its target and compare what it says with the adapter.

        Raises:
            MergeError: the target cannot load it.
        """
        missing = subject.environment.lacks(self.module, self.program)
        if missing is not None:
            return Comparison(self.target, missing=missing)
        said = subject.said
        told = subject.environment.run(self.program, {
            "folder": folder, "prompts": said.prompts, "prompt_ids": said.prompt_ids,
            "new_tokens": len(said.ids[0]), **self.task(subject, folder),
        })  # fmt: skip
        return self.compared(subject, told)

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """What the program is told beside the prompts."""
        return {}

    def compared(self, subject: Subject, told: Mapping[str, Any]) -> Comparison:
        """The comparison of what the program said."""
        found, said = subject.held(told), subject.said
        what = f"greedy text of {len(said.ids)} prompts, {len(said.ids[0])} tokens each"
        if told.get("prompt_ids") is not None:
            odd = sum(list(a) != list(b) for a, b in zip(said.prompt_ids, told["prompt_ids"], strict=True))
            what += f"; their tokens ({odd} differ)" if odd else "; their tokens (all the same)"
        if found.logits is not None:
            what += "; logits behind the prompts"
        if found.logprob is not None:
            what += "; log-probabilities of the text"
        difference = float("inf") if "differ)" in what else found.difference
        return Comparison(self.target, str(told["version"]), what, found.same, difference, found.logprob,
                          max(TOLERANCES[self.storage(subject)], subject.tolerance))  # fmt: skip

    def storage(self, subject: Subject) -> str:
        """How numbers are stored, as `TOLERANCES` names it."""
        return subject.storage or subject.base_storage
