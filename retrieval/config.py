"""Settings of the index and of the gates that a version must pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retrieval.setting import require_declared, setting


@dataclass
class IndexConfig:
    """How item vectors are indexed, and what a version must show before it goes live."""

    kind: Literal["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"] = setting(
        "ivf_fp16",
        "How lists store numbers: float32 (ivf_flat), float16 (ivf_fp16), 8 bits (ivf_sq8), or product codes of 2 bits "
        "a number that are scanned fast, the best of them ranked again by finer codes (ivf_pqfs).",
    )
    refine: Literal["fp16", "sq8"] = setting(
        "fp16", "How the finer codes of ivf_pqfs store numbers: float16 (fp16) or 8 bits (sq8)."
    )
    refine_factor: int = setting(
        32, "How many times the wanted results ivf_pqfs ranks again by the finer codes.", at_least=1
    )
    nlist: int = setting(
        0, "Number of inverted lists (0 = chosen from the size of the catalogue).", at_least=0
    )
    nprobe: int = setting(
        0, "Number of lists that a search reads (0 = the fewest that reach index.recall_target).", at_least=0
    )
    max_probe_fraction: float = setting(
        0.5, "Largest share of the lists that nprobe=0 may choose.", above=0, at_most=1
    )
    recall_k: int = setting(10, "k of the recall@k that is tuned and gated.", at_least=1)
    recall_target: float = setting(0.97, "Recall that nprobe=0 aims at.", at_most=1)
    min_recall: float = setting(0.95, "Gate: minimum recall, measured against exact search.", at_most=1)
    min_coverage: float = setting(
        0.999, "Gate: minimum share of the known items that are indexed.", at_most=1
    )
    max_imbalance: float = setting(
        16.0,
        "Gate: maximum number of items that queries scan, relative to lists of equal length (1 = equal).",
        at_least=1,
    )
    min_overlap: float = setting(
        0.0,
        "Gate: minimum share of the previous version's results that are kept (0 = off).",
        at_least=0,
        at_most=1,
    )
    max_quality_loss: float = setting(
        0.2,
        "Gate: maximum share of the live version's hit rate that may be lost on recent events (1 = off). A loss within "
        "three standard errors does not count.",
        at_least=0,
        at_most=1,
    )
    min_quality_events: int = setting(
        200, "Gate: number of recent events below which the hit rate is not compared.", at_least=2
    )
    max_delta_share: float = setting(
        0.02,
        "Share of the items that deltas may bring or delete before a full refresh is due.",
        above=0,
        at_most=1,
    )
    max_delta_drift: float = setting(
        0.005,
        "Drift of the vectors before a full refresh is due: mean of 1 - cosine between the moved items' vectors and "
        "those in the version, times their share of all items.",
        above=0,
    )
    max_delta_imbalance: float = setting(
        1.5,
        "Growth of the imbalance of the lists by the deltas' items before a full refresh is due (1 = none).",
        at_least=1,
    )
    delta_every_s: float = setting(
        0.5,
        "Seconds between deltas, which carry what changed to readers of the live version without a full refresh (0 = "
        "no deltas; none without train.publish_every_s either).",
        at_least=0,
    )
    delta_cpu_share: float = setting(
        0.05,
        "Share of a core that deltas may take from training; if one costs more, they come less often.",
        above=0,
        at_most=1,
    )
    delta_max_items: int = setting(
        500,
        "Maximum number of item vectors in a delta, over all ranks: new items first, then those that moved most. The "
        "others wait.",
        at_least=1,
    )
    versions_to_keep: int = setting(
        5, "Number of versions to keep; the live version is never removed.", at_least=1
    )
    refused_versions_to_keep: int = setting(
        2, "Number of versions to keep that failed a gate and were not promoted.", at_least=1
    )
    sample_per_list: int = setting(
        64, "Number of items per list that k-means learns from, chosen by their ids.", at_least=8
    )
    build_iterations: int = setting(10, "k-means iterations of the coarse quantizer.", at_least=1)
    warm_start_iterations: int = setting(
        2,
        "k-means iterations from the live version's centroids (0 = train from scratch). If the result fails a gate, "
        "the index is trained from scratch.",
        at_least=0,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "Where the index is built, tuned and gated; with cuda it is also searched there. auto: where the towers "
        "are, if Faiss supports GPUs.",
    )
    cache_gib: float = setting(
        20.0,
        "Maximum size in GiB of this machine's copies of versions in an object store, in addition to those in use (in "
        "$FRESHET_CACHE, or ~/.cache/freshet).",
        at_least=0,
    )
    gpu: int = setting(0, "Which of the visible GPUs to use with index.device=cuda.", at_least=0)
    gpus: int = setting(
        1, "Number of GPUs, from index.gpu on, that the items of an index are divided among.", at_least=1
    )

    def __post_init__(self) -> None:
        """Check bounds, choices, and that a version can pass the recall gate.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("index", self)
        # Tuning stops at the target: a gate above it would reject every version.
        if self.nprobe == 0 and not self.min_recall <= self.recall_target:
            raise ValueError(
                f"index.min_recall must not be above index.recall_target={self.recall_target}, got {self.min_recall!r}"
            )

    def cards(self) -> tuple[int, ...]:
        """The GPUs that hold an index, by number."""
        return tuple(range(self.gpu, self.gpu + self.gpus))

    def on_gpu(self) -> bool:
        """Whether `device` says a GPU, or leaves it open and Faiss sees one."""
        from retrieval.gpu import visible_gpus  # brings Faiss, which settings alone do not need

        return self.device == "cuda" or (self.device == "auto" and visible_gpus() > 0)
