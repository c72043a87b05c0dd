"""Predicts images and videos and writes the results: what `tools/predict.py` does."""

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from arm_backbone.checkpoint.writing import check_writable, replacing
from arm_images.errors import DataError, printable

from ..engine.logs import write_image
from ..errors import ConfigError
from ..machine import compute_faster
from .drawing import draw
from .files import Files, result_files, write_json
from .inputs import Input
from .predictor import Item, Predictor, is_out_of_memory
from .results import DetectionResult, Result
from .video import VideoReader, VideoWriter

OF_TASK = {"annotations": "detection", "score_thr": "detection", "top_k": "classification"}  # options of one task
SCORE_THR, TOP_K = 0.3, 5  # where the user gives none
FEW = 0.98  # share of the stated frames; some files state a few more than they hold


@dataclass
class Options:
    """How to predict and what to write.

    Attributes:
        out: folder of the results.
        annotations: a COCO file whose ids the results of a detector get.
        batch_size: images that go through the model together.
        score_thr: draw objects with at least this score; the results hold all that the model returns.
        top_k: classes that are written per image of a classifier.
        drawings: draw the results of a detector or segmentor on the images.
    """

    out: Path
    annotations: str | None = None
    batch_size: int = 1
    score_thr: float | None = None
    top_k: int | None = None
    drawings: bool = True

    def check(self, task: str) -> None:
        """Refuse options that the task does not use.

        Raises:
            ConfigError: naming the option.
        """
        for name, only in OF_TASK.items():
            value = getattr(self, name)
            if value is not None and only != task:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: only for {only}, and this model is for {task}")


@dataclass
class Summary:
    """What was done.

    Attributes:
        images, videos: how many were predicted.
        written: names of the files and folders in the folder of the results.
        problems: a line for each file that was skipped, or of which a part could not be read.
    """

    images: int = 0
    videos: int = 0
    written: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def describe(self, out: Path) -> str:
        """One line for a person."""
        counts = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.images, "image"), (self.videos, "video")) if n]
        done = f"{' and '.join(counts)} predicted: {', '.join(self.written)}" if counts else "nothing is predicted"
        return printable(f"{out}: {done}")


def predict_files(predictor: Predictor, inputs: list[Input], options: Options) -> Summary:
    """Predict images and videos, and write the results.

    A file that cannot be read is skipped and named in the summary. If the run is stopped (Ctrl-C, a full disk), a line
    on stderr says so, and `results.json` holds the images that are done, if it can be written.

    Raises:
        ConfigError, DataError: before the first image, for options that do not fit the task, and annotations that do
            not fit the images.
        NotFinite: if the model has diverged.
        WriteError: if a file cannot be written.
    """
    options.check(predictor.task)
    files = result_files(options.out, predictor, inputs, options.annotations, options.top_k or TOP_K)
    check_writable(options.out / "results.json")
    if predictor.device.type == "cpu":
        compute_faster()
    with ThreadPoolExecutor(min(options.batch_size, os.cpu_count() or 1)) as threads:
        run = _Run(predictor, files, options, threads)
        try:
            run.predict_images([given for given in inputs if not given.is_video])
            for video in (given for given in inputs if given.is_video):
                run.predict_video(video)
        except BaseException:
            with suppress(OSError):
                if files.finish():
                    print(f"stopped: {options.out}/results.json holds {run.summary.images} images", file=sys.stderr)
            raise
    run.summary.written[:0] = files.finish()
    return run.summary


