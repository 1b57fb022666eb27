"""Every fusion: trained and loaded again, blind to what is absent and to its neighbours, and true to its source."""

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
from rayfuse.model.fusion import FUSIONS, FusionModule, Joined, build_fusion
from rayfuse.model.fusion.parts import Attention, perceptron, present_means, shares
from rayfuse.model.tasks import TaskHead, build_task
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import Fusion
from rayfuse.spec.tasks import ClassificationTask, RegressionTask

NAMES = ["image", "text", "audio"]
DIM = 8
BATCH = 8
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

PERCEPTRON = {"hidden": 16, "layers": 1}
LAYERS = {"layers": 2, "heads": 2}
DECISION = {"hidden": 16}
TREE = {
    "groups": {
        "seen": {"members": ["image"], "fusion": {"type": "attention", "heads": 2}},
        "senses": {"members": ["audio", "seen"], "fusion": {"type": "gated", "hidden": 16}},
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
    "bottleneck": {**LAYERS, "tokens": 2},
    "low_rank": {"rank": 2},
    "film": {**PERCEPTRON, "condition": "text"},
    "hierarchical": TREE,
    "vote": DECISION,
    "average": DECISION,
    "learned": DECISION,
    "stacking": DECISION,
}
VARIANTS = {
    **{name: {"type": name, **options} for name, options in OPTIONS.items()},
    "cross_attention of one": {"type": "cross_attention", **LAYERS, "query": ["image"]},
    "hierarchical with votes": {
        "type": "hierarchical",
        "groups": {"senses": {"members": ["audio", "image"], "fusion": {"type": "concat", "hidden": 16}}},
        "fusion": {"type": "vote"},
    },
}
BY_PLACEHOLDER = {"concat", "concat_conv", "mlp", "hierarchical with votes"}
"""Those that use an absent input's placeholder, on purpose."""
WITH_ATTENTION = {
    "weighted", "gated", "attention", "cross_attention", "cross_attention of one", "transformer", "hierarchical",
}  # fmt: skip
DEFAULTS = sorted(set(FUSIONS) - {"film", "hierarchical"})

every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


class Rows(Encoder):
    """Each row of a picture is a token."""

    width = 24

    def __init__(self, options: object, source: object) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(24, 24)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        tokens = self.linear(pixel_values.transpose(1, 2).flatten(2))
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


class First(FusionModule):
    """The first member's first token, through a linear map; knows nothing of the rest."""

    def __init__(self, options: Mapping[str, Any], dim: int, inputs: list[str]) -> None:
        super().__init__(options, dim, inputs)
        self.linear = nn.Linear(dim, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, _ = present_means(inputs)
        return {"vector": self.linear(vectors[:, 0])}


def build(block: dict[str, Any], inputs: list[str] = NAMES, dim: int = DIM) -> FusionModule:
    """A fusion in evaluation mode, whose parameters are none of those that start at zero."""
    torch.manual_seed(0)
    fusion = build_fusion(TypeAdapter(Fusion).validate_python(block), dim, inputs)
    fusion.attach(heads(dim))
    for parameter in fusion.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return fusion.eval()


def heads(dim: int = DIM) -> dict[str, TaskHead]:
    torch.manual_seed(1)
    label = ClassificationTask(type="classification", column="label", classes=["a", "b", "c"])
    size = RegressionTask(type="regression", column="size", mean=100.0, deviation=20.0)
    return {"label": build_task(label, dim), "size": build_task(size, dim)}


def make_inputs(names: list[str] = NAMES, dim: int = DIM) -> dict[str, Tokens]:
    """Random tokens, of which some do not count; sample i has the inputs that the bits of i tell, 7 has all."""
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
    """As if all samples lacked the other inputs."""
    return {name: (tokens, mask & (name in names)) for name, (tokens, mask) in inputs.items()}


@torch.no_grad()
def all_of(fusion: FusionModule, inputs: dict[str, Tokens]) -> dict[str, torch.Tensor]:
    """Everything that comes out: what the fusion joins, and each task's raw outputs."""
    joined = fusion(inputs)
    fused = {**joined, "inputs": inputs, "words": {}}
    answered = {name: fusion.answer(name, head, fused) for name, head in heads().items()}  # type: ignore[arg-type]
    return {**joined, **answered}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_fusion_is_in_the_table() -> None:
    assert list(OPTIONS) == list(FUSIONS)


@every_variant
def test_it_is_trained_and_loaded_again(variant: str, tmp_path: Path) -> None:
    overrides = {
        "fusion": VARIANTS[variant],
        "align.dim": DIM,
        "inputs.image.encoder": {"type": f"{__name__}:Rows"},
        "tasks.brightness": {"type": "regression"},
    }
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, audio=True, **overrides))


