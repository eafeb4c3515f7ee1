"""Attention over packed rows document by document: what lies in another document is not computed to be masked.

AutoModel packs for torch's sdpa with a mask of pairs (rows, 1, sequence, sequence): the host makes and sends a byte for
each pair, and attention takes a slower kernel over whole rows. torch's flash attention takes the documents' boundaries.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import torch

from cctrain.engines.replicas import unwrapped

_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models whose layers hand what a batch brings down to transformers' attention function. In one that does not,
documents would see each other without a word."""
_WIDEST_HEAD = 256
"""Of torch's flash attention."""


def attend_by_documents(recipe: Any) -> bool:
    """Have sdpa, in this process, attend by the boundaries that a batch of `steps.batches.by_documents` brings. Returns
    whether the model of `recipe` may be given such batches: one whose every layer sees all that came before."""
    model = unwrapped(recipe.model_parts[0])
    parameter = next(model.parameters())
    is_fast = parameter.device.type == "cuda" and parameter.dtype in (torch.bfloat16, torch.float16)
    if not is_fast or recipe._get_cp_group_size() > 1 or not sees_all(getattr(model, "config", None)):
        return False
    _register()
    return True


def sees_all(config: Any) -> bool:
    """Whether attention of a model so configured is causal over whole documents, by sdpa, and nothing else."""
    if getattr(config, "model_type", None) not in _MODELS or getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    others = ("sliding_window", "attn_logit_softcapping", "attention_dropout")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width <= _WIDEST_HEAD and not kinds and not any(getattr(config, name, None) for name in others)


@functools.cache
def _register() -> None:
    """Once a process: transformers' function for sdpa, with another way for batches that bring boundaries."""
    functions: Any = importlib.import_module("transformers.modeling_utils").AttentionInterface
    sdpa: Any = functions()["sdpa"]
    varlen: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    takes = inspect.signature(varlen).parameters
    options = {"enable_gqa": True} if "enable_gqa" in takes else {}  # in torch 2.11 a matter of course

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        # query (rows, heads, sequence, width), key and value of fewer heads; returns (rows, sequence, heads, width)
        boundaries = kwargs.get("cu_seq_lens_q")
        if boundaries is None:
            return sdpa(module, query, key, value, attention_mask, **kwargs)
        flat = [one.transpose(1, 2).flatten(0, 1) for one in (query, key, value)]
        most, scale = kwargs["max_length_q"], kwargs.get("scaling")
        output = varlen(*flat, boundaries, boundaries, most, most, scale=scale, window_size=(-1, 0), **options)
        return output.unflatten(0, (query.shape[0], query.shape[2])), None

    functions.register("sdpa", attention)
