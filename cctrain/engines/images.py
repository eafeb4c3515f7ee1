"""Gemma 4's processor without torchvision: transformers 5.18 imports it for a video processor that no recipe needs, and
there is no build of it beside torch's CPU build.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any


def install() -> None:
    """Have Gemma 4's processor use its PIL image processor where torchvision is not installed."""
    if importlib.util.find_spec("torchvision"):
        return
    processing: Any = importlib.import_module("transformers.processing_utils")
    auto: Any = importlib.import_module("transformers.models.auto.video_processing_auto")
    feature_extraction: Any = importlib.import_module("transformers").FeatureExtractionMixin

    class NoVideo(feature_extraction):
        """In place of the video processor, which needs torchvision; no recipe has video."""

        model_input_names = ()

    pil = importlib.import_module("transformers.models.gemma4.image_processing_pil_gemma4")
    sys.modules["transformers.models.gemma4.image_processing_gemma4"] = pil
    auto.AutoVideoProcessor.from_pretrained = classmethod(lambda _, *__, **___: NoVideo())
    processing.transformers_module.BaseVideoProcessor = NoVideo
