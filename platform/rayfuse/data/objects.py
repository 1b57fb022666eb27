"""Raw values of Python objects: images of Pillow, arrays and data frames.

Libraries are recognized by the names of their classes, so that none is imported for values that are not theirs.
"""

import io
import os
from typing import Any

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_WAV_SUBTYPE = "FLOAT"


def to_raw_value(value: Any, is_media: bool) -> Any:
    """Convert an object to the form that rows have: bytes of files, paths as texts, lists and mappings.

    A frame becomes {column: values}. With `is_media`, for an input of files only, an image of Pillow or a uint8 array
    (height, width[, channels]) becomes the bytes of an image file, and (samples, rate) or {"array", "sampling_rate"}
    those of a WAV file. Others are returned unchanged.
    """
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_instance_of(value, "pandas", "DataFrame"):
        return value.to_dict("list")
    if is_media:
        value = _encode_media(value)
    return value.item() if is_instance_of(value, "numpy", "generic") else value


def is_instance_of(value: Any, package: str, name: str) -> bool:
    """Return whether a value is an instance of the class `name` of a package, without importing the package."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == package for kind in type(value).__mro__
    )


def _encode_media(value: Any) -> Any:
    if is_instance_of(value, "PIL", "Image"):
        return _encode_image(value)
    if isinstance(value, dict) and {"array", "sampling_rate"} <= value.keys():
        return _encode_audio(value["array"], value["sampling_rate"])
    if isinstance(value, tuple) and len(value) == 2 and is_instance_of(value[0], "numpy", "ndarray"):
        return _encode_audio(*value)
    if is_instance_of(value, "numpy", "ndarray") and _is_image_array(value):
        return _encode_image_array(value)
    return value


def _is_image_array(array: Any) -> bool:
    return array.dtype == "uint8" and (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4) and min(array.shape[:2]) > 1)
    )


def _encode_image_array(array: Any) -> bytes:
    from PIL import Image

    return _encode_image(Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array))


def _encode_image(image: Any) -> bytes:
    """Encode an image without loss, with the orientation that it is stored with."""
    if image.mode not in (*_PNG_MODES, "F"):
        image = image.convert("RGB")
    target = io.BytesIO()
    image.save(target, "TIFF" if image.mode == "F" else "PNG", exif=image.getexif())
    return target.getvalue()


def _encode_audio(samples: Any, rate: int) -> bytes:
    import soundfile

    target = io.BytesIO()
    soundfile.write(target, samples, int(rate), format="WAV", subtype=_WAV_SUBTYPE)
    return target.getvalue()
