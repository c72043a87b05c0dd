"""Logs that cannot be written never stop a run: it says so once and goes on."""

import functools
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.visualization import LocalVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

from arm_backbone.checkpoint.writing import replacing


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB image (H, W, 3), uint8, in the format that the file's name says; makes its folder.

    Raises:
        WriteError: if it cannot be written.
    """
    _, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with replacing(path) as partial:
        partial.write_bytes(content.tobytes())


def forgive_logger(logger: logging.Logger) -> None:
    """Make the handlers of a logger say once, without a traceback, that they cannot write."""
    for handler in logger.handlers:
        what = getattr(handler, "baseFilename", "the console")
        once = _Once(str(what))
        handler.handleError = functools.partial(_handle_error, once)
        if isinstance(handler, logging.FileHandler):  # mmengine's BaseModule writes to the stream itself
            handler.stream = _Stream(handler.stream, once)


def forgive_visualizer(visualizer: Visualizer) -> None:
    """Make the back ends of a visualizer (scalars.json, TensorBoard) say once that they cannot write, and go on."""
    for backend in visualizer._vis_backends.values():
        once = _Once(f"the log of {type(backend).__name__}")
        if isinstance(backend, LocalVisBackend):
            backend.add_image = functools.partial(_add_image, backend)
            backend.add_config = functools.partial(_add_config, backend)
        for name in ("add_config", "add_graph", "add_image", "add_scalar", "add_scalars", "close"):
            setattr(backend, name, _forgiving(getattr(backend, name), once))
    if not isinstance(threading.excepthook, functools.partial):
        threading.excepthook = functools.partial(_thread_error, threading.excepthook)


class _Once:
    """Prints one warning, however often it is called."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.said = False

    def __call__(self, error: BaseException | None) -> None:
        if not self.said:
            self.said = True
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            line = f"warning: {self.what} cannot be written ({reason}); the run goes on without it; free space there"
            try:
                print(line, file=sys.stderr, flush=True)
            except OSError:
                return  # stderr is on the same full disk


class _Stream:
    """Wraps a stream: what cannot be written is dropped, with one warning."""

    def __init__(self, stream: TextIO, once: _Once) -> None:
        self._stream = stream
        for name in ("write", "flush", "close"):
            setattr(self, name, _forgiving(getattr(stream, name), once))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _handle_error(once: _Once, record: logging.LogRecord) -> None:
    once(sys.exc_info()[1])


def _forgiving(method: Callable, once: _Once) -> Callable:
    @functools.wraps(method)
    def forgiving(*args, **kwargs) -> None:
        try:
            method(*args, **kwargs)
        except OSError as error:
            once(error)

    return forgiving


def _add_image(backend: BaseVisBackend, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
    """mmengine's, which leaves half a file and says nothing if the disk is full."""
    folder = backend.experiment._img_save_dir  # `experiment` makes the folders first
    write_image(Path(folder, f"{name}_{step}.png"), image)


def _add_config(backend: BaseVisBackend, config: Config, **kwargs) -> None:
    with replacing(backend.experiment._config_save_file) as partial:
        partial.write_text(config.pretty_text, encoding="utf-8")


def _thread_error(default: Callable, args: threading.ExceptHookArgs) -> None:
    """Silent for TensorBoard's thread: it hands its error to the next call, where the warning is printed."""
    if not (type(args.thread).__name__ == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
        default(args)
