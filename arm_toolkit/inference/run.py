"""Predicts images and videos and writes the results: what `tools/predict.py` does."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from arm_backbone.checkpoint.writing import check_writable, replacing
from arm_images.errors import DataError

from ..engine.logs import write_image
from ..errors import ConfigError
from .drawing import draw
from .files import Files, result_files, write_json
from .inputs import Input
from .predictor import Predictor
from .results import DetectionResult, Result
from .video import VideoReader, VideoWriter

OF_TASK = {"annotations": "detection", "score_thr": "detection", "top_k": "classification"}  # options of one task
SCORE_THR, TOP_K = 0.3, 5  # where the user gives none


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
        return f"{out}: {done}"


def predict_files(predictor: Predictor, inputs: list[Input], options: Options) -> Summary:
    """Predict images and videos, and write the results.

    A file that cannot be read is skipped and named in the summary. If the run is interrupted or the disk is full,
    `results.json` holds the images that are done.

    Raises:
        ConfigError, DataError: before the first image, for options that do not fit the task, and annotations that do
            not fit the images.
        WriteError: if a file cannot be written.
    """
    options.check(predictor.task)
    files = result_files(options.out, predictor, inputs, options.annotations, options.top_k or TOP_K)
    check_writable(options.out / "results.json")
    run = _Run(predictor, files, options)
    try:
        run.predict_images([given for given in inputs if not given.is_video])
        for video in (given for given in inputs if given.is_video):
            run.predict_video(video)
    except BaseException:
        with suppress(OSError):
            files.finish()
        raise
    run.summary.written[:0] = files.finish()
    return run.summary


class _Run:
    def __init__(self, predictor: Predictor, files: Files, options: Options) -> None:
        self.predictor, self.files, self.options = predictor, files, options
        self.drawn = options.drawings and predictor.task != "classification"
        self.summary = Summary()

    def predict_images(self, images: list[Input]) -> None:
        with tqdm(total=len(images), unit="image", disable=None if images else True) as progress:
            for chunk in _chunks(images, self.options.batch_size):
                loaded = [(given, image) for given in chunk if (image := self._load(given)) is not None]
                for given, image, result in self._predict(loaded):
                    self.files.add(given, result)
                    if self.drawn:
                        write_image(self.options.out / f"drawn/{given.name}.jpg", self._draw(image, result))
                    self.summary.images += 1
                progress.update(len(chunk))
        if self.summary.images and self.drawn:
            self.summary.written.append("drawn/")

    def _load(self, given: Input) -> np.ndarray | None:
        """An image; None if it cannot be read, which the summary then says."""
        try:
            image = self.predictor.read(given.path)
            self.files.check(given, image.shape[:2])
        except DataError as error:
            self.summary.problems.append(str(error))
            return None
        return image

    def _predict(self, loaded: list[tuple[Input, np.ndarray]]) -> Iterator[tuple[Input, np.ndarray, Result]]:
        """The results of images or frames; one that the test pipeline fails on is a problem in the summary."""
        ready, items = [], []
        for given, image in loaded:
            try:
                items.append(self.predictor.prepare(image, str(given.path)))
                ready.append((given, image))
            except DataError as error:
                self.summary.problems.append(str(error))
        sizes, paths = [image.shape[:2] for _, image in ready], [str(given.path) for given, _ in ready]
        for (given, image), result in zip(ready, self.predictor.predict_prepared(items, sizes, paths), strict=True):
            yield given, image, result

    def _draw(self, image: np.ndarray, result: Result) -> np.ndarray:
        if isinstance(result, DetectionResult):
            threshold = self.options.score_thr
            result = result.above(SCORE_THR if threshold is None else threshold)
        return draw(image, result, self.predictor.palette)

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
                    for _, image, result in self._predict([(given, frame) for frame in chunk]):
                        size = image.shape[:2]
                        frames.append(dict(frame=len(frames), **self.files.frame(result)))
                        writer.write(self._draw(image, result))
                    progress.update(len(chunk))
            if not frames:
                raise DataError(f"{given.path} has no frame that can be decoded")
        head = dict(file=str(given.path), fps=reader.fps, height=size[0], width=size[1], **self.files.head)
        write_json(self.options.out / f"{name}.json", dict(head, frames=frames))
        self.summary.videos += 1
        self.summary.written += [f"{name}.mp4", f"{name}.json"]


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
