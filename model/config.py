"""Settings of the model.

The defaults were chosen on ml100k streamed once in time order (batches of 256 events, full ranking, HR@10 over the
second half): .220 against .182 for streaming co-occurrence. Twenty source items instead of three gave the most
(.210 to .220); then the embedding rows' learning rate, ten times the towers'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.setting import require_declared, setting

Precision = Literal["fp32", "tf32", "bf16"]
"""How the towers' matrix products are computed: see `model/precision.py`."""


@dataclass
class ModelConfig:
    """CL-EPIDTN: its sizes, the parts that are on, and the weights of its losses."""

    dim: int = setting(64, "Width of every embedding and of both towers' outputs.", at_least=1)
    members: int = setting(
        1,
        "Number of models side by side, each with dim / members columns; their scores are added.",
        at_least=1,
    )
    layers: int = setting(2, "Transformer blocks of the user tower.", at_least=1)
    heads: int = setting(2, "Attention heads. Must divide model.dim / model.members.", at_least=1)
    history_length: int = setting(
        50,
        "W: items of history that a query sees. Follows stream.history_length unless it is set.",
        at_least=1,
    )
    history_before: Literal["event", "time"] = setting(
        "event",
        "Where an event's history ends: before the event itself, or before all of the user's events with the same "
        "time (for baskets: items that are bought together do not predict one another).",
    )
    augmented_dim: int = setting(32, "A: width of the augmented vectors.", at_least=1)
    max_categories: int = setting(8, "Categories of an item that the model reads.", at_least=1)
    source_items: int = setting(
        20, "The last items of the history that add a source embedding to the query (0 = off).", at_least=0
    )
    source_categories: bool = setting(True, "Add source embeddings of the items' categories too.")
    source_gain: float = setting(2.0, "Initial weight of the most recent source embedding.", at_least=0)
    source_decay: float = setting(0.9, "Initial factor of the weight for each step further back.", at_least=0)

    transformer: bool = setting(True, "Use the transformer; off: plain means and the last items instead.")
    augmented_vectors: bool = setting(True, "Use augmented vectors and their mimic losses.")
    user_id_embedding: bool = setting(True, "Use the user's id as one of the attributes.")
    state_skip: float = setting(
        0.1, "Initial weight of the skip from the last state to the query (0 = no skip).", at_least=0
    )

    similarity: Literal["cosine", "dot"] = setting(
        "cosine", "Score of a user and an item; with cosine, the outputs of both towers have unit norm."
    )
    history_mask: Literal["past", "all"] = setting(
        "all",
        "Which of the user's items are not used as negatives: those before the event, or all that the batch knows.",
    )
    loss: Literal["softmax", "pointwise"] = setting(
        "softmax",
        "Main loss: softmax over the step's candidates (Eq. 25), or labels of single pairs (Eq. 14).",
    )
    temperature: float = setting(0.15, "Temperature of the main loss.", above=0)
    logq_strength: float = setting(
        1.0, "Strength of the sampling correction (logQ): 0 = none, 1 = full.", at_least=0, at_most=1
    )
    uniform_negatives: int = setting(
        500, "Items drawn uniformly from the catalogue and added to the candidates of every step.", at_least=0
    )
    dropout: float = setting(0.1, "Dropout on hidden layers in training.", at_least=0, below=1)
    input_mask_ratio: float = setting(
        0.1,
        "Share of the history's items that MASK replaces in the input of the main loss.",
        at_least=0,
        below=1,
    )
    init_std: float = setting(
        0.02, "Standard deviation of new embedding rows and of the initial linear layers.", above=0
    )

    mimic_user_weight: float = setting(1.0, "λ₁: weight of the user's mimic loss (Eq. 4).", at_least=0)
    mimic_item_weight: float = setting(1.0, "λ₂: weight of the item's mimic loss (Eq. 5).", at_least=0)

    contrastive_weight: float = setting(
        0.02, "α: weight of the contrastive losses (Eq. 20; 0 = off).", at_least=0
    )
    contrastive_every: int = setting(
        2,
        "Steps for one that takes the contrastive losses, with this many times their weight (1 = every step).",
        at_least=1,
    )
    contrastive_sequence_weight: float = setting(
        1.0, "Weight of the sequence loss (Eq. 22) among the contrastive losses.", at_least=0
    )
    contrastive_attribute_weight: float = setting(
        1.0, "Weight of the attribute loss (Eq. 23) among the contrastive losses.", at_least=0
    )
    contrastive_item_weight: float = setting(
        1.0, "Weight of the item loss (Eq. 24) among the contrastive losses.", at_least=0
    )
    contrastive_temperature: float = setting(0.5, "Temperature of all three contrastive losses.", above=0)
    contrastive_items: Literal["targets", "candidates"] = setting(
        "targets", "Items that the item loss (Eq. 24) is computed over."
    )
    negative_sequence: Literal["explicit", "older_half"] = setting(
        "explicit",
        "h⁻ of Eq. 21: the items that the user disliked, or (as in the paper) the older half of those they liked.",
    )
    sequence_mask_ratio: float = setting(
        0.3, "Share of the history's items that are masked in a sequence view.", at_least=0, below=1
    )
    attribute_mask_ratio: float = setting(
        0.3, "Share of the attributes that are masked in a user view.", at_least=0, below=1
    )
    item_mask_ratio: float = setting(
        0.3, "Probability that an item view hides its id or its categories.", at_least=0, below=1
    )
    view_dropout: float = setting(0.3, "Dropout on the inputs of user and item views.", at_least=0, below=1)

    def takes_contrastive(self, step: int) -> bool:
        """Whether a step, from 0, takes the contrastive losses (`contrastive_every`)."""
        return step % self.contrastive_every == 0

    def __post_init__(self) -> None:
        """Check bounds, choices, and that sizes divide one another.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("model", self)
        if self.dim % self.members:
            raise ValueError(f"model.members must divide model.dim={self.dim}, got {self.members}")
        columns = self.dim // self.members
        if columns % self.heads:
            split = f"model.dim={self.dim}" if self.members == 1 else f"model.dim / model.members = {columns}"
            raise ValueError(f"model.heads must divide {split}, got {self.heads}")
