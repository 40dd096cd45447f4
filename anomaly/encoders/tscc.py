"""Time-series contrastive clustering: crops learn what a window is like, then clusters shape the space (METHODS S37 to S42).

First, two overlapping crops of each window should agree where they overlap, row by row and window by window, over
scales (the hierarchical contrast of TS2Vec). Then K-means places centres among the max-pooled features of that
encoder, and centres and encoder are trained on: features move towards what they already belong to most (DEC), while
the contrast, with a weight, keeps them from losing what they had learned. It ends when labels no longer move.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.encoders.backbones import build_tokens, receptive_field
from anomaly.encoders.base import EpochReport, Option, TrainingData, TrainingHistory, WindowBatches, WindowShape
from anomaly.encoders.checkpoint import Checkpoint
from anomaly.encoders.clustering import (
    cluster_loss,
    moved_share,
    sharpened_target,
    start_centres,
    student_t_memberships,
)
from anomaly.encoders.collapse import refuse_collapse, sample_windows
from anomaly.encoders.crops import CropSizes, crop_pairs, take_crops
from anomaly.encoders.layers import PoolOverTime
from anomaly.encoders.losses import hierarchical_contrast
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.prefetch import prefetched
from anomaly.encoders.training import Task, Training, outputs
from anomaly.errors import Fault, InputRefused, UsageError

log = logging.getLogger(__name__)

Windows = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]

#: Most windows whose features start K-means and whose labels say when to stop.
SAMPLE = 20_000


@keras.saving.register_keras_serializable("anomaly")
class RowsAt(keras.layers.Layer):
    """Rows of crops ``(B, 2, L, d)`` at ``places (B, 2, O)``: ``(B, 2, O, d)``."""

    def call(self, crops: keras.KerasTensor, places: keras.KerasTensor) -> keras.KerasTensor:
        """Gather along the rows."""
        return ops.take_along_axis(crops, ops.repeat(places[..., None], crops.shape[-1], axis=-1), axis=2)

    def compute_output_shape(self, crops_shape: tuple[Any, ...], places_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*places_shape, crops_shape[-1])


@keras.saving.register_keras_serializable("anomaly")
class ClusterMemberships(keras.layers.Layer):
    """Features ``(B, d)`` → soft memberships ``(B, clusters)`` of trained ``centres (clusters, d)``."""

    def __init__(self, clusters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clusters = clusters

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.centres = self.add_weight(shape=(self.clusters, input_shape[-1]), initializer="zeros", name="centres")

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """See ``student_t_memberships``."""
        return student_t_memberships(features, self.centres)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"clusters": self.clusters}


@dataclass(frozen=True)
class TsccNetworks(Networks):
    """``memberships``: ``(B, T, channels)`` → ``(B, clusters)`` on top of the embedder, where there is a second stage;
    its weights, the centres among them, are then what is kept."""

    memberships: keras.Model | None = None

    @property
    def kept(self) -> keras.Model:
        return self.memberships or self.embedder


class TsccEncoder(NeuralEncoder):
    """Contrastive clustering. The embedding is the context vectors of a window's rows, max-pooled over time."""

    name: ClassVar[str] = "tscc"
    summary: ClassVar[str] = "contrastive clustering: overlapping crops agree, then clusters sharpen (S36 to S42)"
    shortest: ClassVar[int] = 4
    option_list: ClassVar[Mapping[str, Option]] = {
        "clusters": Option(8, "clusters of the second stage", least=2),
        "width": Option(32, "numbers per row, and of the embedding", least=2),
        "depth": Option(0, "dilated layers; 0 takes as many as reach over the whole window", least=0),
        "kernel": Option(3, "rows under one kernel", least=2),
        "crop": Option(0.75, "length of a crop as a share of the window", least=0.25, most=1),
        "overlap": Option(
            0.6, "least overlap of two crops, which is compared, as a share of a crop", least=0.1, most=1
        ),
        "cluster_stage": Option(True, "whether clusters sharpen the embedding after the contrast was learned"),
        "contrast_weight": Option(0.1, "weight of the contrast beside the cluster loss in the second stage", least=0),
        "rounds": Option(20, "most passes over the windows in the second stage", least=1),
        "delta": Option(0.001, "the second stage ends when a smaller share of labels moved", least=0, most=1),
    }

    def networks(self, shape: WindowShape, seed: int) -> TsccNetworks:
        """Rows → dilated context vectors → max over time; trained on pairs of crops."""
        sizes = self._sizes(shape)
        options = self.options
        kernel, depth = self._dilation(shape)
        log.info("a row's context reaches over %d rows, a window has %d", receptive_field(kernel, depth), shape.rows)
        tokens = build_tokens("dilated", shape, width=options["width"], depth=depth, kernel=kernel)
        pooled = PoolOverTime("max", name="embedding")(tokens.output)
        embedder = keras.Model(tokens.input, pooled, name=self.name)
        inputs, aligned = crop_graph(tokens, shape, sizes)
        task = Task(keras.Model(inputs, aligned, name=f"{self.name}_crops"), contrast_loss, crop_inputs(sizes))
        if not options["cluster_stage"]:
            return TsccNetworks(embedder, task)
        memberships = ClusterMemberships(options["clusters"], name="memberships")(pooled)
        return TsccNetworks(embedder, task, memberships=keras.Model(tokens.input, memberships))

    def refine(
        self, networks: Networks, data: TrainingData, training: TrainingSettings, workdir: Path
    ) -> dict[str, list[float]]:
        """The second stage; figures per round: losses, and ``clustering_moved``, the share of labels that moved."""
        own = cast(TsccNetworks, networks)
        if own.memberships is None:
            return {}
        stage = ClusterStage(own, own.memberships, data, training, self.options)
        figures = stage.run(workdir / "clustering.npz")
        sample = sample_windows(data.validation, training.seed)
        refuse_collapse(sample, outputs(own.embedder, sample))
        return {f"clustering_{name}": values for name, values in figures.items()}

    def memberships(self, block: Windows) -> NDArray[np.float32]:
        """Windows ``(B, T, channels)`` → how far each belongs to each cluster ``(B, clusters)``, rows sum to 1.

        Raises UsageError E2002 where the second stage was switched off.
        """
        values = self.through_front(self.checked(block))
        model = cast(TsccNetworks, self._ready()).memberships
        if model is None:
            raise UsageError(Fault("E2002", "cluster_stage of tscc: true, for memberships", "false", "train with it"))
        return outputs(model, values)

    def facts(self) -> dict[str, int | str]:
        """As ``NeuralEncoder.facts``, with how many rows the vector of one row depends on (METHODS S39)."""
        kernel, depth = self._dilation(self.fitted_shape())
        return super().facts() | {"receptive field, rows": receptive_field(kernel, depth)}

    def _dilation(self, shape: WindowShape) -> tuple[int, int]:
        """Kernel and number of dilated layers for windows of ``shape``."""
        kernel: int = self.options["kernel"]
        return kernel, self.options["depth"] or depth_across(shape.rows, kernel)

    def _fit(
        self, data: TrainingData, training: TrainingSettings, workdir: Path, progress: EpochReport | None
    ) -> TrainingHistory:
        clusters = self.options["clusters"]
        if self.options["cluster_stage"] and data.n_windows < clusters:
            hint = "give a longer log, shorten --lookback, or set clusters of tscc lower"
            expected = f"at least {clusters} normal training windows, one per cluster"
            raise InputRefused(Fault("E3302", expected, data.n_windows, hint))
        return super()._fit(data, training, workdir, progress)

    def _sizes(self, shape: WindowShape) -> CropSizes:
        """Lengths of crop and overlap; refuses (UsageError E2004) a kernel longer than a crop."""
        sizes = CropSizes.of(shape.rows, self.options["crop"], self.options["overlap"])
        kernel = self.options["kernel"]
        if kernel > sizes.crop:
            hint = f"set kernel of tscc to {sizes.crop} or less, or raise --lookback or crop"
            expected = f"tscc: kernel of at most the {sizes.crop} rows of a crop, for window.lookback {shape.rows}"
            raise UsageError(Fault("E2004", expected, kernel, hint))
        return sizes


