"""Every fusion: training and reloading, independence of absent inputs and other rows, and comparison with its paper."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch
from pydantic import TypeAdapter
from torch import nn
from variants import train_and_reload

from rayfuse.errors import SpecError
from rayfuse.model.encoders import Encoder
from rayfuse.model.fusion import FusionModule, FusionOutput, build_fusion
from rayfuse.model.fusion.layers import Attention, build_mlp, masked_softmax, mean_pool_present
from rayfuse.model.tasks import TaskHead, build_task
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import FUSIONS, FusionConfig
from rayfuse.spec.tasks import ClassificationTaskConfig, RegressionTaskConfig

NAMES = ["image", "text", "audio"]
DIM = 8
BATCH = 8
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

PERCEPTRON = {"hidden": 16, "layers": 1}
LAYERS = {"layers": 2, "heads": 2}
DECISION = {"hidden": 16}
TREE = {
    "groups": {
        "visual": {"members": ["image"], "fusion": {"type": "attention", "heads": 2}},
        "senses": {"members": ["audio", "visual"], "fusion": {"type": "gated", "hidden": 16}},
    },
    "fusion": {"type": "weighted", "hidden": 16},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "concat": PERCEPTRON,
    "concat_conv": {**PERCEPTRON, "channels": 2},
    "sum": PERCEPTRON,
    "weighted": PERCEPTRON,
    "max_pool": PERCEPTRON,
    "gated": PERCEPTRON,
    "attention": {**PERCEPTRON, "heads": 2},
    "mlp": {"hidden": 16, "blocks": 2},
    "cross_attention": LAYERS,
    "transformer": LAYERS,
    "bottleneck": {**LAYERS, "num_tokens": 2},
    "low_rank": {"rank": 2},
    "compare": {**PERCEPTRON, "heads": 2},
    "film": {**PERCEPTRON, "conditioned_on": "text"},
    "hierarchical": TREE,
    "soft_tokens": {},
    "vote": DECISION,
    "average": DECISION,
    "learned": DECISION,
    "stacking": DECISION,
}
VARIANTS = {
    **{name: {"type": name, **options} for name, options in OPTIONS.items()},
    "compare with demote": {"type": "compare", **PERCEPTRON, "demote": "text"},
    "cross_attention of one": {"type": "cross_attention", **LAYERS, "query": ["image"]},
    "hierarchical with votes": {
        "type": "hierarchical",
        "groups": {"senses": {"members": ["audio", "image"], "fusion": {"type": "concat", "hidden": 16}}},
        "fusion": {"type": "vote"},
    },
}
BY_PLACEHOLDER = {"concat", "concat_conv", "mlp", "hierarchical with votes"}
"""Fusions that use the placeholder of an absent input."""
WITH_ATTENTION = {
    "weighted", "gated", "attention", "cross_attention", "cross_attention of one", "transformer", "hierarchical",
}  # fmt: skip
DEFAULTS = sorted(set(FUSIONS) - {"film", "hierarchical"})

every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


class Rows(Encoder):
    """Encoder with a token per image row."""

    width = 24

    def __init__(self, options: object, source: object) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(24, 24)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        tokens = self.linear(pixel_values.transpose(1, 2).flatten(2))
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


class First(FusionModule):
    """Linear projection of the first token of the first input."""

    def __init__(self, options: Mapping[str, Any], dim: int, inputs: list[str]) -> None:
        super().__init__(options, dim, inputs)
        self.linear = nn.Linear(dim, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, _ = mean_pool_present(inputs)
        return {"vector": self.linear(vectors[:, 0])}


def build(block: dict[str, Any], inputs: list[str] = NAMES, dim: int = DIM) -> FusionModule:
    """Build a fusion in evaluation mode with random values for parameters that are initialized to zero."""
    torch.manual_seed(0)
    fusion = build_fusion(TypeAdapter(FusionConfig).validate_python(block), dim, inputs)
    fusion.attach_heads(heads(dim))
    for parameter in fusion.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return fusion.eval()


def heads(dim: int = DIM) -> dict[str, TaskHead]:
    torch.manual_seed(1)
    label = ClassificationTaskConfig(type="classification", column="label", classes=["a", "b", "c"])
    size = RegressionTaskConfig(type="regression", column="size", mean=100.0, std=20.0)
    return {"label": build_task(label, dim), "size": build_task(size, dim)}


def make_inputs(names: list[str] = NAMES, dim: int = DIM) -> dict[str, Tokens]:
    """Build random tokens, some of them masked; sample i has the inputs of the bits of i, so sample 7 has all."""
    torch.manual_seed(2)
    inputs = {}
    for bit, name in enumerate(names):
        tokens = torch.randn(BATCH, 2 + bit, dim)
        mask = torch.rand(BATCH, 2 + bit) < 0.7
        mask[:, 0] = True
        mask[[i for i in range(BATCH) if not i >> bit & 1]] = False
        inputs[name] = tokens, mask
    return inputs


def rows_of(inputs: dict[str, Tokens], rows: Any) -> dict[str, Tokens]:
    return {name: (tokens[rows], mask[rows]) for name, (tokens, mask) in inputs.items()}


def only(inputs: dict[str, Tokens], *names: str) -> dict[str, Tokens]:
    """Mask all other inputs of all samples."""
    return {name: (tokens, mask & (name in names)) for name, (tokens, mask) in inputs.items()}


@torch.no_grad()
def all_of(fusion: FusionModule, inputs: dict[str, Tokens]) -> dict[str, torch.Tensor]:
    """Return all outputs: those of the fusion and the raw outputs of each task."""
    joined = fusion(inputs)
    fused = {**joined, "inputs": inputs, "word_starts": {}}
    answered = {name: fusion.apply_head(name, head, fused) for name, head in heads().items()}  # type: ignore[arg-type]
    return {**joined, **answered}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_fusion_has_a_variant() -> None:
    assert list(OPTIONS) == list(FUSIONS)


@every_variant
def test_every_fusion_trains_and_reloads(variant: str, tmp_path: Path) -> None:
    overrides = {
        "fusion": VARIANTS[variant],
        "align.dim": DIM,
        "inputs.image.encoder": {"type": f"{__name__}:Rows"},
        "tasks.brightness": {"type": "regression"},
    }
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, audio=True, **overrides))


@pytest.mark.parametrize("type_", DEFAULTS)
def test_defaults(type_: str) -> None:
    fusion = build({"type": type_}, NAMES[:2])
    assert fusion(make_inputs(NAMES[:2]))["vector"].shape == (BATCH, DIM)


@pytest.mark.parametrize("type_", [name for name in DEFAULTS if name not in ("compare", "cross_attention")])
def test_single_input(type_: str) -> None:
    assert torch.isfinite(all_of(build({"type": type_}, ["text"]), make_inputs(["text"]))["label"]).all()


@every_variant
def test_samples_are_independent(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    together = all_of(fusion, inputs)
    for i in range(BATCH):
        alone = all_of(fusion, rows_of(inputs, [i]))
        assert_same(alone, {name: tensor[[i]] for name, tensor in together.items()})


@every_variant
@pytest.mark.parametrize("present", [NAMES, ["text"], []], ids="+".join)
def test_absent_inputs_have_no_effect(variant: str, present: list[str]) -> None:
    """Change masked tokens and, except in fusions that use them, placeholders; also of entire batches."""
    fusion, inputs = build(VARIANTS[variant]), only(make_inputs(), *present)
    changed = {}
    for name, (tokens, mask) in inputs.items():
        counts = mask.clone()
        if variant in BY_PLACEHOLDER:
            counts[:, 0] = True
        changed[name] = torch.where(counts.unsqueeze(2), tokens, 9 * torch.randn_like(tokens)), mask
    assert_same(all_of(fusion, changed), all_of(fusion, inputs))


@every_variant
def test_any_subset_is_fused_and_every_input_matters(variant: str) -> None:
    fusion, full = build(VARIANTS[variant]), rows_of(make_inputs(), [7])
    subsets = [chosen for size in range(4) for chosen in combinations(NAMES, size)]
    outputs = [all_of(fusion, only(full, *chosen))["size"] for chosen in subsets]
    assert all(torch.isfinite(output).all() for output in outputs)
    for first, second in combinations(outputs, 2):
        assert not torch.allclose(first, second, rtol=1e-6, atol=1e-5)


@every_variant
def test_attention_sums_to_1_over_present_inputs(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    joined = fusion(inputs)
    assert ("attention" in joined) == (variant in WITH_ATTENTION)
    for name in {"attention", "decision_weights"} & joined.keys():
        weights = joined[name]
        if name == "attention" or "hierarchical" not in variant:
            there = torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1)
            assert weights.shape == there.shape
            assert not weights[~there].any()
            assert (weights[there] > 0).all()
        torch.testing.assert_close(weights.sum(dim=1), (torch.arange(BATCH) > 0).float())


@every_variant
@pytest.mark.parametrize("present", [NAMES, []], ids=["all", "none"])
def test_gradients_are_finite_and_reach_every_parameter(variant: str, present: list[str]) -> None:
    fusion, inputs = build(VARIANTS[variant]).train(), only(make_inputs(), *present)
    for tokens, _ in inputs.values():
        tokens.requires_grad_()
    fused = {**fusion(inputs), "inputs": inputs, "word_starts": {}}
    sum(fusion.apply_head(name, head, fused).square().sum() for name, head in heads().items()).backward()  # type: ignore
    leaves = {**dict(fusion.named_parameters()), **{name: part[0] for name, part in inputs.items()}}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
    for name, (tokens, mask) in inputs.items():
        if variant not in BY_PLACEHOLDER:
            assert not tokens.grad[~mask].any(), name  # type: ignore[index]


@every_variant
def test_bf16(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    wanted = all_of(fusion, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = all_of(fusion, {name: (tokens.bfloat16(), mask) for name, (tokens, mask) in inputs.items()})
    for name in {"label", "attention", "decision_weights"} & wanted.keys() - (
        {"label"} if "vote" in variant else set()
    ):
        torch.testing.assert_close(found[name].float(), wanted[name], rtol=0.1, atol=0.1)


def full_sample() -> dict[str, Tokens]:
    """Build a sample with all three inputs, one token each."""
    torch.manual_seed(3)
    return {name: (torch.randn(1, 1, DIM), torch.ones(1, 1, dtype=torch.bool)) for name in NAMES}


@torch.no_grad()
def test_sum_is_invariant_to_the_order_of_inputs() -> None:
    fusion, inputs = build(VARIANTS["sum"]), make_inputs()
    turned = dict(zip(NAMES, [inputs["audio"], inputs["image"], inputs["text"]], strict=True))
    torch.testing.assert_close(fusion(turned)["vector"], fusion(inputs)["vector"])


@torch.no_grad()
def test_weights_are_renormalized_over_present_inputs() -> None:
    fusion: Any = build(VARIANTS["weighted"])
    fusion.scores.copy_(torch.tensor([0.0, 1.0, 2.0]))
    inputs = full_sample()
    for present in (NAMES, ["image", "audio"]):
        scores = torch.tensor([0.0, 1.0, 2.0])[[NAMES.index(name) for name in present]]
        mixed = sum(w * inputs[n][0][:, 0] for w, n in zip(scores.softmax(0), present, strict=True))
        torch.testing.assert_close(fusion(only(inputs, *present))["vector"], fusion.layers(mixed))


@torch.no_grad()
def test_max_pool_over_present_inputs() -> None:
    fusion: Any = build(VARIANTS["max_pool"])
    inputs = {name: (-tokens.abs(), mask) for name, (tokens, mask) in full_sample().items()}
    largest = torch.maximum(inputs["image"][0], inputs["audio"][0])[:, 0]
    torch.testing.assert_close(fusion(only(inputs, "image", "audio"))["vector"], fusion.layers(largest))


@torch.no_grad()
def test_concat_conv_convolves_along_features() -> None:
    fusion: Any = build({**VARIANTS["concat_conv"], "kernel_size": 1})
    vectors = torch.cat([tokens for tokens, _ in full_sample().values()], dim=1)
    channels = torch.einsum("ci,bid->bcd", fusion.convolution.weight[:, :, 0], vectors)
    channels = channels + fusion.convolution.bias[:, None]
    wanted = fusion.layers(torch.cat([nn.functional.gelu(channels).flatten(1), torch.ones(1, 3)], dim=1))
    torch.testing.assert_close(fusion(full_sample())["vector"], wanted)


@torch.no_grad()
def test_gates_of_two_inputs_equal_those_of_the_paper() -> None:
    """Compare with z ⊙ tanh(W₁ x₁) + (1 - z) ⊙ tanh(W₂ x₂) (Arevalo et al., 2017)."""
    fusion: Any = build(VARIANTS["gated"], NAMES[:2])
    inputs = {name: full_sample()[name] for name in NAMES[:2]}
    first, second = (tokens[:, 0] for tokens, _ in inputs.values())
    ones = torch.ones(1, 1)
    scores = fusion.gates(torch.cat([first, ones, second, ones], dim=1))
    z = torch.sigmoid(scores[:, :DIM] - scores[:, DIM:])
    mixed = z * fusion.values[0](first).tanh() + (1 - z) * fusion.values[1](second).tanh()
    joined = fusion(inputs)
    torch.testing.assert_close(joined["vector"], fusion.layers(mixed))
    torch.testing.assert_close(joined["attention"][:, 0], z.mean(dim=1))


def test_gates_learn_to_ignore_a_noisy_input() -> None:
    """Two inputs carry the label: the first with noise, the second without, but only in half of the samples."""
    torch.manual_seed(0)
    fusion = build({"type": "gated", "hidden": 32, "layers": 1, "dropout": 0}, ["steady", "fickle"]).train()
    head = nn.Linear(DIM, 4)
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.01)
    words = torch.randn(4, DIM)

    def sample(size: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Tokens]]:
        label, noisy = torch.randint(4, (size,)), torch.rand(size) < 0.5
        steady = words[label] + 2 * torch.randn(size, DIM)
        fickle = torch.where(noisy.unsqueeze(1), 3 * torch.randn(size, DIM), words[label])
        mask = torch.ones(size, 1, dtype=torch.bool)
        return (
            label,
            noisy,
            {"steady": (steady.unsqueeze(1), mask), "fickle": (fickle.unsqueeze(1), mask)},
        )

    for _ in range(150):
        label, _, inputs = sample(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(fusion(inputs)["vector"]), label).backward()
        optimizer.step()
    _, noisy, inputs = sample(512)
    trusted = fusion.eval()(inputs)["attention"][:, 1]
    assert trusted[noisy].mean() < 0.3
    assert trusted[~noisy].mean() > 0.6


@torch.no_grad()
def test_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(DIM, 2, 0.0), nn.MultiheadAttention(DIM, 2, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    queries, context = torch.randn(4, 3, DIM), torch.randn(4, 5, DIM)
    mask = torch.tensor([[True, True, False, True, False]]).expand(4, -1)
    found, attention = ours(queries, context, mask)
    wanted, weights = theirs(queries, context, context, key_padding_mask=~mask)
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(attention, weights[:, 0], **CLOSE)


@torch.no_grad()
def test_only_query_inputs_attend_to_others() -> None:
    fusion: Any = build(VARIANTS["cross_attention of one"])
    assert fusion.query_inputs == ["image"]
    assert len(fusion.layers) == 1
    inputs, seen = make_inputs(), []
    fusion.readout.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    fusion(inputs)
    other = dict(inputs, audio=(inputs["audio"][0] + 1, inputs["audio"][1]))
    fusion(other)
    changed = (seen[0] != seen[1]).any(dim=2)[7]
    assert changed.tolist() == [False, True, True, False, False, False, True, True, True, True]


@torch.no_grad()
def test_inputs_interact_only_through_the_bottleneck() -> None:
    """With a constant bottleneck, the class token of each input equals that of the input alone."""
    fusion: Any = build(VARIANTS["bottleneck"])
    seen: list[torch.Tensor] = []
    fusion.layers[-1][0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    inputs = rows_of(make_inputs(), [7])
    for chosen in (inputs, only(inputs, "image")):
        fusion(chosen)
    together, alone = seen
    torch.testing.assert_close(
        together[:, fusion.num_bottleneck_tokens :], alone[:, fusion.num_bottleneck_tokens :]
    )
    assert not torch.allclose(
        together[:, : fusion.num_bottleneck_tokens], alone[:, : fusion.num_bottleneck_tokens], atol=1e-3
    )


@torch.no_grad()
def test_low_rank_fusion_equals_the_full_tensor_product() -> None:
    """Compare with h = W · (x₁;1) ⊗ (x₂;1), with W composed of its factors (Liu et al., 2018)."""
    fusion: Any = build({"type": "low_rank", "rank": 3}, NAMES[:2])
    inputs = {name: full_sample()[name] for name in NAMES[:2]}
    factors = [torch.cat([f.weight, f.bias[:, None]], dim=1).view(DIM, 3, DIM + 1) for f in fusion.factors]
    tensor = torch.einsum("r,hri,hrj->hij", fusion.rank_weights.weight[0], *factors)
    vectors = [torch.cat([tokens[0, 0], torch.ones(1)]) for tokens, _ in inputs.values()]
    product = torch.einsum("hij,i,j->h", tensor, *vectors) + fusion.rank_weights.bias
    torch.testing.assert_close(fusion(inputs)["vector"][0], fusion.norm(product), **CLOSE)


@torch.no_grad()
def test_compare_pools_the_best_matches_of_tokens() -> None:
    """Compare with a loop over the tokens, one of them demoted."""
    fusion: Any = build({"type": "compare", "heads": 2, "demote": "audio"})
    inputs = rows_of(make_inputs(), [7])
    units = {}
    for name, (tokens, mask) in inputs.items():
        units[name] = nn.functional.normalize(tokens[mask].unflatten(1, (2, -1)), dim=2)
    wanted = []
    for first, second in (("image", "text"), ("text", "image")):
        heads = range(2)
        matches = [[max(t[h] @ o[h] for o in units[second]) for t in units[first]] for h in heads]
        repeated = [[max(t[h] @ o[h] for o in units["audio"]) for t in units[first]] for h in heads]
        for demoted in (False, True):
            for h in heads:
                weights = [max(1 - one.item(), 0.02) if demoted else 1.0 for one in repeated[h]]
                pooled = [
                    w * torch.exp(-((match - fusion.centers) ** 2) / (2 * fusion.widths**2))
                    for w, match in zip(weights, matches[h], strict=True)
                ]
                wanted.append(sum(pooled) / sum(weights))
    features = torch.cat([*wanted, torch.ones(3)])
    torch.testing.assert_close(fusion(inputs)["vector"][0], fusion.layers(features), **CLOSE)


def test_compare_distinguishes_a_repeated_question_from_an_answer() -> None:
    """The answer repeats the question, or the part of the reference that the question lacks."""
    torch.manual_seed(0)
    options = {"hidden": 16, "layers": 1, "dropout": 0}
    fusion = build({"type": "compare", **options, "demote": "question"}, ["question", "reference", "answer"])
    head, words = nn.Linear(DIM, 1), nn.functional.normalize(torch.randn(40, DIM), dim=1)
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.02)

    def sample(size: int) -> tuple[torch.Tensor, dict[str, Tokens]]:
        ids = torch.rand(size, 40).argsort(dim=1)
        label = torch.rand(size) < 0.5
        question, content, other = ids[:, :2], ids[:, 2:4], ids[:, 4:6]
        repeated = torch.where(
            label[:, None], torch.cat([content, other], 1), torch.cat([question, other], 1)
        )
        texts = {"question": question, "reference": torch.cat([question, content], 1), "answer": repeated}
        return label.float(), {
            name: (words[one], torch.ones(one.shape, dtype=torch.bool)) for name, one in texts.items()
        }

    for _ in range(150):
        label, inputs = sample(64)
        optimizer.zero_grad()
        logits = head(fusion(inputs)["vector"])[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step()
    label, inputs = sample(512)
    with torch.no_grad():
        right = (head(fusion(inputs)["vector"])[:, 0] > 0) == (label > 0)
    assert right.float().mean() > 0.95


@torch.no_grad()
def test_film_modulates_if_the_condition_is_present() -> None:
    fusion: Any = build(VARIANTS["film"])
    inputs = make_inputs()
    before = fusion(inputs)["vector"]
    for blocks in fusion.blocks:
        for block in blocks:
            nn.init.normal_(block.modulation.weight)
            nn.init.normal_(block.modulation.bias)
    same = torch.isclose(fusion(inputs)["vector"], before).all(dim=1)
    has_text, has_more = (torch.arange(BATCH) & 2) > 0, (torch.arange(BATCH) & 5) > 0
    assert same.tolist() == (~(has_text & has_more)).tolist()


@torch.no_grad()
def test_hierarchical_fusion_composes_its_fusions() -> None:
    fusion: Any = build(VARIANTS["hierarchical"])
    inputs = rows_of(make_inputs(), [7])
    there = torch.ones(1, 1, dtype=torch.bool)
    visual = fusion.group_fusions[0]({"image": inputs["image"]})
    senses = fusion.group_fusions[1]({"audio": inputs["audio"], "visual": (visual["vector"][:, None], there)})
    last = fusion.root_fusion({"text": inputs["text"], "senses": (senses["vector"][:, None], there)})
    joined = fusion(inputs)
    torch.testing.assert_close(joined["vector"], last["vector"])
    on_text, on_senses = last["attention"][0]
    on_audio, on_seen = on_senses * senses["attention"][0]
    torch.testing.assert_close(joined["attention"][0], torch.stack([on_seen, on_text, on_audio]))


def test_hierarchical_fusion_with_custom_fusions(tmp_path: Path) -> None:
    mine = {"type": f"{__name__}:First"}
    tree = {
        "type": "hierarchical",
        "groups": {"senses": {"members": ["audio", "image"], "fusion": mine}},
        "fusion": {**mine, "options": {"any": 1}},
    }
    model, _ = train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, audio=True, fusion=tree))
    fusion: Any = model.fusion
    assert isinstance(fusion.group_fusions[0], First)
    assert isinstance(fusion.root_fusion, First)


def log_probabilities(*rows: list[float]) -> torch.Tensor:
    """Return log-probabilities of three inputs over three classes, for one sample."""
    return torch.tensor([rows]).log()


def combine(type_: str, outputs: torch.Tensor, present: list[bool]) -> torch.Tensor:
    fusion: Any = build({"type": type_})
    return fusion.combine_outputs("label", heads()["label"], outputs, torch.tensor([present])).softmax(dim=1)[
        0
    ]


@torch.no_grad()
def test_vote_counts_classes_and_average_takes_probabilities() -> None:
    outputs = log_probabilities([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.01, 0.01, 0.98])
    everyone = [True, True, True]
    assert combine("vote", outputs, everyone).tolist() == pytest.approx([2 / 3, 0, 1 / 3], abs=1e-3)
    average = [0.81 / 3, 0.61 / 3, 1.58 / 3]
    assert combine("average", outputs, everyone).tolist() == pytest.approx(average)
    assert combine("vote", outputs, [True, False, False]).argmax() == 0
    tie = combine("vote", outputs, [True, False, True])
    assert tie.argmax() == 2
    assert tie[0] == pytest.approx(0.5, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rows", [7, 5], ids=["all", "image+audio"])
def test_average_is_the_mean_of_single_input_predictions(rows: int) -> None:
    fusion, inputs = build(VARIANTS["average"]), rows_of(make_inputs(), [rows])
    present = [name for bit, name in enumerate(NAMES) if rows >> bit & 1]
    single = [all_of(fusion, only(inputs, name)) for name in present]
    found = all_of(fusion, inputs)
    mean = torch.stack([one["label"].softmax(dim=1) for one in single]).mean(dim=0)
    torch.testing.assert_close(found["label"].softmax(dim=1), mean)
    torch.testing.assert_close(found["size"], torch.stack([one["size"] for one in single]).mean(dim=0))


@torch.no_grad()
def test_learned_weights_are_per_task() -> None:
    fusion: Any = build(VARIANTS["learned"])
    fusion.task_weights["label"].scores.copy_(torch.tensor([0.0, 3.0, 0.0]))
    fusion.task_weights["size"].scores.copy_(torch.tensor([1.0, 0.0, 0.0]))
    inputs = full_sample()
    single = [all_of(fusion, only(inputs, name)) for name in NAMES]
    found = all_of(fusion, inputs)
    weights = {task: fusion.task_weights[task].scores.softmax(dim=0) for task in ("label", "size")}
    wanted = sum(w * one["label"].softmax(dim=1) for w, one in zip(weights["label"], single, strict=True))
    torch.testing.assert_close(found["label"].softmax(dim=1), wanted)
    wanted = sum(w * one["size"] for w, one in zip(weights["size"], single, strict=True))
    torch.testing.assert_close(found["size"], wanted)
    torch.testing.assert_close(found["decision_weights"][0], (weights["label"] + weights["size"]) / 2)


@torch.no_grad()
def test_stacking_corrects_the_average_in_units_of_the_task() -> None:
    fusion: Any = build(VARIANTS["stacking"])
    average: Any = build(VARIANTS["average"])
    average.load_state_dict({k: v for k, v in fusion.state_dict().items() if "meta_learners" not in k})
    inputs = rows_of(make_inputs(), [5])
    stacked, plain = all_of(fusion, inputs), all_of(average, inputs)
    image, audio = (all_of(average, only(inputs, name))["size"] for name in ("image", "audio"))
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    features = torch.cat([(image - 100) / 20, one, zero, zero, (audio - 100) / 20, one], dim=1)
    torch.testing.assert_close(stacked["size"], plain["size"] + 20 * fusion.meta_learners["size"](features))
    for learner in fusion.meta_learners.values():
        nn.init.zeros_(learner[-1].weight)
        nn.init.zeros_(learner[-1].bias)
    assert_same(all_of(fusion, inputs), plain)


def test_stacking_requires_a_fixed_number_of_outputs() -> None:
    fusion = build(VARIANTS["stacking"])
    head = heads()["label"]
    head.num_outputs = None
    with pytest.raises(
        SpecError,
        match=r"fusion\.type: stacking requires a fixed number of raw outputs, .* head of tasks\.mine .*; use learned",
    ):
        fusion.attach_heads({"mine": head})


def test_masked_softmax_without_inputs_is_zero() -> None:
    present = torch.tensor([[True, True], [False, True], [False, False]])
    scores = torch.tensor([0.0, 1.0]).expand(3, 2)
    found = masked_softmax(scores, present)
    torch.testing.assert_close(found, torch.tensor([[0.26894, 0.73106], [0, 1], [0, 0]]), rtol=0, atol=1e-4)


def test_build_mlp_has_the_configured_hidden_layers() -> None:
    options: Any = TypeAdapter(FusionConfig).validate_python({"type": "sum", "hidden": 16, "layers": 3})
    sizes = [layer.out_features for layer in build_mlp(5, options, DIM) if isinstance(layer, nn.Linear)]
    assert sizes == [16, 16, 16, DIM]
