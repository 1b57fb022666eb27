"""Fusions: how aligned inputs become one vector, or one prediction."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.base import JobSection, Key, Problems, SpecModel
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.family import CustomConfig, Family, PartOf

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

Members = Mapping[str, bool]
"""Members of a fusion, in order: the name of an input or a group → whether it may have more than one token."""


class BaseFusionConfig(JobSection):
    """Options of every fusion, at the top of a job or in a tree of fusions."""

    type: str
    """Kind of fusion, or the import path of a custom one."""

    def validate_in_job(self, job: "Job") -> Problems:
        members = {name: _may_have_tokens(job, name) for name in job.inputs}
        return self.validate_members(members, job.align.dim)

    def validate_members(self, members: Members, dim: int) -> Problems:
        """Yield an error for each rule that joining these members, each `dim` wide, breaks."""
        return ()


def _may_have_tokens(job: "Job", name: str) -> bool:
    source = job.inputs[name]
    tokens = job.align_of(name).tokens_per_value
    if tokens is not None:
        return tokens * source.max_items > 1
    return source.max_items > 1 or source.encoder.outputs_tokens


def _validate_heads(heads: int, dim: int) -> Problems:
    if dim % heads:
        yield "heads", f"{heads} does not divide align.dim {dim}; use a divisor of {dim}"


def _validate_names(path: str, names: Iterable[str], members: Members) -> Problems:
    for name in names:
        if name not in members:
            yield path, f"no input `{name}`; {suggest_nearest(name, list(members))}"


class CustomFusionConfig(CustomConfig, BaseFusionConfig):
    """A subclass of rayfuse.model.fusion.FusionModule, by import path."""

    base_class: ClassVar[str] = "rayfuse.model.fusion.base:FusionModule"


class PerceptronFusionConfig(BaseFusionConfig):
    """Options of a fusion that ends in a multilayer perceptron."""

    hidden: int = Field(256, ge=8)
    """Width of the perceptron's hidden layers."""
    layers: int = Field(2, ge=1, le=8)
    """Hidden layers of the perceptron."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate after each hidden layer."""


class ConcatFusionConfig(PerceptronFusionConfig):
    """Concatenation of one vector per input, through a multilayer perceptron."""

    type: Literal["concat"]


class ConcatConvFusionConfig(PerceptronFusionConfig):
    """The inputs' vectors as the channels of a signal, through a 1-d convolution and a multilayer perceptron."""

    type: Literal["concat_conv"]
    channels: int = Field(8, ge=1, le=256)
    """Output channels of the convolution."""
    kernel_size: int = Field(3, ge=1, le=63)
    """Neighboring features that each output of the convolution depends on."""


class SumFusionConfig(PerceptronFusionConfig):
    """The sum of the inputs that are present, through a multilayer perceptron."""

    type: Literal["sum"]


class WeightedFusionConfig(PerceptronFusionConfig):
    """A weighted mean with one learned weight per input, normalized over the inputs that are present."""

    type: Literal["weighted"]


class MaxPoolFusionConfig(PerceptronFusionConfig):
    """The maximum of each feature over the inputs that are present, through a multilayer perceptron."""

    type: Literal["max_pool"]


class GatedFusionConfig(PerceptronFusionConfig):
    """A mean with one gate per feature and input, computed from all inputs (gated multimodal unit; Arevalo et al., 2017).

    A noisy input gets small gates.
    """

    type: Literal["gated"]


class AttentionFusionConfig(PerceptronFusionConfig):
    """Softmax attention over the inputs, each scored independently (additive attention; Bahdanau et al., 2015)."""

    type: Literal["attention"]
    heads: int = Field(4, ge=1, le=64)
    """Parts of the vector with separate attention weights; they must divide align.dim."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        return _validate_heads(self.heads, dim)


class MlpFusionConfig(BaseFusionConfig):
    """Concatenation of one vector per input, through residual blocks (He et al., 2016)."""

    type: Literal["mlp"]
    hidden: int = Field(256, ge=8)
    """Width of the residual stream."""
    blocks: int = Field(3, ge=1, le=48)
    """Number of residual blocks."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each block."""


class TransformerFusionConfig(BaseFusionConfig):
    """Self-attention over the tokens of all inputs and a summary token (Vaswani et al., 2017)."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    """Number of transformer layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they must divide align.dim."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        return _validate_heads(self.heads, dim)


