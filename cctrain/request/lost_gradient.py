"""A loss of AutoModel's own in the training, of which a user should know though it costs no time."""

from __future__ import annotations

from cctrain.config import Config, Engine, StepKind
from cctrain.request.checks import Layout
from cctrain.request.graphed import step_chosen


def lost_gradient(config: Config, layout: Layout) -> str | None:
    """A note for a request whose embedding may train by a part of its gradient, or None. Its source is the entry of
    that name in docs/evidence/README.md; frozen embeddings have no gradient to lose."""
    is_frozen = config.train.get("peft") or (config.train.get("freeze_config") or {}).get("freeze_language_model")
    may_be_stock = step_chosen(config, layout)[0] is not StepKind.graphed
    is_parallel = (config.train.get("distributed") or {}).get("sequence_parallel")
    if config.engine.name is not Engine.automodel or not may_be_stock or layout.tensor == 1 or is_frozen or is_parallel:
        return None
    return (
        "AutoModel's own step trains the embedding by a part of its gradient in full fine-tuning under tensor "
        "parallelism (seen with 0.7's Llama and torch 2.13, on CPUs: docs/evidence/README.md). Times are not affected; "
        "step=graphed, where it can be recorded, has all of it"
    )