def depth_across(rows: int, kernel: int) -> int:
    """The least number of dilated layers whose receptive field is as long as a window of ``rows``.

    >>> [depth_across(rows, kernel=3) for rows in (4, 64, 500)]
    [2, 6, 8]
    """
    depth = 1
    while receptive_field(kernel, depth) < rows:
        depth += 1
    return depth


def crop_graph(
    tokens: keras.Model, shape: WindowShape, sizes: CropSizes
) -> tuple[dict[str, keras.KerasTensor], keras.KerasTensor]:
    """Inputs ``crops (B, 2, L, channels)`` and ``places (B, 2, O)``, and the context vectors of the rows that both crops
    hold, ``(B, 2, O, width)``, by the layers of ``tokens``."""
    crops = keras.Input((2, sizes.crop, shape.channels), name="crops")
    places = keras.Input((2, sizes.overlap), dtype="int32", name="places")
    one_by_one = ops.reshape(crops, (-1, sizes.crop, shape.channels))
    # The same layers, and so the same weights, over the rows of a crop: none of them depends on the number of rows.
    over_crops = keras.models.clone_model(
        tokens, input_tensors=keras.Input(one_by_one.shape[1:]), clone_function=lambda layer: layer
    )
    context = over_crops(one_by_one)
    pairs = ops.reshape(context, (-1, 2, sizes.crop, context.shape[-1]))
    return {"crops": crops, "places": places}, RowsAt(name="contrast")(pairs, places)


def crop_inputs(sizes: CropSizes) -> Callable[[Windows, np.random.Generator], tuple[Inputs, NDArray[np.float32]]]:
    """``Task.prepare`` for the inputs of ``crop_graph``; the contrast needs no target, so zeros stand for one."""

    def prepare(windows: Windows, rng: np.random.Generator) -> tuple[Inputs, NDArray[np.float32]]:
        pairs = crop_pairs(rng, len(windows), sizes)
        crops = take_crops(windows, pairs.starts, sizes.crop)
        return {"crops": crops, "places": pairs.places}, np.zeros(len(windows), np.float32)

    return prepare


