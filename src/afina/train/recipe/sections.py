"""A recipe: the typed settings of a run, in sections. What a key means is said beside it, once, here.

`afina.train.recipe.settings` reads recipes from files and the command line.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ...devices.place import NAMES
from .task_types import DEFAULT_TASK, TaskName


class Section(BaseModel):
    """Settings are strict: no unknown keys, no coercion from text to numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ModelSection(Section):
    """The base model."""

    path: str = Field(description="hub id, folder, GGUF file, or package:NAME/path (afina.train.base.assets)")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    chat_template: str | None = Field(
        default=None, description="file with a chat template (Jinja), in place of the tokenizer's own"
    )
    new_tokens: list[str] | None = Field(
        default=None, description="tokens to add to the vocabulary; they train along (lora, trainable_tokens, full)"
    )
    image_size: int | None = Field(
        default=None,
        ge=8,
        description="pixels of a side, for models of images that take any; without it the model's own",
    )
    audio_seconds: float | None = Field(
        default=None,
        gt=0,
        description="longest sound, in seconds; a model of sounds of one length (Whisper) then takes this; without it "
        "the model's own, or 30",
    )
    language: str | None = Field(
        default=None, description="of what is said, for models with a token for each language (Whisper): welsh, or cy"
    )
    speech: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="such a model's task; translate: the texts are English, whatever is spoken"
    )
    train_text_encoder: bool = Field(
        default=False, description="of a pipeline (text_to_image): adapt what reads its captions too"
    )
    adapter: str | None = Field(default=None, description="folder or hub id of an adapter to begin from")
    adapter_as: Literal["auto", "start", "base"] = Field(
        default="auto",
        description="start: that adapter trains on; base: it is merged below a new one; auto: start where the method "
        "is its own and the task holds the model to no reference",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="of the base weights; auto: bfloat16 on a GPU, float16 on an older one; on a processor "
        "bfloat16 where it is measured to be faster",
    )
    device: str = Field(
        default="auto", pattern=NAMES, description="auto, cpu, cuda, cuda:N, mps, xpu; auto: a GPU where there is one"
    )
    quantize: Literal["none", "nf4", "fp4", "int8", "int8wo", "int4wo", "fp8"] = Field(
        default="none",
        description="storage of the frozen base: bitsandbytes' nf4 (QLoRA), fp4, int8; torchao's *wo; fp8: products in "
        "float8 (Hopper and newer)",
    )


class DataSet(Section):
    """One of several data sets."""

    path: str = Field(description="as data.train where there is one")
    weight: float = Field(
        default=1.0, gt=0, description="how often its rows come in an epoch; 0.5: half of them, drawn"
    )
    name: str | None = Field(default=None, description="what it is called in reports; without it the file's name")


