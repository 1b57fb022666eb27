"""Reasons for errors of PEFT, in terms of a job's spec. All matching of its error texts is here."""

_UNSUPPORTED_TARGET = "is not supported. Currently, only"


def adapter_error_reason(error: TypeError | ValueError) -> tuple[str, str]:
    """Return the field of the adapter's spec that PEFT rejects, empty if unknown, and the reason."""
    from peft.utils.error import NoMatchingPeftModuleError

    if isinstance(error, NoMatchingPeftModuleError):
        return "target_modules", "no such modules"
    text = str(error).partition("\n")[0]
    if _UNSUPPORTED_TARGET in text:
        return "target_modules", "modules of a type that PEFT cannot adapt"
    return "", text