class _Run:
    """One call of `predict_files`; its threads read, draw and write the images of a batch at the same time."""

    def __init__(self, predictor: Predictor, files: Files, options: Options, threads: ThreadPoolExecutor) -> None:
        self.predictor, self.files, self.options, self.threads = predictor, files, options, threads
        self.drawn = options.drawings and predictor.task != "classification"
        self.summary = Summary()

    def predict_images(self, images: list[Input]) -> None:
        with tqdm(total=len(images), unit="image", disable=None if images else True) as progress:
            for chunk in _chunks(images, self.options.batch_size):
                loaded = self._kept(self.threads.map(self._load, chunk))
                results = self._predict([item for *_, item in loaded])
                found = self._kept((given, image, result) for (given, image, _), result in zip(loaded, results))
                if self.drawn:
                    list(self.threads.map(lambda one: self._write_drawing(*one), found))  # list: raises errors
                for given, _, result in found:
                    self.files.add(given, result)
                self.summary.images += len(found)
                progress.update(len(chunk))
        if self.summary.images and self.drawn:
            self.summary.written.append("drawn/")

    def _load(self, given: Input) -> tuple[Input, np.ndarray | None, Item | DataError]:
        """An image (H, W, 3) in RGB, and as the model takes it, or why it cannot be read."""
        try:
            image = self.predictor.read(given.path)
            self.files.check(given, image.shape[:2])
            return given, image, self.predictor.prepare(image, str(given.path))
        except DataError as error:
            return given, None, error

    def _kept(self, found: Iterable[tuple]) -> list[tuple]:
        """The tuples that do not end with an error; errors become problems."""
        kept = []
        for one in found:
            if isinstance(one[-1], DataError):
                self.summary.problems.append(str(one[-1]))
            else:
                kept.append(one)
        return kept

    def _predict(self, items: list[Item]) -> list[Result | DataError]:
        """Results; where the memory does not suffice for all images at once, for one at a time."""
        try:
            return self.predictor.predict_prepared(items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(items) > 1:
            return [result for item in items for result in self._predict([item])]
        height, width = items[0].size
        return [
            DataError(
                f"{items[0].path} ({width}x{height} pixels) does not fit into the memory; for a segmentor give "
                "--window, else a smaller Resize in the configuration's test pipeline"
            )
        ]

    def _draw(self, image: np.ndarray, result: Result) -> np.ndarray:
        if isinstance(result, DetectionResult):
            threshold = self.options.score_thr
            result = result.above(SCORE_THR if threshold is None else threshold)
        return draw(image, result, self.predictor.palette)

    def _write_drawing(self, given: Input, image: np.ndarray, result: Result) -> None:
        write_image(self.options.out / f"drawn/{given.name}.jpg", self._draw(image, result))

    def predict_video(self, given: Input) -> None:
        """Write a video with the results drawn on it, and their JSON; frames are numbered from 0."""
        try:
            with VideoReader(given.path) as reader:
                self._predict_frames(given, reader)
        except DataError as error:
            self.summary.problems.append(str(error))

    def _predict_frames(self, given: Input, reader: VideoReader) -> None:
        name = f"videos/{given.name}"
        frames: list[dict] = []
        with replacing(self.options.out / f"{name}.mp4") as partial, VideoWriter(partial, reader.fps) as writer:
            with tqdm(total=reader.count or None, unit="frame", desc=given.path.name, disable=None) as progress:
                for chunk in _chunks(reader, self.options.batch_size):
                    results = self._predict([self.predictor.prepare(frame, str(given.path)) for frame in chunk])
                    for result in results:
                        if isinstance(result, DataError):
                            raise result
                        frames.append(dict(frame=len(frames), **self.files.frame(result)))
                    for drawn in self.threads.map(self._draw, chunk, results):
                        writer.write(drawn)
                    size = chunk[0].shape[:2]
                    progress.update(len(chunk))
            if not frames:
                raise DataError(f"{given.path} has no frame that can be decoded")
        head = dict(file=str(given.path), fps=reader.fps, height=size[0], width=size[1], **self.files.head)
        write_json(self.options.out / f"{name}.json", dict(head, frames=frames))
        self.summary.videos += 1
        self.summary.written += [f"{name}.mp4", f"{name}.json"]
        if len(frames) < FEW * reader.count:
            self.summary.problems.append(
                f"{given.path} states {reader.count} frames, of which {len(frames)} can be decoded; the rest is missing"
            )


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
