"""Encoders: prepared windows ``(B, T, C)`` in, embeddings ``(B, d)`` out, and reconstructions where they can.

The only place that imports Keras; which backend it runs on is Keras' own setting (``KERAS_BACKEND``).
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from anomaly.config import EncoderSettings
from anomaly.encoders.base import Encoder
from anomaly.errors import Fault, UsageError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: Every encoder by name; the class is imported when it is asked for.
ENCODERS: dict[str, str] = {
    "dense_ae": "anomaly.encoders.dense_ae:DenseAutoencoder",
    "conv_ae": "anomaly.encoders.conv_ae:ConvAutoencoder",
    "lstm_ae": "anomaly.encoders.lstm_ae:LstmAutoencoder",
    "transformer": "anomaly.encoders.transformer:TransformerEncoder",
    "masked_ae": "anomaly.encoders.masked_ae:MaskedAutoencoder",
    "contrastive": "anomaly.encoders.contrastive:ContrastiveEncoder",
    "moco": "anomaly.encoders.moco:MocoEncoder",
    "hybrid": "anomaly.encoders.hybrid:HybridEncoder",
    "tscc": "anomaly.encoders.tscc:TsccEncoder",
    "pretext": "anomaly.encoders.pretext:PretextEncoder",
    "features": "anomaly.encoders.features:FeaturesEncoder",
}


def encoder_class(name: str) -> type[Encoder]:
    """The class of encoder ``name``; raises UsageError E2002 for an unknown one, with the nearest name."""
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1) or list(ENCODERS)
        raise UsageError(Fault("E2002", f"an encoder of {', '.join(ENCODERS)}", name, f"did you mean {near[0]}?"))
    module, _, attribute = ENCODERS[name].partition(":")
    with _quiet_start():
        return cast(type[Encoder], getattr(importlib.import_module(module), attribute))


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep a backend's build flags off the terminal: its libraries print them to the descriptor, before any log level
    is heard, and an engineer waiting for a result cannot act on them. Errors still come as exceptions."""
    # Its own logger tells developers about retracing; nobody at a terminal can act on that either.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if "keras" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def build_encoder(settings: EncoderSettings) -> Encoder:
    """The encoder that the settings name, with its options."""
    return encoder_class(settings.name)(front=settings.front, **settings.options)
