"""How fast encoders train from a window store, as ratios of one interleaved run (PERFORMANCE §4).

    python benchmarks/training.py [--encoders dense_ae,conv_ae,transformer] [--windows 100000] [--rounds 3] [--memory]

Prints: windows per second from the store against the same training fed from an array in memory, and against Keras' own
``fit`` on that array; time per window against the arithmetic floor (three times the forward operations at the machine's
measured matrix rate); the NT-Xent loss with its gradient against its own matrix products; with ``--memory`` the peak
memory of training on 0.1 M and on 1 M windows. Runs on the backend that KERAS_BACKEND names; a GPU is used where there
is one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.config import EncoderSettings, SplitSettings, TrainingSettings, WindowSettings
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.store import WindowStore, create_store
from anomaly.encoders import build_encoder
from anomaly.encoders.base import TrainingBatch, TrainingData
from anomaly.fitting import PreparedWindows, _fit_preparer, _window_audit

ROWS, TAGS = 32, 3
PERIOD_US = 1_000_000
MEMORY_SIZES = (100_000, 1_000_000)


def write_store(path: Path, windows: int) -> Path:
    """A store whose train part holds ``windows`` windows of (32, 3): slow waves with noise, one asset, no event."""
    rows = int(windows / 0.9) + 200
    rng, contract = np.random.default_rng(0), LogContract("time", tuple("abc"[:TAGS]), PERIOD_US, zoned=True)
    with create_store(path, contract, WindowSettings(ROWS), SplitSettings(0.9, 0.08, 0.02)) as writer:
        for low in range(0, rows, 1 << 17):
            at = np.arange(low, min(low + (1 << 17), rows))
            waves = np.sin(at[:, None] / np.array([7.0, 23.0, 91.0])) + 0.1 * rng.normal(size=(len(at), TAGS))
            none, asset = np.empty((len(at), 0), object), np.full(len(at), "plant", dtype=object)
            bad = np.zeros(waves.shape, bool)
            label = np.zeros(len(at), np.int8)
            writer.append(LogChunk(at, at * PERIOD_US, asset, waves.astype(np.float32), none, label, bad))
    return path


def prepared(store: WindowStore, settings: TrainingSettings) -> TrainingData:
    """What ``anomaly train`` gives its encoder from this store."""
    windows = PreparedWindows(store, *_fit_preparer(store, lambda *_: None), settings)
    _window_audit(store, windows)
    return windows.data()


def in_memory(data: TrainingData, settings: TrainingSettings) -> tuple[TrainingData, NDArray[np.float32]]:
    """The same windows as one array, mixed by a permutation per epoch."""
    array = np.concatenate([batch.windows for batch in data.train(0)])

    def one_pass(epoch: int) -> Iterator[TrainingBatch]:
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(array))
        for at in range(0, len(order), settings.batch_size):
            yield TrainingBatch(array[order[at : at + settings.batch_size]])

    return TrainingData(data.shape, one_pass, data.validation, len(array)), array


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall seconds of each, one after another, round by round, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work)
            if number:
                taken[name].append(spent)
    return {name: median(values) for name, values in taken.items()}


def matrix_rate() -> float:
    """Floating-point operations per second of a large float32 matrix product on the backend's device, best of five."""
    import keras
    from keras import ops

    size = 4096 if on_accelerator() else 2048
    a = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32))
    product = compiled(lambda x: ops.matmul(x, x))
    finish(product(a))
    del keras
    return 2 * size**3 / min(seconds(lambda: finish(product(a))) for _ in range(5))


def on_accelerator() -> bool:
    """Whether the backend has a GPU."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return any(d.platform == "gpu" for d in jax.devices())
    if keras.backend.backend() == "torch":
        import torch

        return bool(torch.cuda.is_available())
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """``function`` compiled as a training step would be."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


def gradient(loss: Callable[..., object]) -> Callable[..., object]:
    """The gradient of ``loss(targets, z)`` with respect to ``z``, compiled."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.grad(lambda z: loss(None, z)))
    if keras.backend.backend() == "torch":
        import torch

        def torch_gradient(z: object) -> object:
            leaf = z.detach().requires_grad_(True)
            return torch.autograd.grad(loss(None, leaf), leaf)[0]

        return torch_gradient
    import tensorflow as tf

    @tf.function
    def tensorflow_gradient(z: object) -> object:
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(None, z)
        return tape.gradient(value, z)

    return tensorflow_gradient


def finish(result: object) -> NDArray[np.float32]:
    """Wait for a result: accelerators answer before they are done."""
    from keras import ops

    return ops.convert_to_numpy(result)


def forward_operations(model: object) -> float:
    """Floating-point operations of one window's forward pass: two per weight and place of every kernel, and the two
    products of every attention. Bias, normalisation and activations are left out: 2 to 5 % by TensorFlow's own count."""
    total = 0.0
    for layer in model._flatten_layers(include_self=False):
        if type(layer).__name__ in ("SelfAttention", "ProbSparseAttention"):
            rows, width = layer.output.shape[1:3]
            total += 4.0 * rows * rows * width
        places = ROWS if type(layer).__name__ == "LSTMCell" else _places(layer)
        for kernel in (w for w in getattr(layer, "_trainable_variables", []) if "kernel" in w.name):
            total += 2.0 * float(np.prod(kernel.shape)) * places
    return total