def contrast_loss(_: keras.KerasTensor, aligned: keras.KerasTensor) -> keras.KerasTensor:
    """The hierarchical contrast of aligned context vectors ``(B, 2, O, d)``; a batch of one has its temporal part only."""
    return hierarchical_contrast(aligned[:, 0], aligned[:, 1])


def membership_loss(frequencies: keras.KerasTensor, memberships: keras.KerasTensor) -> keras.KerasTensor:
    """Divergence ``(B,)`` of ``memberships (B, K)`` from their own sharpened target, which is held still."""
    return cluster_loss(ops.stop_gradient(sharpened_target(memberships, frequencies)), memberships)


@dataclass(frozen=True)
class Census:
    """One pass over the windows: clusters' mean memberships ``frequencies (K,)``, and the sample's ``labels``."""

    frequencies: NDArray[np.float32]
    labels: NDArray[np.intp]


class ClusterStage:
    """The second stage: centres among pooled features, then rounds of joint training until labels rest.

    The sample is every n-th window of the first epoch's order, at most ``SAMPLE``; of it only features or labels are
    held, so memory does not grow with the log. Each round ends with a checkpoint; a killed run goes on from it.
    """

    def __init__(
        self,
        networks: TsccNetworks,
        memberships: keras.Model,
        data: TrainingData,
        training: TrainingSettings,
        options: Mapping[str, Any],
    ) -> None:
        self.embedder, self.memberships = networks.embedder, memberships
        self.data, self.settings, self.options = data, training, options
        self.every = -(-data.n_windows // SAMPLE)
        self.frequencies = np.full(options["clusters"], 1 / options["clusters"], np.float32)
        self.prepare_crops = networks.task.prepare
        crops = networks.task.model
        self.task = Task(
            keras.Model(
                dict(crops.input) | {"windows": memberships.input},
                {"contrast": crops.output, "memberships": memberships.output},
                name="tscc_clusters",
            ),
            {"contrast": contrast_loss, "memberships": membership_loss},
            self._prepare,
            loss_weights={"contrast": options["contrast_weight"], "memberships": 1.0},
        )

    def run(self, path: Path) -> dict[str, list[float]]:
        """Train until fewer than ``delta`` of the labels move, or ``rounds`` passed; ``path`` keeps the checkpoint."""
        training = Training(self.task, self.data, replace(self.settings, epochs=self.options["rounds"]))
        identity = repr((training.identity(), self.settings, dict(self.options), _digest(self.embedder)))
        checkpoint = Checkpoint(path, self.task, identity)
        figures: dict[str, list[float]] = checkpoint.load() or {}
        if not figures:
            self._place_centres()
        before = self._census()
        while not self._done(figures.get("moved", [])):
            self.frequencies = before.frequencies
            now, _ = training.learn(len(figures.get("moved", [])))
            after = self._census()
            now["moved"] = moved_share(before.labels, after.labels)
            for name, value in now.items():
                figures.setdefault(name, []).append(value)
            before = after
            checkpoint.save(figures)
        log.info("clusters rest after %d rounds: %.2g of labels moved", len(figures["moved"]), figures["moved"][-1])
        return figures

    def _done(self, moved: list[float]) -> bool:
        return len(moved) >= self.options["rounds"] or (bool(moved) and moved[-1] < self.options["delta"])

    def _prepare(self, windows: Windows, rng: np.random.Generator) -> tuple[Inputs, Inputs]:
        inputs, nothing = self.prepare_crops(windows, rng)
        frequencies = np.broadcast_to(self.frequencies, (len(windows), len(self.frequencies)))
        return inputs | {"windows": windows}, {"contrast": nothing, "memberships": frequencies}

    def _place_centres(self) -> None:
        sample = np.concatenate([values[some] for values, some in self._pass(self.embedder)])
        layer = self.memberships.get_layer("memberships")
        layer.centres.assign(start_centres(sample, self.options["clusters"], self.settings.seed))

    def _census(self) -> Census:
        total, windows = np.zeros(self.options["clusters"]), 0
        labels = []
        for memberships, some in self._pass(self.memberships):
            total += memberships.sum(axis=0, dtype=np.float64)
            windows += len(memberships)
            labels.append(memberships[some].argmax(axis=1))
        return Census((total / windows).astype(np.float32), np.concatenate(labels))

    def _pass(self, model: keras.Model) -> Iterator[tuple[NDArray[np.float32], slice]]:
        """The model's output for each batch of the first epoch's order, and which of its windows are of the sample."""
        seen = 0
        with closing(prefetched(_windows(self.data.train))) as batches:
            for windows in batches:
                yield (
                    outputs(model, windows, size=self.settings.batch_size),
                    slice(-seen % self.every, None, self.every),
                )
                seen += len(windows)


def _windows(batches: WindowBatches) -> Iterator[Windows]:
    return (batch.windows for batch in batches(0))


def _digest(model: keras.Model) -> str:
    """What the second stage starts from: a checkpoint of another first stage is not gone on from."""
    return hashlib.sha256(b"".join(np.asarray(weight).tobytes() for weight in model.get_weights())).hexdigest()
