"""Pillow without the one decoder that starts another program: import `Image` and `ImageOps` from here.

Pillow goes by a file's contents, and gives PostScript to Ghostscript whatever the file's name is.
"""

from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError

EpsImagePlugin.gs_binary = False  # "Ghostscript is not there": decoding raises an OSError

__all__ = ["Image", "ImageOps", "UnidentifiedImageError"]
