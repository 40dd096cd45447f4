"""Encoders: prepared windows ``(B, T, C)`` in, embeddings ``(B, d)`` out, and reconstructions where they can.

The only place that imports Keras; which backend it runs on is Keras' own setting (``KERAS_BACKEND``).
"""

from __future__ import annotations

import difflib
import importlib
import os
from typing import cast

from anomaly.config import EncoderSettings
from anomaly.encoders.base import Encoder
from anomaly.errors import Fault, UsageError

# TensorFlow prints its build flags on import; an engineer waiting for a result does not need them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: Every encoder by name; the class is imported when it is asked for.
ENCODERS: dict[str, str] = {"dense_ae": "anomaly.encoders.dense_ae:DenseAutoencoder"}


def encoder_class(name: str) -> type[Encoder]:
    """The class of encoder ``name``; raises UsageError E2002 for an unknown one, with the nearest name."""
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1) or list(ENCODERS)
        raise UsageError(Fault("E2002", f"an encoder of {', '.join(ENCODERS)}", name, f"did you mean {near[0]}?"))
    module, _, attribute = ENCODERS[name].partition(":")
    return cast(type[Encoder], getattr(importlib.import_module(module), attribute))


def build_encoder(settings: EncoderSettings) -> Encoder:
    """The encoder that the settings name, with its options."""
    return encoder_class(settings.name)(**settings.options)
