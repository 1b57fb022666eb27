"""How aligned inputs become one vector, or one answer."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.base import Block, Key, Part
from rayfuse.spec.custom import Custom, builtin_or_custom
from rayfuse.spec.problems import nearest

Problems = Iterable[tuple[str, str]]
"""(path below the part, reason)."""

Members = Mapping[str, bool]
"""What a fusion joins, in order: the name of an input or a group, and whether it may give more than one vector."""


class FusionPart(Part):
    """What all fusions share: each may stand alone or in a tree."""

    def problems(self, job: Any) -> Problems:
        members = {name: _may_give_tokens(job, name) for name in job.inputs}
        return self.problems_over(members, job.align.dim)

    def problems_over(self, members: Members, dim: int) -> Problems:
        """What is wrong with joining these members, each `dim` wide."""
        return ()


def _may_give_tokens(job: Any, name: str) -> bool:
    """False only where it is sure that an input comes as one vector."""
    source, align = job.inputs[name], job.align_of(name)
    items = getattr(source, "max_items", 1)
    if hasattr(align, "queries"):
        return bool(align.queries * items > 1)
    pool = getattr(source.encoder, "pool", "none" if isinstance(source.encoder, Custom) else "mean")
    return items > 1 or pool == "none"


def _heads_divide(heads: int, dim: int) -> Problems:
    if dim % heads:
        yield "heads", f"{heads} heads do not divide align.dim {dim}"


def _known(path: str, names: Iterable[str], members: Members) -> Problems:
    for name in names:
        if name not in members:
            yield path, f"no input `{name}`; {nearest(name, list(members))}"


class CustomFusion(Custom, FusionPart):
    """A subclass of rayfuse.model.fusion.FusionModule, by import path."""


class PerceptronFusion(FusionPart):
    """A fusion that ends in a multilayer perceptron."""

    hidden: int = Field(256, ge=8)
    """Width of the perceptron's hidden layers."""
    layers: int = Field(2, ge=1, le=8)
    """Hidden layers of the perceptron."""
    dropout: float = Field(0.1, ge=0, lt=1)


class ConcatFusion(PerceptronFusion):
    """One vector per input, side by side, through a multilayer perceptron."""

    type: Literal["concat"]


class ConcatConvFusion(PerceptronFusion):
    """The inputs' vectors as the channels of a signal, through a 1-d convolution and a multilayer perceptron."""

    type: Literal["concat_conv"]
    channels: int = Field(8, ge=1, le=256)
    """Channels that the convolution gives."""
    kernel: int = Field(3, ge=1, le=63)
    """Neighbouring features that each of its outputs sees."""


class SumFusion(PerceptronFusion):
    """The sum of the inputs that are there, through a multilayer perceptron."""

    type: Literal["sum"]


class WeightedFusion(PerceptronFusion):
    """A weighted mean with one learned weight per input, shared out among those that are there."""

    type: Literal["weighted"]


class MaxPoolFusion(PerceptronFusion):
    """The largest value of each feature among the inputs that are there."""

    type: Literal["max_pool"]


class GatedFusion(PerceptronFusion):
    """Gates per feature, computed from all inputs, share it out among them (gated multimodal unit: Arevalo et al.,
    2017): an input that looks noisy gets little."""

    type: Literal["gated"]


class AttentionFusion(PerceptronFusion):
    """Softmax attention over the inputs, each scored by itself (additive attention: Bahdanau et al., 2015)."""

    type: Literal["attention"]
    heads: int = Field(4, ge=1, le=64)
    """Parts of the vector with weights of their own."""

    def problems_over(self, members: Members, dim: int) -> Problems:
        return _heads_divide(self.heads, dim)


class MlpFusion(FusionPart):
    """One vector per input, side by side, through residual blocks (He et al., 2016)."""

    type: Literal["mlp"]
    hidden: int = Field(256, ge=8)
    """Width of the residual stream."""
    blocks: int = Field(3, ge=1, le=48)
    dropout: float = Field(0.1, ge=0, lt=1)


