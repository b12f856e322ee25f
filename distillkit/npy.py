"""Arrays in numpy's format, as they lie in .npz archives; pickles are not read."""

from __future__ import annotations

from typing import IO, Any

import numpy as np


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of an array; the file stands before its data then.

    Raises:
        ValueError: for what is no such header.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype
