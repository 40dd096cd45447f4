"""Give back what an encoder's library keeps of models that are gone: a job of many models must not grow with their number."""

from __future__ import annotations

import gc
import sys


def release_memory() -> None:
    """Drop Keras' graphs and names of earlier models, and collect what they held; does nothing where Keras is not loaded.

    Models that are still in use go on working; names of layers are counted anew.
    """
    if "keras" in sys.modules:
        import keras

        keras.backend.clear_session(free_memory=False)
    gc.collect()
