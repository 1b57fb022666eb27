"""Raw values of Python objects: images of Pillow, arrays and data frames.

Libraries are recognized by the names of their classes, so that none is imported for values that are not theirs.
"""

import io
import os
from typing import Any

from rayfuse.errors import InvalidInputError

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_ALPHA_MODES = ("PA", "RGBa")
_TIFF_MODES = ("I", "F")
_INTEGER_IMAGES = ("uint8", "uint16", "int16", "int32")
_PNG_PIXELS = {3: "rgb48be", 4: "rgba64be"}
_WAV_SUBTYPES = {
    "uint8": "PCM_U8",
    "int16": "PCM_16",
    "int32": "PCM_32",
    "float16": "FLOAT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
}
"""Types of samples → encodings of WAV files with the same range and precision."""


def to_raw_value(value: Any, is_media: bool) -> Any:
    """Convert an object to the form that rows have: bytes of files, paths as texts, lists and mappings.

    A frame becomes {column: values}. With `is_media`, for an input of files only, an image of Pillow or an array of
    integers (height, width[, channels]) becomes the bytes of an image file, and (samples, rate) or {"array", "sampling_rate"}
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
    """Return whether an array is an image: of 8 or 16 bits, or of one channel of any integers."""
    if array.dtype not in _INTEGER_IMAGES:
        return False
    channels = (1, 3, 4) if array.dtype.kind == "u" else (1,)
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in channels and min(array.shape[:2]) > 1)


def _encode_image_array(array: Any) -> bytes:
    from PIL import Image

    if array.dtype == "uint16" and array.ndim == 3 and array.shape[2] > 1:
        return _encode_color_png(array)
    plane = array[:, :, 0] if array.shape[2:] == (1,) else array
    return _encode_image(Image.fromarray(plane.astype("int32") if plane.dtype == "int16" else plane))


def _encode_image(image: Any) -> bytes:
    """Encode an image without loss, with the orientation that it is stored with."""
    from PIL import Image

    exif = image.getexif()
    if image.mode.startswith("I;16") and image.mode != "I;16":
        import numpy as np

        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode not in (*_PNG_MODES, *_TIFF_MODES):
        image = image.convert("RGBA" if image.mode in _ALPHA_MODES else "RGB")
    target = io.BytesIO()
    image.save(target, "TIFF" if image.mode in _TIFF_MODES else "PNG", exif=exif)
    return target.getvalue()


def _encode_color_png(array: Any) -> bytes:
    """Encode uint16 (height, width, 3 or 4) as PNG, which Pillow writes with 8 bits only."""
    import av

    target = io.BytesIO()
    pixel_format = _PNG_PIXELS[array.shape[2]]
    with av.open(target, "w", format="image2pipe") as container:
        stream: Any = container.add_stream("png", rate=1)
        stream.height, stream.width = array.shape[:2]
        stream.pix_fmt = pixel_format
        container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format=pixel_format)))
        container.mux(stream.encode(None))
    return target.getvalue()


def _encode_audio(samples: Any, rate: int) -> bytes:
    """Encode samples (samples,), (samples, channels) or (channels, samples) as WAV with their range and precision.

    Raises InvalidInputError for an array that is not a clip.
    """
    import numpy as np
    import soundfile

    array = np.asarray(samples)
    subtype = _WAV_SUBTYPES.get(array.dtype.name)
    if subtype is None or array.ndim not in (1, 2):
        raise InvalidInputError(
            f"an array of {array.dtype} of shape {array.shape} is not a clip; give samples, or samples and channels, "
            f"as one of {', '.join(_WAV_SUBTYPES)}"
        )
    if array.ndim == 2 and array.shape[0] < array.shape[1]:  # no clip has more channels than samples
        array = array.T
    if array.dtype == "uint8":  # libsndfile reads no bytes; silence is 128
        array = (array.astype(np.int16) - 128) * 256
    elif array.dtype == "float16":
        array = array.astype(np.float32)
    target = io.BytesIO()
    soundfile.write(target, array, int(rate), format="WAV", subtype=subtype)
    return target.getvalue()
