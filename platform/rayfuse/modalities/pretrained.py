"""The processors that belong to a pretrained encoder: read from its own folder."""

from typing import Any

from rayfuse.errors import DataError


def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, model, "tokenizer")


def image_processor(model: str) -> Any:
    from transformers import AutoImageProcessor

    return _load(AutoImageProcessor, model, "image processor", backend="pil")


def feature_extractor(model: str) -> Any:
    from transformers import AutoFeatureExtractor

    return _load(AutoFeatureExtractor, model, "feature extractor")


def _load(kind: Any, model: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(model, trust_remote_code=False, **options)
    except Exception as error:  # noqa: BLE001 - the Rust tokenizers raise plain Exception for a damaged file
        reason = str(error).partition("\n")[0]
        raise DataError(f"{model}: its {what} cannot be read: {reason}") from None