class CrossAttentionFusionConfig(BaseFusionConfig):
    """Crossmodal transformer (Tsai et al., 2019): inputs query the tokens of all others, then a summary token attends."""

    type: Literal["cross_attention"]
    query: Annotated[list[Key], Field(min_length=1)] | None = None
    """Inputs that query the others; by default all."""
    layers: int = Field(2, ge=1, le=48)
    """Number of cross-attention layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they must divide align.dim."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        yield from _validate_heads(self.heads, dim)
        yield from _validate_names("query", self.query or (), members)
        querying = [name for name in self.query or members if name in members]
        if len(set(querying)) < len(querying):
            yield "query", f"{', '.join(querying)}: an input is listed twice; list each once"
        if len(members) == 1:
            yield "type", "cross_attention needs 2 inputs, and there is 1; use transformer"
        elif not any(_has_multiple_vectors(name, members) for name in querying):
            other = next(name for name in members if name != querying[0])
            yield (
                "query",
                f"`{querying[0]}` would attend to a single vector, as the encoder of `{other}` pools; "
                "set `pool: none` for that encoder, or use gated fusion",
            )


def _has_multiple_vectors(query: str, members: Members) -> bool:
    others = [tokens for name, tokens in members.items() if name != query]
    return len(others) > 1 or any(others)


class BottleneckFusionConfig(BaseFusionConfig):
    """A transformer per input; inputs exchange information only through a few bottleneck tokens (Nagrani et al., 2021)."""

    type: Literal["bottleneck"]
    num_tokens: int = Field(4, ge=1, le=256)
    """Number of bottleneck tokens."""
    layers: int = Field(2, ge=2, le=48)
    """Number of transformer layers; inputs exchange information from the second on."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they must divide align.dim."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        yield from _validate_heads(self.heads, dim)
        if not any(members.values()):
            yield (
                "type",
                f"bottleneck needs an input with many tokens, and the encoders of {', '.join(members)} pool; "
                "set `pool: none` for an encoder, or use transformer fusion",
            )


class LowRankFusionConfig(BaseFusionConfig):
    """The outer product of all inputs, as a low-rank sum of products of linear maps (Liu et al., 2018)."""

    type: Literal["low_rank"]
    rank: int = Field(8, ge=1, le=256)
    """Number of products in the sum."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the inputs' vectors."""


class CompareFusionConfig(PerceptronFusionConfig):
    """Similarity of the tokens of each input to those of every other, through a multilayer perceptron.

    Soft histograms of the highest cosine similarities (K-NRM, Xiong et al., 2017; BERTScore, Zhang et al., 2020).
    """

    type: Literal["compare"]
    heads: int = Field(1, ge=1, le=64)
    """Parts of the vectors that are compared separately, such as hidden states side by side; they must divide align.dim."""
    demote: Key | None = None
    """An input that is not compared itself, and whose tokens count less in the others: a question whose words an answer
    repeats (question demoting; Sultan et al., 2016)."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        yield from _validate_heads(self.heads, dim)
        yield from _validate_names("demote", [] if self.demote is None else [self.demote], members)
        compared = [name for name in members if name != self.demote]
        if len(compared) < 2:
            others = f" next to `{self.demote}`" if self.demote in members else ""
            yield "type", f"compare needs 2 inputs{others}, and there is {len(compared)}; use mlp"


class FilmFusionConfig(PerceptronFusionConfig):
    """One input scales and shifts the features of the others (FiLM; Perez et al., 2018)."""

    type: Literal["film"]
    conditioned_on: Key
    """The input that conditions the others, such as a question."""
    blocks: int = Field(2, ge=1, le=48)
    """Number of residual blocks, each with a scale and a shift."""

    def validate_members(self, members: Members, dim: int) -> Problems:
        yield from _validate_names("conditioned_on", [self.conditioned_on], members)
        if len(members) == 1:
            yield "conditioned_on", "film needs 2 inputs, and there is 1; use mlp"


class SoftTokensFusionConfig(BaseFusionConfig):
    """The mean of the inputs that are present, without parameters, for tasks that read the inputs' tokens themselves."""

    type: Literal["soft_tokens"]


class DecisionFusionConfig(BaseFusionConfig):
    """Options of a fusion at decision level: each input has its own prediction, and these are combined."""

    hidden: int = Field(256, ge=8)
    """Width of the hidden layer of each input's prediction."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate after the hidden layer."""


class VoteFusionConfig(DecisionFusionConfig):
    """The majority vote of the inputs' predictions; ties are broken by probability."""

    type: Literal["vote"]


class AverageFusionConfig(DecisionFusionConfig):
    """The mean of the inputs' predictions: of class probabilities, or of numbers."""

    type: Literal["average"]


class LearnedFusionConfig(DecisionFusionConfig):
    """The weighted mean of the inputs' predictions, with a learned weight for each input and task."""

    type: Literal["learned"]


class StackingFusionConfig(DecisionFusionConfig):
    """A perceptron corrects the mean of the inputs' predictions (stacked generalization; Wolpert, 1992)."""

    type: Literal["stacking"]


FlatFusionConfig = Annotated[BaseFusionConfig, PartOf(lambda: FUSIONS, exclude=("hierarchical",))]
"""Any fusion except a tree of fusions."""


class FusionGroupConfig(SpecModel):
    """A group of inputs and of other groups, fused to one vector."""

    members: Annotated[list[Key], Field(min_length=1)]
    """Names of inputs and of other groups."""
    fusion: FlatFusionConfig
    """Fusion of the members."""