class DataSection(Section):
    """Rows and how they become examples."""

    train: str | list[DataSet] = Field(
        description="file or folder of JSONL, JSON, CSV, TSV, Parquet, text; package:NAME/path, embedded:NAME/FILE or "
        "hub:NAME[/CONFIG][@SPLIT]; PATH#500 draws 500 rows; or several: [{path: ..., weight: 2, name: ...}, ...]"
    )
    eval: str | list[DataSet] | None = Field(
        default=None, description="held-out rows, or several named sets; without it eval_split are set aside"
    )
    eval_split: float = Field(
        default=0.1, ge=0, lt=1, description="share of train, of each set, held out where eval is not given"
    )
    columns: dict[str, str] | None = Field(
        default=None, description="names for the file's columns, e.g. {prompt: question, completion: answer}"
    )
    format: Literal["auto", "prompt_completion", "chat"] = Field(
        default="auto", description="auto: by the columns that the rows have"
    )
    prompt: str | None = Field(
        default=None, description="template of the prompt over the columns, e.g. 'Tweet: {text}'"
    )
    completion: str | None = Field(default=None, description="template of the answer over the columns, e.g. '{label}'")
    system: str | None = Field(
        default=None, description="system message put before prompts where a chat template is used"
    )
    chat_template: bool = Field(
        default=True, description="put prompts into the tokenizer's chat template where it has one"
    )
    turns: Literal["auto", "all", "last", "each"] = Field(
        default="auto", description="answers of a conversation to learn: all in one sequence, the last, or each in one "
        "of its own; auto: all, or each where the chat template writes earlier turns otherwise than they were answered"
    )  # fmt: skip
    strict: bool = Field(default=False, description="stop if the rows hold anything that nothing reads")
    text_column: str = Field(default="text", description="of classification rows")
    label_column: str = Field(default="label", description="of labelled rows")
    task_column: str | None = Field(
        default=None, description="column with the number of a row's task, for methods that learn several tasks"
    )
    labels: list[str] | None = Field(default=None, description="the labels in order; without it those found in train")
    instance_prompt: str | None = Field(
        default=None, description="one caption for all images, e.g. 'a photo of sks dog' (text_to_image)"
    )
    class_prompt: str | None = Field(
        default=None,
        description="DreamBooth: what the subject is one of, e.g. 'a photo of a dog', which is kept as it is",
    )
    class_images: str | None = Field(
        default=None, description="folder of images of that; without it the base makes them beforehand"
    )
    class_count: int = Field(default=100, ge=1, description="of such images that the base makes")
    max_length: int = Field(default=1024, ge=2, description="tokens; longer examples are cut at the end, and counted")
    max_train_rows: int | None = Field(default=None, ge=1, description="use only the first rows")
    max_eval_rows: int | None = Field(default=None, ge=1, description="use only the first rows")
    allow_masked: bool = Field(
        default=False, description="go on if over 1 % of the rows have no answer left after cutting"
    )


class MethodSection(BaseModel):
    """The method (`type: lora`, ...) with that method's own config fields, which its config class checks."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str = Field(default="lora", description="name of a method")

    @property
    def fields(self) -> dict[str, Any]:
        """The method's own fields as given."""
        return dict(self.model_extra or {})