class TransformerFusion(FusionPart):
    """Self-attention over the tokens of all inputs and a summary token (Vaswani et al., 2017)."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)

    def problems_over(self, members: Members, dim: int) -> Problems:
        return _heads_divide(self.heads, dim)


class CrossAttentionFusion(FusionPart):
    """Some inputs query the tokens of all others (crossmodal transformer: Tsai et al., 2019); a summary token then
    looks at all of them."""

    type: Literal["cross_attention"]
    query: Annotated[list[Key], Field(min_length=1)] | None = None
    """The inputs that query the others; all where absent."""
    layers: int = Field(2, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)

    def problems_over(self, members: Members, dim: int) -> Problems:
        yield from _heads_divide(self.heads, dim)
        yield from _known("query", self.query or (), members)
        asking = [name for name in self.query or members if name in members]
        if len(set(asking)) < len(asking):
            yield "query", f"{', '.join(asking)}: an input queries the others once; name it once"
        if len(members) == 1:
            yield "type", "there is one input, and no other that it could query; use transformer"
        elif not any(_several_vectors(name, members) for name in asking):
            other = next(name for name in members if name != asking[0])
            yield (
                "query",
                f"`{asking[0]}` would attend to one vector, as the encoder of `{other}` pools, and attention chooses "
                "among several; take an encoder that hands on its tokens (`pool: none`), or gated fusion",
            )


def _several_vectors(asking: str, members: Members) -> bool:
    others = [tokens for name, tokens in members.items() if name != asking]
    return len(others) > 1 or any(others)


class BottleneckFusion(FusionPart):
    """A transformer per input; they exchange only what fits into a few bottleneck tokens (Nagrani et al., 2021)."""

    type: Literal["bottleneck"]
    tokens: int = Field(4, ge=1, le=256)
    """Bottleneck tokens."""
    layers: int = Field(2, ge=2, le=48)
    """Inputs learn of each other from the second layer on."""
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)

    def problems_over(self, members: Members, dim: int) -> Problems:
        yield from _heads_divide(self.heads, dim)
        if not any(members.values()):
            yield (
                "type",
                f"{', '.join(members)} come as one vector each, as their encoders pool, and a bottleneck squeezes "
                "many tokens; take an encoder that hands on its tokens (`pool: none`), or transformer fusion",
            )


class LowRankFusion(FusionPart):
    """The outer product of all inputs, as a sum of few products of linear maps (Liu et al., 2018)."""

    type: Literal["low_rank"]
    rank: int = Field(8, ge=1, le=256)
    dropout: float = Field(0.1, ge=0, lt=1)


class FilmFusion(PerceptronFusion):
    """One input scales and shifts the features of the others (FiLM: Perez et al., 2018)."""

    type: Literal["film"]
    condition: Key
    """The input that conditions the others, such as a question."""
    blocks: int = Field(2, ge=1, le=48)
    """Residual blocks, each with its own scale and shift."""

    def problems_over(self, members: Members, dim: int) -> Problems:
        yield from _known("condition", [self.condition], members)
        if len(members) == 1:
            yield "condition", "there is one input, and no other that it could condition; use mlp"


class DecisionFusion(FusionPart):
    """A fusion at decision level: every input answers by itself, and the answers are joined."""

    hidden: int = Field(256, ge=8)
    """Width of the hidden layer that each input has for its own opinion."""
    dropout: float = Field(0.1, ge=0, lt=1)


class VoteFusion(DecisionFusion):
    """The answer that most inputs give; a tie goes to the one that they find more probable."""

    type: Literal["vote"]


class AverageFusion(DecisionFusion):
    """The mean of the inputs' answers: of the probabilities of classes, of numbers themselves."""

    type: Literal["average"]


class LearnedFusion(DecisionFusion):
    """The weighted mean of the inputs' answers, with a learned weight for each input and task."""

    type: Literal["learned"]


