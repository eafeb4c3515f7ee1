"""Images of Gemma 4 put into their text by tensors of fixed size: the same model, and no question to the device."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

IMAGE = 7
GRID = 4
"""Places of an image's grid a side; a patch is a third of it."""
MOST_PLACES = 20
"""Of an image, of which it fills 16 or 8."""


@pytest.fixture(scope="module")
def stock():
    """Two layers of text and two of vision, of which the text one learns, and so does what maps images into it."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    from cctrain.packaged import RECIPES

    config = Gemma4Config.from_pretrained(str(RECIPES / "models" / "tiny-gemma-4"))
    torch.manual_seed(0)
    model = Gemma4ForConditionalGeneration(config).float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.05)
    model.model.vision_tower.requires_grad_(False)
    return model


@pytest.fixture
def freed(stock):
    from cctrain.engines.image_places import images_in_place

    model = copy.deepcopy(stock)
    with images_in_place(model):
        yield model


def make_batch(stock, heights=(GRID, GRID // 2)):
    """Two rows, each with an image of `heights` by four places, and text around it."""
    side = stock.config.vision_config.pooling_kernel_size
    patch = 3 * stock.config.vision_config.patch_size**2
    draw = torch.Generator().manual_seed(1)
    most = MOST_PLACES * side**2
    positions = torch.full((len(heights), most, 2), -1)
    ids = torch.randint(20, 60, (len(heights), 40), generator=draw)
    for row, height in enumerate(heights):
        grid = [(x, y) for y in range(height * side) for x in range(GRID * side)]
        positions[row, : len(grid)] = torch.tensor(grid)
        ids[row, 3 + row : 3 + row + height * GRID] = IMAGE
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.rand(len(heights), most, patch, generator=draw),
        "image_position_ids": positions,
    }


def learned(model, batch):
    """Logits, and the gradients of their sum of squares by name."""
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().mean().backward()
    return logits.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("heights", [(GRID, GRID), (GRID, GRID // 2)])
def test_logits_and_gradients_are_those_of_the_model_as_it_was(stock, freed, heights):
    batch = make_batch(stock, heights)
    logits, gradients = learned(stock, batch)
    found, found_gradients = learned(freed, batch)
    torch.testing.assert_close(found, logits)
    assert "model.embed_vision.embedding_projection.weight" in gradients
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, msg=name)


def test_what_is_learned_from_a_padded_batch_is_the_same(freed):
    from cctrain.steps.batches import padded, unmasked

    model = freed.double()
    batch = make_batch(model)
    batch |= {"labels": batch["input_ids"].clone(), "pixel_values": batch["pixel_values"].double()}
    for filler in (0, 21):
        longer = unmasked(padded(batch, (64,)))
        longer["input_ids"][:, 40:] = filler
        gradients = [taught(model, one) for one in (batch, longer)]
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            error = (gradients[1][name] - gradient).norm() / gradient.norm()
            assert error < 1e-6, name  # the model computes its norms and rotations in float32


def taught(model, batch):
    """Gradients of the loss on the batch's labels, by name."""
    model.zero_grad()
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_an_image_does_change_the_logits(stock, freed):
    batch = make_batch(stock)
    other = batch | {"pixel_values": 1 - batch["pixel_values"]}
    assert not torch.allclose(freed(**batch).logits, freed(**other).logits)


def test_afterwards_and_with_videos_the_model_is_as_it_was(stock):
    from cctrain.engines.image_places import images_in_place

    model = copy.deepcopy(stock)
    cut = make_batch(stock)
    cut |= {name: cut[name][:, :10] for name in ("input_ids", "mm_token_type_ids")}
    with images_in_place(model):
        model(**cut)  # its own check is past; check_images refuses such a batch before
        seen = model.model.vision_tower(cut["pixel_values"], cut["image_position_ids"]).last_hidden_state
    expected = stock.model.vision_tower(cut["pixel_values"], cut["image_position_ids"]).last_hidden_state
    torch.testing.assert_close(seen, expected)
    with pytest.raises(ValueError, match="tokens: 13, features: 24"):
        model(**cut)


def test_text_alone_goes_as_it_did(stock, freed):
    batch = {"input_ids": torch.randint(20, 60, (2, 12), generator=torch.Generator().manual_seed(2))}
    torch.testing.assert_close(freed(**batch).logits, stock(**batch).logits)


class Questions(TorchDispatchMode):
    """Operations whose answer the host has to wait for, on a GPU."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
        name = str(operation)
        by_mask = "index" in name and any(one is not None and one.dtype is torch.bool for one in _indices(args))
        if by_mask or any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select")):
            self.asked.append(name)
        return operation(*args, **(kwargs or {}))


def _indices(args):
    return [one for arg in args if isinstance(arg, (list, tuple)) for one in arg if isinstance(one, torch.Tensor)]


@pytest.fixture
def recorded(monkeypatch):
    """As in a graph, where transformers looks into no mask; and torch's one_hot, which on a CPU only looks at what it
    is given."""
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    one_hot = torch.nn.functional.one_hot
    monkeypatch.setattr(
        torch.nn.functional,
        "one_hot",
        lambda index, count: (index.unsqueeze(-1) == torch.arange(count)).long() if count else one_hot(index),
    )


def test_nothing_is_asked_of_the_device(recorded, stock, freed):
    asked = {}
    for name, model in (("stock", stock), ("freed", freed)):
        with Questions() as questions:
            learned(model, make_batch(stock))
        asked[name] = questions.asked
    assert asked["stock"].count("aten.index.Tensor") == 2  # which places are filled, and whether there are as many
    assert asked["freed"] == []


def test_a_sample_cut_within_its_image_is_refused_with_the_key(stock):
    from cctrain.engines.image_places import check_images

    batch = make_batch(stock)
    check_images(batch, stock.config)
    batch["input_ids"] = batch["input_ids"][:, :10]
    with pytest.raises(ValueError, match=r"fill 24 places, its text has 13.*data\.seq_len"):
        check_images(batch, stock.config)


def test_batches_without_images_and_other_models_are_not_looked_at(stock):
    from cctrain.engines.image_places import check_images

    check_images({"input_ids": torch.zeros(1, 4)}, stock.config)
    check_images(make_batch(stock), None)
    check_images({"image_position_ids": torch.zeros(1, 1, 2), "input_ids": torch.zeros(1, 4)}, object())