@pytest.mark.parametrize("type_", DEFAULTS)
def test_it_works_with_defaults_alone(type_: str) -> None:
    fusion = build({"type": type_}, NAMES[:2])
    assert fusion(make_inputs(NAMES[:2]))["vector"].shape == (BATCH, DIM)


@pytest.mark.parametrize("type_", [name for name in DEFAULTS if name != "cross_attention"])
def test_one_input_is_enough(type_: str) -> None:
    assert torch.isfinite(all_of(build({"type": type_}, ["text"]), make_inputs(["text"]))["label"]).all()


@every_variant
def test_a_sample_does_not_see_its_neighbours(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    together = all_of(fusion, inputs)
    for i in range(BATCH):
        alone = all_of(fusion, rows_of(inputs, [i]))
        assert_same(alone, {name: tensor[[i]] for name, tensor in together.items()})


@every_variant
@pytest.mark.parametrize("present", [NAMES, ["text"], []], ids="+".join)
def test_what_is_absent_changes_nothing(variant: str, present: list[str]) -> None:
    """Neither tokens that do not count nor, but where it is used on purpose, the placeholder; in whole batches too."""
    fusion, inputs = build(VARIANTS[variant]), only(make_inputs(), *present)
    changed = {}
    for name, (tokens, mask) in inputs.items():
        counts = mask.clone()
        if variant in BY_PLACEHOLDER:
            counts[:, 0] = True
        changed[name] = torch.where(counts.unsqueeze(2), tokens, 9 * torch.randn_like(tokens)), mask
    assert_same(all_of(fusion, changed), all_of(fusion, inputs))


@every_variant
def test_any_subset_is_answered_and_every_input_counts(variant: str) -> None:
    fusion, full = build(VARIANTS[variant]), rows_of(make_inputs(), [7])
    subsets = [chosen for size in range(4) for chosen in combinations(NAMES, size)]
    answers = [all_of(fusion, only(full, *chosen))["size"] for chosen in subsets]
    assert all(torch.isfinite(answer).all() for answer in answers)
    for first, second in combinations(answers, 2):
        assert not torch.allclose(first, second, rtol=1e-6, atol=1e-5)


@every_variant
def test_attention_is_shared_out_among_the_inputs_that_are_there(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    joined = fusion(inputs)
    assert ("attention" in joined) == (variant in WITH_ATTENTION)
    for name in {"attention", "trust"} & joined.keys():
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
    fused = {**fusion(inputs), "inputs": inputs, "words": {}}
    sum(fusion.answer(name, head, fused).square().sum() for name, head in heads().items()).backward()  # type: ignore
    leaves = {**dict(fusion.named_parameters()), **{name: part[0] for name, part in inputs.items()}}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
    for name, (tokens, mask) in inputs.items():
        if variant not in BY_PLACEHOLDER:
            assert not tokens.grad[~mask].any(), name  # type: ignore[index]


@every_variant
def test_it_computes_in_bf16(variant: str) -> None:
    fusion, inputs = build(VARIANTS[variant]), make_inputs()
    wanted = all_of(fusion, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = all_of(fusion, {name: (tokens.bfloat16(), mask) for name, (tokens, mask) in inputs.items()})
    for name in {"label", "attention", "trust"} & wanted.keys() - ({"label"} if "vote" in variant else set()):
        torch.testing.assert_close(found[name].float(), wanted[name], rtol=0.1, atol=0.1)


def whole() -> dict[str, Tokens]:
    """The inputs of a sample that has all three, one token each."""
    torch.manual_seed(3)
    return {name: (torch.randn(1, 1, DIM), torch.ones(1, 1, dtype=torch.bool)) for name in NAMES}


@torch.no_grad()
def test_a_sum_does_not_know_which_input_is_which() -> None:
    fusion, inputs = build(VARIANTS["sum"]), make_inputs()
    turned = dict(zip(NAMES, [inputs["audio"], inputs["image"], inputs["text"]], strict=True))
    torch.testing.assert_close(fusion(turned)["vector"], fusion(inputs)["vector"])


@torch.no_grad()
def test_weights_are_shared_out_anew_among_those_present() -> None:
    fusion: Any = build(VARIANTS["weighted"])
    fusion.scores.copy_(torch.tensor([0.0, 1.0, 2.0]))
    inputs = whole()
    for present in (NAMES, ["image", "audio"]):
        scores = torch.tensor([0.0, 1.0, 2.0])[[NAMES.index(name) for name in present]]
        mixed = sum(w * inputs[n][0][:, 0] for w, n in zip(scores.softmax(0), present, strict=True))
        torch.testing.assert_close(fusion(only(inputs, *present))["vector"], fusion.layers(mixed))


@torch.no_grad()
def test_max_pool_takes_the_largest_of_those_present() -> None:
    fusion: Any = build(VARIANTS["max_pool"])
    inputs = {name: (-tokens.abs(), mask) for name, (tokens, mask) in whole().items()}
    largest = torch.maximum(inputs["image"][0], inputs["audio"][0])[:, 0]
    torch.testing.assert_close(fusion(only(inputs, "image", "audio"))["vector"], fusion.layers(largest))


@torch.no_grad()
def test_a_convolution_runs_along_the_features_of_the_stacked_inputs() -> None:
    fusion: Any = build({**VARIANTS["concat_conv"], "kernel": 1})
    vectors = torch.cat([tokens for tokens, _ in whole().values()], dim=1)
    channels = torch.einsum("ci,bid->bcd", fusion.convolution.weight[:, :, 0], vectors)
    channels = channels + fusion.convolution.bias[:, None]
    wanted = fusion.layers(torch.cat([nn.functional.gelu(channels).flatten(1), torch.ones(1, 3)], dim=1))
    torch.testing.assert_close(fusion(whole())["vector"], wanted)


@torch.no_grad()
def test_gates_of_two_inputs_are_those_of_the_paper() -> None:
    """z ⊙ tanh(W₁ x₁) + (1 - z) ⊙ tanh(W₂ x₂) (Arevalo et al., 2017)."""
    fusion: Any = build(VARIANTS["gated"], NAMES[:2])
    inputs = {name: whole()[name] for name in NAMES[:2]}
    first, second = (tokens[:, 0] for tokens, _ in inputs.values())
    ones = torch.ones(1, 1)
    scores = fusion.gates(torch.cat([first, ones, second, ones], dim=1))
    z = torch.sigmoid(scores[:, :DIM] - scores[:, DIM:])
    mixed = z * fusion.values[0](first).tanh() + (1 - z) * fusion.values[1](second).tanh()
    joined = fusion(inputs)
    torch.testing.assert_close(joined["vector"], fusion.layers(mixed))
    torch.testing.assert_close(joined["attention"][:, 0], z.mean(dim=1))


def test_gates_learn_to_distrust_a_noisy_input() -> None:
    """Two inputs say the same: the first never clearly, the second clearly, or in half of the samples not at all."""
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
def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(DIM, 2, 0.0), nn.MultiheadAttention(DIM, 2, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    queries, context = torch.randn(4, 3, DIM), torch.randn(4, 5, DIM)
    mask = torch.tensor([[True, True, False, True, False]]).expand(4, -1)
    found, looks = ours(queries, context, mask)
    wanted, weights = theirs(queries, context, context, key_padding_mask=~mask)
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(looks, weights[:, 0], **CLOSE)


@torch.no_grad()
def test_only_the_inputs_that_query_see_the_others() -> None:
    fusion: Any = build(VARIANTS["cross_attention of one"])
    assert fusion.asking == ["image"]
    assert len(fusion.layers) == 1
    inputs, seen = make_inputs(), []
    fusion.readout.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    fusion(inputs)
    other = dict(inputs, audio=(inputs["audio"][0] + 1, inputs["audio"][1]))
    fusion(other)
    changed = (seen[0] != seen[1]).any(dim=2)[7]
    assert changed.tolist() == [False, True, True, False, False, False, True, True, True, True]


@torch.no_grad()
def test_inputs_exchange_only_what_the_bottleneck_carries() -> None:
    """Where what is exchanged is cut off, each input's summary is as if it were alone."""
    fusion: Any = build(VARIANTS["bottleneck"])
    seen: list[torch.Tensor] = []
    fusion.layers[-1][0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    inputs = rows_of(make_inputs(), [7])
    for chosen in (inputs, only(inputs, "image")):
        fusion(chosen)
    together, alone = seen
    torch.testing.assert_close(together[:, fusion.size :], alone[:, fusion.size :])
    assert not torch.allclose(together[:, : fusion.size], alone[:, : fusion.size], atol=1e-3)


@torch.no_grad()
def test_low_rank_fusion_is_the_outer_product_times_a_tensor() -> None:
    """h = W · (x₁;1) ⊗ (x₂;1), with W put together from its factors (Liu et al., 2018)."""
    fusion: Any = build({"type": "low_rank", "rank": 3}, NAMES[:2])
    inputs = {name: whole()[name] for name in NAMES[:2]}
    factors = [torch.cat([f.weight, f.bias[:, None]], dim=1).view(DIM, 3, DIM + 1) for f in fusion.factors]
    tensor = torch.einsum("r,hri,hrj->hij", fusion.ranks.weight[0], *factors)
    vectors = [torch.cat([tokens[0, 0], torch.ones(1)]) for tokens, _ in inputs.values()]
    product = torch.einsum("hij,i,j->h", tensor, *vectors) + fusion.ranks.bias
    torch.testing.assert_close(fusion(inputs)["vector"][0], fusion.norm(product), **CLOSE)


@torch.no_grad()
def test_a_condition_scales_and_shifts_where_it_is_there() -> None:
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
def test_a_tree_is_its_parts_composed() -> None:
    fusion: Any = build(VARIANTS["hierarchical"])
    inputs = rows_of(make_inputs(), [7])
    there = torch.ones(1, 1, dtype=torch.bool)
    seen = fusion.groups[0]({"image": inputs["image"]})
    senses = fusion.groups[1]({"audio": inputs["audio"], "seen": (seen["vector"][:, None], there)})
    last = fusion.last({"text": inputs["text"], "senses": (senses["vector"][:, None], there)})
    joined = fusion(inputs)
    torch.testing.assert_close(joined["vector"], last["vector"])
    on_text, on_senses = last["attention"][0]
    on_audio, on_seen = on_senses * senses["attention"][0]
    torch.testing.assert_close(joined["attention"][0], torch.stack([on_seen, on_text, on_audio]))


def test_a_tree_holds_fusions_of_ones_own(tmp_path: Path) -> None:
    mine = {"type": f"{__name__}:First"}
    tree = {
        "type": "hierarchical",
        "groups": {"senses": {"members": ["audio", "image"], "fusion": mine}},
        "fusion": {**mine, "options": {"any": 1}},
    }
    model, _ = train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, audio=True, fusion=tree))
    fusion: Any = model.fusion
    assert isinstance(fusion.groups[0], First)
    assert isinstance(fusion.last, First)


def opinions(*rows: list[float]) -> torch.Tensor:
    """Log-probabilities of three inputs over three classes, for one sample."""
    return torch.tensor([rows]).log()


def decided(type_: str, answers: torch.Tensor, present: list[bool]) -> torch.Tensor:
    fusion: Any = build({"type": type_})
    return fusion.decide("label", heads()["label"], answers, torch.tensor([present])).softmax(dim=1)[0]


@torch.no_grad()
def test_a_vote_goes_by_heads_and_an_average_by_probabilities() -> None:
    answers = opinions([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.01, 0.01, 0.98])
    everyone = [True, True, True]
    assert decided("vote", answers, everyone).tolist() == pytest.approx([2 / 3, 0, 1 / 3], abs=1e-3)
    average = [0.81 / 3, 0.61 / 3, 1.58 / 3]
    assert decided("average", answers, everyone).tolist() == pytest.approx(average)
    assert decided("vote", answers, [True, False, False]).argmax() == 0
    tie = decided("vote", answers, [True, False, True])
    assert tie.argmax() == 2
    assert tie[0] == pytest.approx(0.5, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rows", [7, 5], ids=["all", "image+audio"])
def test_an_average_is_the_mean_of_what_each_input_says_by_itself(rows: int) -> None:
    fusion, inputs = build(VARIANTS["average"]), rows_of(make_inputs(), [rows])
    present = [name for bit, name in enumerate(NAMES) if rows >> bit & 1]
    single = [all_of(fusion, only(inputs, name)) for name in present]
    found = all_of(fusion, inputs)
    mean = torch.stack([one["label"].softmax(dim=1) for one in single]).mean(dim=0)
    torch.testing.assert_close(found["label"].softmax(dim=1), mean)
    torch.testing.assert_close(found["size"], torch.stack([one["size"] for one in single]).mean(dim=0))


@torch.no_grad()
def test_learned_weights_are_each_tasks_own() -> None:
    fusion: Any = build(VARIANTS["learned"])
    fusion.trusts["label"].scores.copy_(torch.tensor([0.0, 3.0, 0.0]))
    fusion.trusts["size"].scores.copy_(torch.tensor([1.0, 0.0, 0.0]))
    inputs = whole()
    single = [all_of(fusion, only(inputs, name)) for name in NAMES]
    found = all_of(fusion, inputs)
    weights = {task: fusion.trusts[task].scores.softmax(dim=0) for task in ("label", "size")}
    wanted = sum(w * one["label"].softmax(dim=1) for w, one in zip(weights["label"], single, strict=True))
    torch.testing.assert_close(found["label"].softmax(dim=1), wanted)
    wanted = sum(w * one["size"] for w, one in zip(weights["size"], single, strict=True))
    torch.testing.assert_close(found["size"], wanted)
    torch.testing.assert_close(found["trust"][0], (weights["label"] + weights["size"]) / 2)


@torch.no_grad()
def test_stacking_corrects_the_average_in_the_tasks_own_unit() -> None:
    fusion: Any = build(VARIANTS["stacking"])
    average: Any = build(VARIANTS["average"])
    average.load_state_dict({k: v for k, v in fusion.state_dict().items() if "learners" not in k})
    inputs = rows_of(make_inputs(), [5])
    stacked, plain = all_of(fusion, inputs), all_of(average, inputs)
    image, audio = (all_of(average, only(inputs, name))["size"] for name in ("image", "audio"))
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    told = torch.cat([(image - 100) / 20, one, zero, zero, (audio - 100) / 20, one], dim=1)
    torch.testing.assert_close(stacked["size"], plain["size"] + 20 * fusion.learners["size"](told))
    for learner in fusion.learners.values():
        nn.init.zeros_(learner[-1].weight)
        nn.init.zeros_(learner[-1].bias)
    assert_same(all_of(fusion, inputs), plain)


def test_stacking_needs_outputs_of_a_known_size() -> None:
    fusion = build(VARIANTS["stacking"])
    head = heads()["label"]
    head.outputs = None
    with pytest.raises(
        SpecError, match=r"fusion\.type: stacking corrects .* head of tasks\.mine has none; use learned"
    ):
        fusion.attach({"mine": head})


def test_shares_of_nothing_are_nothing() -> None:
    present = torch.tensor([[True, True], [False, True], [False, False]])
    scores = torch.tensor([0.0, 1.0]).expand(3, 2)
    found = shares(scores, present)
    torch.testing.assert_close(found, torch.tensor([[0.26894, 0.73106], [0, 1], [0, 0]]), rtol=0, atol=1e-4)


def test_a_perceptron_has_as_many_hidden_layers_as_it_says() -> None:
    options: Any = TypeAdapter(Fusion).validate_python({"type": "sum", "hidden": 16, "layers": 3})
    sizes = [layer.out_features for layer in perceptron(5, options, DIM) if isinstance(layer, nn.Linear)]
    assert sizes == [16, 16, 16, DIM]
