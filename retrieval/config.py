"""Settings of the index and of the gates that a version must pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

KINDS = ("ivf_flat", "ivf_fp16", "ivf_sq8")


@dataclass
class IndexConfig:
    """How item vectors are indexed, and what a version must show before it goes live."""

    kind: Literal["ivf_flat", "ivf_fp16", "ivf_sq8"] = field(
        default="ivf_fp16", metadata={"help": "how a list stores numbers: in float32, float16, or 8 bits"}
    )
    nlist: int = field(default=0, metadata={"help": "inverted lists (0 = from the catalogue's size)"})
    nprobe: int = field(
        default=0, metadata={"help": "lists searched (0 = the fewest that reach index.recall_target)"}
    )
    max_probe_fraction: float = field(default=0.5, metadata={"help": "most lists that nprobe=0 may choose"})
    recall_k: int = field(default=10, metadata={"help": "k of the recall that is tuned and gated"})
    recall_target: float = field(default=0.97, metadata={"help": "recall that nprobe=0 aims at"})
    min_recall: float = field(default=0.95, metadata={"help": "gate: recall against exact search"})
    min_coverage: float = field(default=0.999, metadata={"help": "gate: share of the known items indexed"})
    max_imbalance: float = field(
        default=16.0,
        metadata={"help": "gate: items that queries scan, against lists of equal length (1 = as even lists)"},
    )
    min_overlap: float = field(
        default=0.0, metadata={"help": "gate: share of the last version's results that are kept (0 = off)"}
    )
    versions_to_keep: int = field(
        default=5, metadata={"help": "older versions are removed, never the live one"}
    )
    cache_gib: float = field(
        default=20.0,
        metadata={
            "help": "most GiB on this machine for copies of versions that lie in an object store, beyond those in use "
            "(in $FRESHET_CACHE, else ~/.cache/freshet)"
        },
    )
    build_iterations: int = field(default=10, metadata={"help": "k-means iterations of the coarse quantizer"})
    warm_start_iterations: int = field(
        default=0, metadata={"help": "iterations from the live version's centroids (0 = train from scratch)"}
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        default="auto",
        metadata={
            "help": "where the index is built, tuned and gated, and with `cuda` also searched (auto = where the towers "
            "are, if Faiss has GPUs)"
        },
    )
    gpu: int = field(default=0, metadata={"help": "which of the visible GPUs, with index.device=cuda"})

    def on_gpu(self) -> bool:
        """Whether `device` says a GPU, or leaves it open and Faiss sees one."""
        from retrieval.gpu import visible_gpus  # brings Faiss, which settings alone do not need

        return self.device == "cuda" or (self.device == "auto" and visible_gpus() > 0)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        _require("kind", self.kind, self.kind in KINDS, f"be one of {', '.join(KINDS)}")
        _require("device", self.device, self.device in ("auto", "cpu", "cuda"), "be auto, cpu or cuda")
        for name in ("nlist", "nprobe", "min_overlap", "warm_start_iterations", "gpu", "cache_gib"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "not be negative")
        for name in ("recall_k", "versions_to_keep", "build_iterations", "max_imbalance"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "be at least 1")
        for name in ("recall_target", "min_recall", "min_coverage", "min_overlap"):
            _require(name, getattr(self, name), getattr(self, name) <= 1, "be at most 1")
        _require(
            "max_probe_fraction", self.max_probe_fraction, 0 < self.max_probe_fraction <= 1, "be in (0, 1]"
        )
        # Tuning stops at the target: a gate above it would refuse every version.
        reachable = self.nprobe > 0 or self.min_recall <= self.recall_target
        _require(
            "min_recall", self.min_recall, reachable, f"not be above index.recall_target={self.recall_target}"
        )


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"index.{name} must {what}, got {value!r}")