def _places(layer: object) -> int:
    """Rows at which a layer's kernel is applied: those of its output, one where it has no rows."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return ROWS
    return int(np.prod([n for n in shape[1:-1] if n is not None])) if len(shape) > 2 else 1


def feeds(name: str, data: TrainingData, settings: TrainingSettings, rounds: int) -> dict[str, float]:
    """Windows per second of one encoder's training passes from the store, from an array, and by Keras' ``fit``."""
    from anomaly.encoders.training import Training

    memory, array = in_memory(data, settings)
    encoder = build_encoder(EncoderSettings(name))
    networks = encoder._made(data.shape, settings.seed)
    from_store, from_array = (Training(networks.task, source, settings) for source in (data, memory))
    targets = networks.task.prepare(array, np.random.default_rng(0))[1]

    def keras_fit() -> None:
        networks.task.model.fit(array, targets, batch_size=settings.batch_size, epochs=1, verbose=0)

    works = {"store": lambda: from_store.learn(0), "array": lambda: from_array.learn(0), "fit": keras_fit}
    taken = interleaved(works, rounds)
    operations = forward_operations(networks.task.model)
    return {who: len(array) / spent for who, spent in taken.items()} | {"operations": operations}


def nt_xent_ratio(rounds: int, batch: int = 1024, width: int = 64) -> tuple[float, float]:
    """Seconds of NT-Xent's gradient at ``batch`` (two views each), and of its matrix products alone."""
    from keras import ops

    from anomaly.encoders.losses import nt_xent

    z = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2 * batch, width)).astype(np.float32))
    derived = gradient(nt_xent(0.2))

    # What no form of the loss can do without: all similarities, and their weights times the vectors from both sides.
    def both_ways(x: object) -> object:
        similar = ops.matmul(x, ops.transpose(x))
        return ops.matmul(similar, x) + ops.matmul(ops.transpose(similar), x)

    products = compiled(both_ways)
    taken = interleaved({"loss": lambda: finish(derived(z)), "products": lambda: finish(products(z))}, 10 * rounds)
    return taken["loss"], taken["products"]


def peak_memory(windows: int, encoder: str, batch_size: int) -> float:
    """Peak resident MiB of a process that trains one epoch on ``windows`` windows from a store."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "store.h5", windows)
        command = [sys.executable, __file__, "--one-epoch", str(store), "--encoders", encoder]
        done = subprocess.run(
            [*command, "--batch-size", str(batch_size)], check=True, capture_output=True, text=True, timeout=1800
        )
    return float(done.stdout.split()[-1])


def one_epoch(path: Path, encoder: str, batch_size: int) -> None:
    """Train one epoch and print this process' peak memory in MiB."""
    settings = TrainingSettings(epochs=1, batch_size=batch_size)
    with WindowStore.open(path, verify=False) as store, tempfile.TemporaryDirectory() as workdir:
        build_encoder(EncoderSettings(encoder)).fit(prepared(store, settings), training=settings, workdir=Path(workdir))
    # Not ru_maxrss: on Linux a child begins with its parent's peak there.
    print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="dense_ae,conv_ae,transformer")
    parser.add_argument("--windows", type=int, default=100_000, help="training windows (transformer: a twentieth)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--memory", action="store_true", help="also peak memory at 0.1 M and 1 M windows")
    parser.add_argument("--one-epoch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    asked = arguments()
    names = asked.encoders.split(",")
    if asked.one_epoch:
        one_epoch(asked.one_epoch, names[0], asked.batch_size)
        return
    import keras

    rate = matrix_rate()
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores, {platform.machine()}, "
          f"GPU {'yes' if on_accelerator() else 'no'}; matrix rate {rate / 1e9:.0f} GFLOP/s\n")  # fmt: skip
    print(f"Windows of ({ROWS}, {TAGS}), batch {asked.batch_size}, medians of {asked.rounds} interleaved rounds\n")
    print("| encoder | windows | from store, windows/s | from array | Keras fit | store ÷ array | store ÷ fit "
          "| µs a window | arithmetic floor, µs | times the floor |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        windows = asked.windows // 20 if name == "transformer" else asked.windows
        settings = TrainingSettings(epochs=1, batch_size=asked.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            path = write_store(Path(folder) / "store.h5", windows)
            with WindowStore.open(path, verify=False) as store:
                got = feeds(name, prepared(store, settings), settings, asked.rounds)
        floor, spent = 3 * got["operations"] / rate * 1e6, 1e6 / got["store"]
        print(f"| {name} | {windows} | {got['store']:.0f} | {got['array']:.0f} | {got['fit']:.0f} "
              f"| {got['store'] / got['array']:.2f} | {got['store'] / got['fit']:.2f} | {spent:.1f} | {floor:.2f} "
              f"| {spent / floor:.1f} |", flush=True)  # fmt: skip
    loss, products = nt_xent_ratio(asked.rounds)
    print(f"\nNT-Xent with its gradient, 1024 pairs of 64: {loss * 1e3:.1f} ms, its matrix products {products * 1e3:.1f} "
          f"ms, ratio {loss / products:.2f}")  # fmt: skip
    if asked.memory:
        print("\n| encoder | windows | peak memory, MiB |\n|---|---|---|")
        for size in MEMORY_SIZES:
            print(f"| {names[0]} | {size} | {peak_memory(size, names[0], asked.batch_size):.0f} |", flush=True)


if __name__ == "__main__":
    main()
