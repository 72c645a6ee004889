"""P-tuning: virtual tokens computed by a small network from trained embeddings.

    P = MLP(E)   or   P = MLP(LSTM(E))

Liu et al. 2021, arXiv 2103.10385. Trainable (MLP, hidden h): tokens · dim + (dim + 1) h + (h + 1) h + (h + 1) dim;
LSTM: tokens · dim, a bidirectional LSTM of h, and (2 h + 1) 2 h + (2 h + 1) dim. Not mergeable. Models: any that take
`inputs_embeds`. The file holds the network too, so that training can go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.config import bounded, register
from ...core.prompts.encoder import PromptEncoder as Encoder
from ...core.prompts.encoder import PromptLearningConfig, PromptSite, embedding_of
from ...errors import ConfigError

PUBLIC = ("PromptEncoderReparameterizationType", "PromptEncoder")


class PromptEncoderReparameterizationType(str, Enum):
    """The network that computes the virtual tokens.

    Attributes:
        MLP: three linear layers.
        LSTM: a bidirectional LSTM, then two linear layers.
    """

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """Configuration of P-tuning; fields as in the reference.

    Attributes:
        encoder_reparameterization_type: the network: a `PromptEncoderReparameterizationType` or its name.
        encoder_hidden_size: hidden width; `token_dim` if None.
        encoder_num_layers: layers of the LSTM.
        encoder_dropout: dropout between them.
    """

    encoder_reparameterization_type: str | PromptEncoderReparameterizationType = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = bounded(None, ge=1)
    encoder_num_layers: int = bounded(2, ge=1, le=100)
    encoder_dropout: float = bounded(0.0, ge=0, lt=1)

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "encoder_num_layers": ("encoder_reparameterization_type", "LSTM"),
        "encoder_dropout": ("encoder_reparameterization_type", "LSTM"),
    }
    default_learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = getattr(self.encoder_reparameterization_type, "value", self.encoder_reparameterization_type)
        if kind not in ("MLP", "LSTM"):
            raise ConfigError(
                "unknown network", where="encoder_reparameterization_type", got=kind, expected="MLP or LSTM"
            )
        self.encoder_reparameterization_type = PromptEncoderReparameterizationType(kind)


@register("P_TUNING", PromptEncoderConfig)
class PromptEncoder(Encoder):
    """`embedding`: (tokens, dim); `mlp_head` and, for the LSTM, `lstm_head`."""

    def __init__(self, site: PromptSite, config: PromptEncoderConfig) -> None:
        super().__init__(site, config)
        dim, hidden = site.dim, config.encoder_hidden_size or site.dim
        self.embedding = embedding_of(site.normal(site.tokens, dim))
        self.lstm_head: nn.LSTM | None = None
        if config.encoder_reparameterization_type == PromptEncoderReparameterizationType.LSTM:
            self.lstm_head = nn.LSTM(dim, hidden, config.encoder_num_layers, dropout=config.encoder_dropout,
                                     bidirectional=True, batch_first=True)  # fmt: skip
            layers: list[Any] = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, dim)]
        else:
            layers = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)]
        self.mlp_head = nn.Sequential(*layers)
        self.to(device=site.device, dtype=site.dtype)

    def encode(self) -> Tensor:
        hidden: Tensor = self.embedding.weight
        if self.lstm_head is not None:
            hidden = self.lstm_head(hidden.unsqueeze(0))[0].squeeze(0)
        out: Tensor = self.mlp_head(hidden)
        return out