class StackingFusion(DecisionFusion):
    """A perceptron reads the answers of all inputs and corrects their mean (stacked generalization: Wolpert, 1992)."""

    type: Literal["stacking"]


_Flat = (
    ConcatFusion
    | ConcatConvFusion
    | SumFusion
    | WeightedFusion
    | MaxPoolFusion
    | GatedFusion
    | AttentionFusion
    | MlpFusion
    | CrossAttentionFusion
    | TransformerFusion
    | BottleneckFusion
    | LowRankFusion
    | FilmFusion
    | VoteFusion
    | AverageFusion
    | LearnedFusion
    | StackingFusion
)
_Own = Annotated[CustomFusion, Tag("custom")]
FlatFusion = Annotated[
    Annotated[Annotated[_Flat, Field(discriminator="type")], Tag("builtin")] | _Own,
    Discriminator(builtin_or_custom),
]
"""Any fusion but a tree of them."""


class Group(Block):
    """Some inputs, or other groups, and how they become one vector."""

    members: Annotated[list[Key], Field(min_length=1)]
    """Names of inputs and of other groups."""
    fusion: FlatFusion


class HierarchicalFusion(FusionPart):
    """A tree of fusions: groups of inputs or of other groups, and one that joins what is in no group."""

    type: Literal["hierarchical"]
    groups: Annotated[dict[Key, Group], Field(min_length=1)]
    """Name → what it joins, and how."""
    fusion: FlatFusion
    """Joins the groups and inputs that are in no group."""

    def ordered(self) -> list[str]:
        """The groups, those inside others first. Raises CycleError where groups contain each other."""
        inner = {
            name: [member for member in group.members if member in self.groups]
            for name, group in self.groups.items()
        }
        return list(TopologicalSorter(inner).static_order())

    def last(self, inputs: Iterable[str]) -> list[str]:
        """What `fusion` joins: inputs, then groups, that are in no group."""
        inside = {member for group in self.groups.values() for member in group.members}
        return [name for name in (*inputs, *self.groups) if name not in inside]

    def problems_over(self, members: Members, dim: int) -> Problems:
        wrong = list(self._problems_of_the_tree(members))
        return wrong or self._problems_of_the_parts(members, dim)

    def _problems_of_the_tree(self, members: Members) -> Problems:
        places: dict[str, str] = {}
        for name, group in self.groups.items():
            if name in members:
                yield f"groups.{name}", "an input has this name; call the group otherwise"
            for member in group.members:
                if member not in members and member not in self.groups:
                    known = [*members, *(other for other in self.groups if other != name)]
                    yield f"groups.{name}.members", f"no input or group `{member}`; {nearest(member, known)}"
                elif member in places:
                    yield (
                        f"groups.{name}.members",
                        f"`{member}` is in {places[member]} already; each is in one place of the tree",
                    )
                places[member] = name
        try:
            self.ordered()
        except CycleError as error:
            around = [str(name) for name in error.args[1]]
            yield f"groups.{around[0]}.members", f"groups contain each other: {' in '.join(around)}"

    def _problems_of_the_parts(self, members: Members, dim: int) -> Problems:
        known = {**members, **dict.fromkeys(self.groups, False)}
        for name, group in self.groups.items():
            if isinstance(group.fusion, DecisionFusion):
                yield (
                    f"groups.{name}.fusion.type",
                    f"{group.fusion.type} joins answers and makes no vector for the next fusion; only the last may",
                )
            inside = {member: known[member] for member in group.members}
            yield from _below(f"groups.{name}.fusion", group.fusion.problems_over(inside, dim))
        last = {name: known[name] for name in self.last(members)}
        yield from _below("fusion", self.fusion.problems_over(last, dim))


def _below(path: str, problems: Problems) -> Problems:
    return ((f"{path}.{where}", reason) for where, reason in problems)


Fusion = Annotated[
    Annotated[Annotated[_Flat | HierarchicalFusion, Field(discriminator="type")], Tag("builtin")] | _Own,
    Discriminator(builtin_or_custom),
]
