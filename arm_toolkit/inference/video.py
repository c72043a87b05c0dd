"""Reads videos with OpenCV and writes them with PyAV (H.264 in MP4, which browsers play).

Legend: H x W pixels.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from arm_images.errors import DataError

USUAL_FPS = 25.0  # where a file states none


class VideoReader:
    """The frames of a video; use it in a `with` block.

    Attributes:
        fps: frames per second.
        count: number of frames that the file states; 0 if it states none.

    Raises:
        DataError: if OpenCV cannot open the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise DataError(f"{path} cannot be read (OpenCV cannot decode it as a video)")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else USUAL_FPS
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) uint8, RGB, turned as the file says."""
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()


class VideoWriter:
    """Writes frames into an MP4 file; use it in a `with` block.

    A side of odd length is continued by one pixel, because H.264 needs even ones.

    Args:
        path: of any name.
        fps: frames per second.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10000))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(crf="20", preset="veryfast")
        self._started = False

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8, RGB; all frames have the size of the first."""
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self._started:
            self._stream.height, self._stream.width = frame.shape[:2]
            self._started = True
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None:
            with suppress(Exception):  # the first error counts
                self._container.close()
            return
        if self._started:
            self._container.mux(self._stream.encode())
        self._container.close()
