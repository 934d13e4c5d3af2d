"""Settings of the model.

The defaults were chosen on ml100k streamed once in time order (batches of 256 events, full ranking, HR@10 over the
second half): .220 against .182 for streaming co-occurrence. Twenty source items instead of three gave the most
(.210 to .220); then the embedding rows' learning rate, ten times the towers'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "tf32", "bf16"]
"""How the towers' matrix products are computed: see `model/precision.py`."""


@dataclass
class ModelConfig:
    """CL-EPIDTN: sizes, which parts are on, and the weights of its losses."""

    dim: int = field(default=64, metadata={"help": "width of every embedding and of both towers' outputs"})
    members: int = field(
        default=1, metadata={"help": "models of dim / members columns side by side, whose scores add up"}
    )
    layers: int = field(default=2, metadata={"help": "transformer blocks of the user tower"})
    heads: int = field(default=2, metadata={"help": "attention heads; must divide dim"})
    history_length: int = field(default=50, metadata={"help": "items of history that a query sees (W)"})
    history_before: Literal["event", "time"] = field(
        default="event",
        metadata={
            "help": "what an event's history ends before: the event itself, or all of the user's events of its time "
            "(baskets: items bought together do not predict one another)"
        },
    )
    augmented_dim: int = field(default=32, metadata={"help": "width of the augmented vectors (A)"})
    max_categories: int = field(default=8, metadata={"help": "categories of an item that are read"})
    source_items: int = field(
        default=20, metadata={"help": "last items that add a source embedding to the query (0 = off)"}
    )
    source_categories: bool = field(
        default=True,
        metadata={"help": "source embeddings of the items' categories beside those of the items"},
    )
    source_gain: float = field(default=2.0, metadata={"help": "initial weight of the last source embedding"})
    source_decay: float = field(default=0.9, metadata={"help": "initial weight of each step further back"})

    transformer: bool = field(default=True, metadata={"help": "off: plain means and last items instead"})
    augmented_vectors: bool = field(default=True, metadata={"help": "augmented vectors, mimic losses"})
    user_id_embedding: bool = field(default=True, metadata={"help": "the user's id is one of the attributes"})
    state_skip: float = field(
        default=0.1, metadata={"help": "initial weight of the last state in the query (0 = no such skip)"}
    )

    similarity: Literal["cosine", "dot"] = field(
        default="cosine", metadata={"help": "cosine: both towers' outputs get unit norm"}
    )
    history_mask: Literal["past", "all"] = field(
        default="all",
        metadata={
            "help": "whose items are no negatives: those before the event, or all that the batch knows of the user"
        },
    )
    loss: Literal["softmax", "pointwise"] = field(
        default="softmax",
        metadata={
            "help": "main loss: softmax over the step's candidates (Eq. 25), or labels of single pairs (Eq. 14)"
        },
    )
    temperature: float = field(default=0.15, metadata={"help": "of the main loss"})
    logq_strength: float = field(default=1.0, metadata={"help": "0 = no sampling correction, 1 = all of it"})
    uniform_negatives: int = field(
        default=500, metadata={"help": "uniform catalogue items added to every step's candidates"}
    )
    dropout: float = field(default=0.1, metadata={"help": "on hidden layers, in training"})
    input_mask_ratio: float = field(
        default=0.1, metadata={"help": "share of history items replaced by MASK in the main loss's input"}
    )
    init_std: float = field(default=0.02, metadata={"help": "of new embedding rows and of the linear layers"})

    mimic_user_weight: float = field(default=1.0, metadata={"help": "lambda 1, Eq. 4"})
    mimic_item_weight: float = field(default=1.0, metadata={"help": "lambda 2, Eq. 5"})

    contrastive_weight: float = field(default=0.02, metadata={"help": "alpha of Eq. 20 (0 = off)"})
    contrastive_sequence_weight: float = field(default=1.0, metadata={"help": "of Eq. 22 inside alpha"})
    contrastive_attribute_weight: float = field(default=1.0, metadata={"help": "of Eq. 23 inside alpha"})
    contrastive_item_weight: float = field(default=1.0, metadata={"help": "of Eq. 24 inside alpha"})
    contrastive_temperature: float = field(default=0.5, metadata={"help": "of all three contrastive losses"})
    contrastive_items: Literal["targets", "candidates"] = field(
        default="targets", metadata={"help": "which items Eq. 24 runs over"}
    )
    negative_sequence: Literal["explicit", "older_half"] = field(
        default="explicit",
        metadata={
            "help": "h⁻ of Eq. 21: what the user disliked, or (as the paper says) the older half of what they liked"
        },
    )
    sequence_mask_ratio: float = field(default=0.3, metadata={"help": "of history items in a sequence view"})
    attribute_mask_ratio: float = field(default=0.3, metadata={"help": "of attributes in a user view"})
    item_mask_ratio: float = field(
        default=0.3, metadata={"help": "chance that an item view hides its id or its categories"}
    )
    view_dropout: float = field(default=0.3, metadata={"help": "on the inputs of user and item views"})

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name in (
            "dim",
            "members",
            "layers",
            "heads",
            "history_length",
            "augmented_dim",
            "max_categories",
        ):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        for name in ("temperature", "contrastive_temperature", "init_std"):
            self._require(name, getattr(self, name) > 0, "be positive")
        for name in _NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, "not be negative")
        for name in _RATIOS:
            self._require(name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        self._require("logq_strength", 0 <= self.logq_strength <= 1, "be in [0, 1]")
        self._require("members", self.dim % self.members == 0, f"divide model.dim={self.dim}")
        columns = self.dim // self.members
        split = f"model.dim={self.dim}" if self.members == 1 else f"model.dim / model.members = {columns}"
        self._require("heads", columns % self.heads == 0, f"divide {split}")
        self._require(
            "negative_sequence",
            self.negative_sequence in ("explicit", "older_half"),
            "be explicit or older_half",
        )
        self._require("history_before", self.history_before in ("event", "time"), "be event or time")
        self._require("history_mask", self.history_mask in ("past", "all"), "be past or all")
        self._require("loss", self.loss in ("softmax", "pointwise"), "be softmax or pointwise")
        self._require("similarity", self.similarity in ("cosine", "dot"), "be cosine or dot")
        self._require(
            "contrastive_items",
            self.contrastive_items in ("targets", "candidates"),
            "be targets or candidates",
        )

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"model.{name} must {what}, got {getattr(self, name)!r}")


_RATIOS = (
    "dropout",
    "input_mask_ratio",
    "sequence_mask_ratio",
    "attribute_mask_ratio",
    "item_mask_ratio",
    "view_dropout",
)
_NOT_NEGATIVE = (
    "uniform_negatives",
    "source_items",
    "source_decay",
    "source_gain",
    "state_skip",
    "mimic_user_weight",
    "mimic_item_weight",
    "contrastive_weight",
    "contrastive_sequence_weight",
    "contrastive_attribute_weight",
    "contrastive_item_weight",
)