class HierarchicalFusionConfig(BaseFusionConfig):
    """A tree of fusions: groups of inputs or of other groups, and a fusion of what is in no group."""

    type: Literal["hierarchical"]
    groups: Annotated[dict[Key, FusionGroupConfig], Field(min_length=1)]
    """Groups by name."""
    fusion: FlatFusionConfig
    """Fusion of the groups and of the inputs that are in no group."""

    def topological_order(self) -> list[str]:
        """Return the names of the groups, inner ones first. Raises CycleError if groups contain each other."""
        inner = {
            name: [member for member in group.members if member in self.groups]
            for name, group in self.groups.items()
        }
        return list(TopologicalSorter(inner).static_order())

    def root_members(self, inputs: Iterable[str]) -> list[str]:
        """Return the names of the parts that `fusion` joins: inputs, then groups, that are in no group."""
        inside = {member for group in self.groups.values() for member in group.members}
        return [name for name in (*inputs, *self.groups) if name not in inside]

    def validate_members(self, members: Members, dim: int) -> Problems:
        errors = list(self._validate_tree(members))
        return errors or self._validate_nested_fusions(members, dim)

    def _validate_tree(self, members: Members) -> Problems:
        places: dict[str, str] = {}
        for name, group in self.groups.items():
            if name in members:
                yield f"groups.{name}", f"`{name}` is also the name of an input; rename the group"
            for member in group.members:
                if member not in members and member not in self.groups:
                    known = [*members, *(other for other in self.groups if other != name)]
                    yield (
                        f"groups.{name}.members",
                        f"no input or group `{member}`; {suggest_nearest(member, known)}",
                    )
                elif member in places:
                    yield (
                        f"groups.{name}.members",
                        f"`{member}` is already in {places[member]}; list it in one group",
                    )
                places[member] = name
        try:
            self.topological_order()
        except CycleError as error:
            cycle = [str(name) for name in error.args[1]]
            yield f"groups.{cycle[0]}.members", f"groups contain each other: {' in '.join(cycle)}"

    def _validate_nested_fusions(self, members: Members, dim: int) -> Problems:
        known = {**members, **dict.fromkeys(self.groups, False)}
        for name, group in self.groups.items():
            if isinstance(group.fusion, DecisionFusionConfig):
                yield (
                    f"groups.{name}.fusion.type",
                    f"{group.fusion.type} combines predictions and has no vector for the next fusion; "
                    "use it only at the root",
                )
            inside = {member: known[member] for member in group.members}
            yield from _prefix_paths(f"groups.{name}.fusion", group.fusion.validate_members(inside, dim))
        root = {name: known[name] for name in self.root_members(members)}
        yield from _prefix_paths("fusion", self.fusion.validate_members(root, dim))


def _prefix_paths(path: str, problems: Problems) -> Problems:
    return ((f"{path}.{where}", reason) for where, reason in problems)


FusionConfig = Annotated[BaseFusionConfig, PartOf(lambda: FUSIONS)]
"""Any fusion."""

FUSIONS: Family[BaseFusionConfig] = Family(
    "fusion",
    {
        ConcatFusionConfig: "rayfuse.model.fusion.concat:ConcatFusion",
        ConcatConvFusionConfig: "rayfuse.model.fusion.concat_conv:ConcatConvFusion",
        SumFusionConfig: "rayfuse.model.fusion.sum:SumFusion",
        WeightedFusionConfig: "rayfuse.model.fusion.weighted:WeightedFusion",
        MaxPoolFusionConfig: "rayfuse.model.fusion.max_pool:MaxPoolFusion",
        GatedFusionConfig: "rayfuse.model.fusion.gated:GatedFusion",
        AttentionFusionConfig: "rayfuse.model.fusion.attention:AttentionFusion",
        MlpFusionConfig: "rayfuse.model.fusion.mlp:MlpFusion",
        CrossAttentionFusionConfig: "rayfuse.model.fusion.cross_attention:CrossAttentionFusion",
        TransformerFusionConfig: "rayfuse.model.fusion.transformer:TransformerFusion",
        BottleneckFusionConfig: "rayfuse.model.fusion.bottleneck:BottleneckFusion",
        LowRankFusionConfig: "rayfuse.model.fusion.low_rank:LowRankFusion",
        CompareFusionConfig: "rayfuse.model.fusion.compare:CompareFusion",
        FilmFusionConfig: "rayfuse.model.fusion.film:FilmFusion",
        HierarchicalFusionConfig: "rayfuse.model.fusion.hierarchical:HierarchicalFusion",
        SoftTokensFusionConfig: "rayfuse.model.fusion.soft_tokens:SoftTokensFusion",
        VoteFusionConfig: "rayfuse.model.fusion.vote:VoteFusion",
        AverageFusionConfig: "rayfuse.model.fusion.average:AverageFusion",
        LearnedFusionConfig: "rayfuse.model.fusion.learned:LearnedFusion",
        StackingFusionConfig: "rayfuse.model.fusion.stacking:StackingFusion",
    },
    custom=CustomFusionConfig,
)
"""The built-in fusions."""
