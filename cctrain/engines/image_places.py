"""Images put into their places in the text without asking the GPU where these are.

transformers' Gemma 4 drops what of an image's grid is empty, and fills the text's places with the rest, by tensors
whose size depends on values: the host waits for each, and no graph can hold them. Here the same numbers come to the
same places through tensors of fixed size: what is filled is moved to the front, and each place looks its own up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def images_in_place(model: torch.nn.Module) -> Iterator[None]:
    """Within, `model` takes its images so, if it is such a Gemma 4; `check_images` has to have seen its batch."""
    hooks = [
        module.register_forward_pre_hook(_as_embeddings, with_kwargs=True)
        for module in model.modules()
        # FSDP derives classes of its own
        if "Gemma4Model" in {base.__name__ for base in type(module).__mro__} and not _reads_tokens_per_layer(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _reads_tokens_per_layer(model: Any) -> bool:
    """Such a one wants the tokens themselves in the forward pass, not only what they are embedded as."""
    return bool(model.config.get_text_config().hidden_size_per_layer_input)


_TAKEN = ("input_ids", "pixel_values", "image_position_ids")
"""What of Gemma4Model's arguments becomes `inputs_embeds`."""


def _as_embeddings(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`input_ids` and images of Gemma4Model's forward pass, as `inputs_embeds`."""
    if any(kwargs.get(name) is None for name in _TAKEN) or kwargs.get("pixel_values_videos") is not None:
        return args, kwargs
    kwargs = dict(kwargs)
    ids, pixels, positions = (kwargs.pop(name) for name in _TAKEN)
    hook = model.vision_tower.pooler.register_forward_hook(_filled_first)
    try:
        seen = model.vision_tower(pixel_values=pixels, pixel_position_ids=positions)
    finally:
        hook.remove()
    features = model.embed_vision(inputs_embeds=seen.last_hidden_state)
    is_image = ids == model.config.image_token_id
    text = model.get_input_embeddings()(torch.where(is_image, model.config.text_config.pad_token_id, ids))
    place = (is_image.flatten().cumsum(0) - 1).clamp(min=0).view_as(ids)
    images = torch.nn.functional.embedding(place, features.to(text.dtype))
    return args, kwargs | {"inputs_embeds": torch.where(is_image.unsqueeze(-1), images, text)}


def _filled_first(_: Any, __: Any, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """A pooler's (images, places, width) and which of them are filled, as one row of all, the filled ones first; and in
    place of the mask, which the vision model indexes with, all."""
    places, is_filled = output
    order = torch.argsort(~is_filled.flatten(), stable=True)
    return places.flatten(0, 1)[order], slice(None)


def check_images(batch: Mapping[str, Any], config: Any) -> None:
    """Raises ValueError where `batch`, on the host, has not as many places in its text as its images fill, as where a
    sample was cut within an image."""
    positions, token = batch.get("image_position_ids"), getattr(config, "image_token_id", None)
    side = getattr(getattr(config, "vision_config", None), "pooling_kernel_size", None)
    if not isinstance(positions, torch.Tensor) or token is None or side is None:
        return
    num_places = int((batch["input_ids"] == token).sum())
    num_filled = int(((positions != -1).all(dim=-1).sum(dim=-1) // side**2).sum())
    if num_places != num_filled:
        raise ValueError(
            f"a batch's images fill {num_filled} places, its text has {num_places}; was a sample cut within an image? "
            "Raise data.seq_len or the collate's max_length (train.dataloader.collate_fn.max_length)"
        )