class TrainingSection(Section):
    """The optimisation, in the words of transformers' TrainingArguments where they are short."""

    learning_rate: float | None = Field(default=None, gt=0, description="without it the method's own")
    batch_size: int = Field(default=8, ge=1, description="rows of a batch, in all processes together")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches per optimizer step")
    epochs: float = Field(default=1.0, gt=0, description="passes over the rows")
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps; overrides epochs")
    scheduler: str = Field(default="linear", description="learning-rate schedule: linear, cosine, constant, ...")
    warmup: float = Field(default=0.0, ge=0, description="warm-up: steps if >= 1, else share of all steps")
    layerwise_decay: float | None = Field(
        default=None, gt=0, le=1, description="learning rate times this for every layer further from the head"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping; 0 is off")
    optimizer: str = Field(default="adamw_torch", description="any name that TrainingArguments.optim takes")
    fast: bool = Field(default=True, description="fast paths with the same results; --explain says which are on")
    replay: bool = Field(
        default=True, description="on CUDA, as a fast path, record steps whose shapes come again as CUDA graphs"
    )
    compile: bool = Field(
        default=True, description="compile decoder layers, as a fast path, where the number of steps pays for it"
    )
    cache_frozen: bool = Field(
        default=False, description="keep what frozen lower layers give out, for methods that train upper ones only"
    )
    bf16: bool = Field(default=False, description="autocast to bfloat16")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    offload: Literal["none", "activations"] = Field(
        default="none",
        description="activations: what the backward pass needs waits in main memory (CUDA); less memory, more time",
    )
    group_by_length: bool | None = Field(
        default=None, description="batches of rows of like length; without it where that saves much padding"
    )
    packing: bool | None = Field(
        default=None,
        description="several rows in one sequence of max_length, kept apart (causal_lm, pretraining); without it a "
        "batch's own rows share one on GPUs where that saves padding",
    )
    loss_on_prompt: bool = Field(default=False, description="learn prompts too, not answers alone (causal_lm)")
    augment: list[Literal["flip", "crop"]] = Field(
        default_factory=list,
        description="changes of training images, drawn anew each time: flip: mirrored, one time in two; crop: a part "
        "with 0.8 to 1 of the sides",
    )
    beta: float = Field(
        default=0.1, gt=0, description="of DPO and KTO: how far the model is held to the reference; of ORPO: lambda"
    )
    workers: int = Field(default=0, ge=0, description="processes that load data")
    seed: int = Field(default=0, ge=0, description="of everything random")
    early_stopping: int | None = Field(
        default=None, ge=1, description="stop after so many held-out evaluations (evaluation.every) without a gain"
    )
    logging_steps: int = Field(default=1, ge=1, description="steps between lines of metrics.jsonl")
    save_steps: int | None = Field(
        default=None, ge=1, description="steps between checkpoints; without it one per epoch"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept, the newest ones")
    report_to: list[str] = Field(default_factory=list, description="further trackers, by transformers' names")


class RewardRule(Section):
    """A reward with a weight."""

    use: str = Field(description="exact[:COLUMN], json, format:PATTERN or FILE.py:FUNCTION")
    weight: float = Field(default=1.0, description="in the sum of all rewards")


class ReinforcementSection(Section):
    """Answers that are drawn and rewarded (task grpo)."""

    rewards: list[str | RewardRule] = Field(
        default_factory=list,
        description="what is good: exact[:COLUMN], json, format:PATTERN, FILE.py:FUNCTION; or {use: json, weight: 2}",
    )
    generations: int = Field(default=8, ge=2, description="answers drawn for a prompt; batch_size is a multiple of it")
    answer_tokens: int = Field(default=128, ge=1, description="longest answer")
    temperature: float = Field(default=1.0, gt=0, description="of the draws")
    kl: float = Field(default=0.0, ge=0, description="how far the model is held to the reference")


class DiffusionSection(Section):
    """Images that are made from noise (task text_to_image)."""

    prior_weight: float = Field(default=1.0, ge=0, description="of the loss on images of data.class_prompt")
    caption_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of rows trained without their caption, which guidance needs"
    )
    samples: list[str] = Field(default_factory=list, description="prompts whose images show how training goes")
    sample_every: int | None = Field(
        default=None, ge=1, description="steps between them; without it before and after training alone"
    )
    sample_steps: int = Field(default=25, ge=1, description="from noise to an image")
    guidance: float = Field(default=7.5, ge=1, description="how far a caption outweighs none; 1: off")


class EvaluationSection(Section):
    """The proof: held-out loss and, for labelled rows, accuracy, before and after."""

    enabled: bool = Field(default=True, description="evaluate before and after training")
    every: int | None = Field(
        default=None, ge=1, description="steps between held-out losses while training; the best checkpoint is kept"
    )
    batch_size: int = Field(default=16, ge=1, description="rows at once")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="of generated answers; without it the longest label + 3"
    )


class OutputSection(Section):
    """Where results go."""

    dir: str = Field(description="folder of the adapter, its checkpoints and its reports")


class Recipe(Section):
    """All settings of a run."""

    task: TaskName = Field(default=DEFAULT_TASK, description="what the model is trained to do")
    model: ModelSection
    data: DataSection
    method: MethodSection = Field(default_factory=MethodSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    reinforcement: ReinforcementSection = Field(default_factory=ReinforcementSection)
    diffusion: DiffusionSection = Field(default_factory=DiffusionSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    distributed: Literal["auto", "ddp", "fsdp2", "tp", "zero2", "zero3", "zero3_offload"] = Field(
        default="auto",
        description="how several processes share the model; ddp: each has all of it; fsdp2: its frozen weights are "
        "spread over them; tp: each computes a part of every layer, for all rows; zero2, zero3, zero3_offload: "
        "DeepSpeed's engine; auto: ddp where it fits a device",
    )
    output: OutputSection

    _remarks: tuple[str, ...] = PrivateAttr(())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of how the recipe was read."""
        return self._remarks
