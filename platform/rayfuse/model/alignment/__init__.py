"""How the encoded inputs are brought to one width."""

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.alignment.identity import IdentityAlignment
from rayfuse.model.alignment.linear import LinearAlignment
from rayfuse.model.alignment.mlp import MLPAlignment
from rayfuse.model.alignment.transformer import TransformerAlignment
from rayfuse.spec.align import Align

ALIGNMENTS: dict[str, type[Alignment]] = {
    "linear": LinearAlignment,
    "mlp": MLPAlignment,
    "transformer": TransformerAlignment,
    "identity": IdentityAlignment,
}


def build_alignment(options: Align, width: int) -> Alignment:
    """The alignment of one input whose encoder gives tokens `width` wide."""
    return ALIGNMENTS[options.type](options, width)


__all__ = ["ALIGNMENTS", "Alignment", "build_alignment"]
