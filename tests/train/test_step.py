"""A whole training step: recorded from the reference in two variants, and against NumPy in double precision."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.train.crossentropy import Projection
from dinokit.train.heads import ProjectionHead, fan_in_std
from dinokit.train.masking import BlockRule, Masks, draw_masks
from dinokit.train.network import Batch, Network, crop_subsets
from dinokit.train.optim import GroupRule, adamw, clip_gradients, parameter_groups
from dinokit.train.schedules import Rates
from dinokit.train.state import TrainState
from dinokit.train.step import Objective, losses, update
from dinokit.train.targets import TARGET_RULES, follow
from tests.train.golden import DTYPES, STEP_FLOAT32, STEP_FLOAT64, Recorded, assert_equal, relative_error

VARIANTS = ("sinkhorn_separate_heads", "centering_shared_head")
RULES = {"sinkhorn_knopp": TARGET_RULES["sinkhorn"], "centering": TARGET_RULES["centring"]}
ACCEPT = {torch.float32: STEP_FLOAT32, torch.float64: STEP_FLOAT64}
ACCEPT_SCALARS = {torch.float32: 1e-5, torch.float64: 1e-10}
CHANGES = 1e-6


def pixels(crops: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return ((torch.from_numpy(crops).to(dtype) - 128) / 64).flatten(0, 1)


def reversed_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each along its last axis that is longer than one: an unrelated network of the same shape."""
    return {n: t.flip(max((a for a in range(t.ndim) if t.shape[a] > 1), default=0)) for n, t in state.items()}


@dataclass
class Golden:
    """The reference's step of one variant in one precision."""

    folder: Path
    variant: str
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.arrays = Recorded(self.folder / "step.npz", self.dtype)
        self.table = json.loads((self.folder / "step.json").read_text())["variants"][self.variant]
        self.settings = self.table["settings"]
        rates = self.settings["update"]
        self.rates = Rates(
            rates["lr"], rates["last_layer_lr"], rates["weight_decay"], rates["momentum"], self.settings["teacher_temp"]
        )
        self.objective = Objective(targets=RULES[self.settings["centering"]])
        self.batch = Batch(
            pixels(self.arrays.arrays["global_crops"], self.dtype),
            pixels(self.arrays.arrays["local_crops"], self.dtype),
            Masks.of(self.arrays.arrays["masks"].reshape(6, -1), self.dtype),
            torch.arange(3),
        )

    def network(self, teacher: bool = False) -> Network:
        config = json.loads((self.folder / "configs.json").read_text())["vit_reg"]
        backbone = VisionTransformer(
            ViTConfig(
                embed_dim=config["embed_dim"], depth=config["depth"], num_heads=config["num_heads"], ffn_dim=192,
                patch_size=config["patch_size"], image_size=(config["img_size"],) * 2, num_register_tokens=4,
            )
        )  # fmt: skip
        heads = load_file(self.folder / "step_student_heads.safetensors")
        state = {f"backbone.{name}": t for name, t in load_file(self.folder / "vit_reg.safetensors").items()} | heads
        if not self.settings["separate_ibot_head"]:
            state = {name: t for name, t in state.items() if not name.startswith("ibot_head")}
        network = Network(backbone, *(self.head(state, name) for name in ("dino_head", "ibot_head")))
        network.load_state_dict(reversed_tensors(state) if teacher else state)
        return network.to(self.dtype)

    @staticmethod
    def head(state: dict[str, torch.Tensor], name: str) -> ProjectionHead | None:
        if f"{name}.mlp.0.weight" not in state:
            return None
        hidden, width = state[f"{name}.mlp.0.weight"].shape
        prototypes, bottleneck = state[f"{name}.last_layer.weight_v"].shape
        return ProjectionHead(width, prototypes, hidden_dim=hidden, bottleneck_dim=bottleneck)

    def state(self) -> TrainState:
        settings = self.settings["update"]
        rule = GroupRule(settings["layerwise_decay"], settings["patch_embed_lr_mult"])
        state = TrainState.new(
            self.network(),
            lambda n: [adamw(parameter_groups(n, rule), tuple(settings["adam_betas"]), settings["adam_eps"])],
        )
        state.teacher.load_state_dict(self.network(teacher=True).state_dict())
        if self.settings["centering"] == "centering":
            state.centers = {name: self.arrays[f"{name}_center"] for name in ("dino", "ibot")}
        return state

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[f"{self.variant}/{name}"]


@pytest.fixture(params=[(v, d) for v in VARIANTS for d in DTYPES], ids=lambda p: f"{p[0]}-{str(p[1])[6:]}")
def golden(ssl, request) -> Golden:
    return Golden(ssl, *request.param)


def test_outputs_of_student_and_teacher_are_the_references(golden):
    """Class tokens and logits of crops of two sizes, masked and not, and the targets made of them."""
    state, accept = golden.state(), ACCEPT[golden.dtype]
    taught = state.teacher.teach(golden.batch)
    assert_equal(taught.class_logits.unflatten(0, (2, 3)), golden["teacher_cls_logits"], accept)
    assert_equal(taught.patch_logits, golden["teacher_patch_logits"], accept)
    temperature = golden.rates.teacher_temperature
    for name, logits in (("dino", taught.class_logits), ("ibot", taught.patch_logits)):
        targets, center = golden.objective.targets(logits, state.centers[name], temperature, None)
        expected = golden["target_cls"].flatten(0, 1) if name == "dino" else golden["target_patch"]
        assert_equal(targets, expected, accept)
        if golden.settings["centering"] == "centering":
            assert_equal(center, golden[f"{name}_center_after"], accept)
    outputs = state.student(golden.batch)
    assert_equal(outputs.class_tokens.unflatten(0, (2, 3)), golden["student_global_cls"], accept)
    assert_equal(outputs.global_scores.logits().unflatten(0, (2, 3)), golden["student_global_logits"], accept)
    assert_equal(outputs.local_scores.logits().unflatten(0, (2, 3)), golden["student_local_logits"], accept)
    assert_equal(outputs.patch_scores.logits(), golden["student_patch_logits"], accept)
    assert_equal(golden.batch.masks.weights, golden["masks_weight"], accept)


def close(ours: torch.Tensor | float, theirs: float, accept: float, floor: float = 0.0) -> bool:
    return abs(float(ours) - theirs) <= accept * max(abs(theirs), floor)


def test_losses_and_gradients_are_the_references(golden):
    """Every term, the total, the norm and the direction of every tensor's gradient, and some clipped gradients in full."""
    state, accept = golden.state(), ACCEPT_SCALARS[golden.dtype]
    found = losses(
        state.student, state.teacher, state.centers, golden.batch, golden.rates.teacher_temperature, golden.objective
    )
    theirs = golden.table["loss"]
    named = {"koleo_0": "koleo_global_0", "koleo_1": "koleo_global_1"}
    for name, term in found.terms.items():
        assert close(term, theirs[named.get(name, name)], accept), name
    assert close(found.total.detach(), theirs["total"], accept)
    assert close(0.1 * (found.terms["koleo_0"] + found.terms["koleo_1"]), theirs["koleo_weighted"], accept)
    found.total.backward()
    parameters = dict(state.student.named_parameters())
    assert set(parameters) == set(golden.table["parameters"])
    modules = golden.table["grad_norm"]
    for name, entry in golden.table["parameters"].items():
        gradient, parameter = parameters[name].grad.double(), parameters[name].detach().double()
        floor = 1e-3 * modules[name.split(".")[0]]
        assert close(gradient.norm(), entry["grad_norm"], accept, floor), name
        size = max(entry["grad_norm"], floor) * parameter.norm().item()
        assert close((gradient * parameter).sum(), entry["grad_dot_parameter"], accept, size), name
    clip = golden.settings["update"]["clip"]
    norms = clip_gradients(state.student, clip)
    assert set(norms) == set(modules)
    for name, norm in norms.items():
        assert close(norm, modules[name], accept)
        factor = min(1.0, clip / (norm.item() + 1e-6))
        assert close(factor, golden.table["clip_factor"][name], accept)
        clipped = torch.stack([p.grad.norm() for p in getattr(state.student, name).parameters()]).norm()
        assert close(clipped, factor * modules[name], accept)
    for name in golden.arrays.names(f"{golden.variant}/grad/"):  # recorded after clipping
        assert_equal(parameters[name].grad, golden[f"grad/{name}"], ACCEPT[golden.dtype])


def test_the_update_is_the_references(golden):
    """Change of every parameter of the student by AdamW under its group's rates, and of the teacher by its average."""
    state = golden.state()
    old = {kind: dict_of(network) for kind, network in (("student", state.student), ("teacher", state.teacher))}
    found = losses(
        state.student, state.teacher, state.centers, golden.batch, golden.rates.teacher_temperature, golden.objective
    )
    update(state, found, golden.rates, golden.settings["update"]["clip"])
    assert state.step == 1
    frozen = {n for n in old["student"] if torch.equal(old["student"][n], dict_of(state.student)[n])}
    expected = {n for n in old["student"] if "last_layer" in n and golden.rates.last_layer_lr == 0}
    assert frozen == expected
    if golden.settings["centering"] == "centering":
        assert_equal(state.centers["dino"], golden["dino_center_after"], ACCEPT[golden.dtype])
    if golden.dtype == torch.float32:
        return  # the first step of Adam is nearly the gradient's sign: rounding noise of zero gradients would show
    for kind, network in (("student", state.student), ("teacher", state.teacher)):
        for name, new in dict_of(network).items():
            change, entry = new - old[kind][name], golden.table["parameters"][name]
            norm = entry[f"{kind}_change_norm"]
            assert abs(change.norm().item() - norm) <= CHANGES * norm + 1e-12, (kind, name)
            dot = (change * old[kind][name]).sum().item()
            size = norm * old[kind][name].norm().item()
            assert abs(dot - entry[f"{kind}_change_dot_parameter"]) <= CHANGES * size + 1e-12, (kind, name)


def dict_of(network: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


# ---- an oracle in NumPy: loops over pairs and rows, as the formulas have it


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_sinkhorn(logits: np.ndarray, temperature: float) -> np.ndarray:
    q = np.exp(logits / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdims=True)
        q = q / q.sum(1, keepdims=True)
    return q


def numpy_ce(p: np.ndarray, s: np.ndarray) -> float:
    return float(-(p * np.log(softmax(s / 0.1))).sum())


def numpy_koleo(x: np.ndarray) -> float:
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    logs = []
    for j in range(len(u)):
        other = max((i for i in range(len(u)) if i != j), key=lambda i: u[i] @ u[j])
        logs.append(np.log(np.linalg.norm(u[j] - u[other] + 1e-8) + 1e-8))
    return -float(np.mean(logs))


def numpy_total(
    student: Network, teacher: Network, batch: Batch, temperature: float, rule: str, centers
) -> dict[str, float]:
    """Each crop through the plain network by itself; every pair of crops and every masked patch in a loop."""

    def array(x: torch.Tensor) -> np.ndarray:
        return x.detach().double().numpy()

    b, masks = len(batch.samples), batch.masks.masks
    crops = list(batch.global_crops.split(b))
    seen = [student.backbone(c, m) for c, m in zip(crops, masks.split(b), strict=True)]
    seen += [student.backbone(c) for c in batch.local_crops.unflatten(0, (-1, b))] if batch.num_local else []
    s = [array(student.dino_head(t.cls)) for t in seen]
    taught = [teacher.backbone(c) for c in crops]
    t = [array(teacher.dino_head(x.cls)) for x in taught]
    flat = masks.flatten().numpy()
    s_patch = np.concatenate([array(student.patch_head(x.patches.flatten(0, 1))) for x in seen[:2]])[flat]
    t_patch = np.concatenate([array(teacher.patch_head(x.patches.flatten(0, 1))) for x in taught])[flat]
    if rule == "sinkhorn":
        p, p_patch = (
            numpy_sinkhorn(np.concatenate(t), temperature).reshape(2, b, -1),
            numpy_sinkhorn(t_patch, temperature),
        )
    else:
        p = np.stack([softmax((x - array(centers["dino"])) / temperature) for x in t])
        p_patch = softmax((t_patch - array(centers["ibot"])) / temperature)
    pairs = [(g, i) for g in range(2) for i in range(len(s)) if i != g]
    ce = {pair: np.mean([numpy_ce(p[pair[0]][j], s[pair[1]][j]) for j in range(b)]) for pair in pairs}
    counts = masks.sum(1).numpy()
    owner = np.repeat(np.arange(2 * b), counts)
    terms = {
        "dino_local": sum(v for (_, i), v in ce.items() if i >= 2) / len(pairs),
        "dino_global": sum(v for (_, i), v in ce.items() if i < 2) / len(pairs),
        "koleo_0": numpy_koleo(array(seen[0].cls)),
        "koleo_1": numpy_koleo(array(seen[1].cls)),
        "ibot": sum(numpy_ce(p_patch[j], s_patch[j]) / counts[owner[j]] for j in range(len(owner))) / (2 * b),
    }
    terms["total"] = (
        terms["dino_local"] + terms["dino_global"] + 0.1 * (terms["koleo_0"] + terms["koleo_1"]) + terms["ibot"]
    )
    return terms


def small_state(shared: bool = False, dtype: torch.dtype = torch.float64, drop_path: float = 0.0) -> TrainState:
    config = ViTConfig(embed_dim=16, depth=2, num_heads=2, ffn_dim=32, num_register_tokens=2, patch_size=4,
                       image_size=(16, 16), drop_path=(drop_path,) * 2)  # fmt: skip
    heads = [
        ProjectionHead(16, k, hidden_dim=24, bottleneck_dim=8, std=fan_in_std) for k in ((12,) if shared else (12, 20))
    ]
    student = Network(VisionTransformer(config), *heads).to(dtype)
    state = TrainState.new(student, lambda n: [adamw(parameter_groups(n, GroupRule()))])
    with torch.no_grad():
        for parameter in (*student.parameters(), *state.teacher.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return state


def small_batch(b: int, num_local: int, dtype: torch.dtype = torch.float64, step: int = 0) -> Batch:
    masks = draw_masks(0, step, np.arange(b), (4, 4), BlockRule(8))
    return Batch(
        torch.randn(2 * b, 3, 16, 16, dtype=dtype), torch.randn(num_local * b, 3, 8, 8, dtype=dtype),
        Masks.of(masks, dtype), torch.arange(b),
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["sinkhorn", "centring"])
@pytest.mark.parametrize(("b", "num_local", "shared"), [(2, 1, False), (5, 3, True), (3, 0, False)])
def test_losses_are_what_loops_over_pairs_give(b, num_local, shared, rule):
    """In double precision, network by network and pair by pair, without local crops, too."""
    torch.manual_seed(b)
    state, batch = small_state(shared), small_batch(b, num_local)
    centers = {name: 0.1 * torch.randn_like(center) for name, center in state.centers.items()}
    state.student.eval()
    found = losses(state.student, state.teacher, centers, batch, 0.06, Objective(targets=TARGET_RULES[rule]))
    expected = numpy_total(state.student, state.teacher, batch, 0.06, rule, centers)
    for name, term in {**found.terms, "total": found.total}.items():
        assert term.item() == pytest.approx(expected[name], rel=1e-10, abs=1e-12), name


def test_weights_scale_their_terms_and_nothing_else():
    """The total is the weighted sum; terms are reported unweighted."""
    state, batch = small_state(), small_batch(3, 2)
    one = losses(state.student, state.teacher, state.centers, batch, 0.05, Objective())
    two = losses(
        state.student, state.teacher, state.centers, batch, 0.05,
        Objective(dino_weight=0.5, ibot_weight=2.0, koleo_weight=0.0),
    )  # fmt: skip
    assert one.terms == two.terms
    t = one.terms
    assert two.total.item() == pytest.approx((0.5 * (t["dino_local"] + t["dino_global"]) + 2 * t["ibot"]).item())
    assert 0 < one.watch["target_entropy"] < np.log(12)
    assert 1 / 12 <= one.watch["largest_prototype_share"] <= 1


def test_under_autocast_losses_stay_in_single_precision():
    """All terms and centres are float32, close to those without autocast, and every gradient is finite."""
    torch.manual_seed(0)
    state, batch = small_state(dtype=torch.float32), small_batch(4, 2, torch.float32)
    exact = losses(state.student, state.teacher, state.centers, batch, 0.07, Objective())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(state.student, state.teacher, state.centers, batch, 0.07, Objective())
    found.total.backward()
    assert {t.dtype for t in (*found.terms.values(), *found.centers.values(), found.total)} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in state.student.parameters())
    for name, term in found.terms.items():
        assert abs(term - exact.terms[name]) < 0.1 * exact.terms[name].abs() + 0.02, name
    assert found.total.item() != exact.total.item()


def test_a_batch_of_one_image_and_one_without_masks_give_finite_steps():
    """KoLeo and iBOT are left out where they have no meaning; every parameter still gets a gradient."""
    state, batch = small_state(), small_batch(1, 2)
    batch = Batch(
        batch.global_crops, batch.local_crops, Masks.of(np.zeros((2, 16), bool), torch.float64), batch.samples
    )
    found = losses(state.student, state.teacher, state.centers, batch, 0.06, Objective())
    assert found.terms["koleo_0"] == found.terms["koleo_1"] == found.terms["ibot"] == 0
    found.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in state.student.parameters())


def test_the_teacher_gets_no_gradient_and_the_student_no_masked_pixel():
    """What lies under a mask does not reach the student; the teacher has no graph."""
    state, batch = small_state(), small_batch(3, 1)
    assert not any(p.requires_grad for p in state.teacher.parameters())
    hidden = batch.masks.masks.view(6, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = Batch(torch.where(hidden, 9.0, batch.global_crops), batch.local_crops, batch.masks, batch.samples)
    for ours, theirs in zip(state.student(batch)[:4], state.student(other)[:4], strict=True):
        ours, theirs = ((x.features if isinstance(x, Projection) else x) for x in (ours, theirs))
        assert torch.equal(ours, theirs)
    assert not torch.equal(state.teacher.teach(batch).class_logits, state.teacher.teach(other).class_logits)


def test_a_batch_that_does_not_fit_is_refused():
    """Three global crops for two images; local crops that are no multiple."""
    batch = small_batch(2, 1)
    with pytest.raises(ValueError, match="a batch of 2 images has 3 global crops"):
        Batch(batch.global_crops[:3], batch.local_crops, batch.masks, batch.samples)
    with pytest.raises(ValueError, match="3 local ones"):
        Batch(batch.global_crops, torch.zeros(3, 3, 8, 8), batch.masks, batch.samples)


def steps(state: TrainState, start: int, stop: int) -> TrainState:
    for step in range(start, stop):
        torch.manual_seed(step)
        batch = small_batch(4, 2, torch.float32, step)
        subsets = crop_subsets(0, step, batch, state.student.backbone.config.drop_path)
        found = losses(
            state.student, state.teacher, state.centers, batch, 0.06,
            Objective(targets=TARGET_RULES["centring"]), subsets,
        )  # fmt: skip
        update(state, found, Rates(1e-3, 1e-3, 0.04, 0.95, 0.06))
    return state


def test_a_run_that_was_stopped_equals_one_that_was_not():
    """Bit for bit: weights, teacher, optimiser, centres, step; stochastic depth included."""
    torch.manual_seed(0)
    fresh = small_state(dtype=torch.float32, drop_path=0.4)
    whole, first, second = (copy.deepcopy(fresh.student) for _ in range(3))

    def state_of(student: Network) -> TrainState:
        return TrainState.new(student, lambda n: [adamw(parameter_groups(n, GroupRule()))])

    through = steps(state_of(whole), 0, 6)
    saved = copy.deepcopy(steps(state_of(first), 0, 3).state_dict())
    resumed = state_of(second)
    resumed.load_state_dict(saved)
    steps(resumed, 3, 6)
    assert through.step == resumed.step == 6
    for a, b in ((through.student, resumed.student), (through.teacher, resumed.teacher)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(through.centers[n], resumed.centers[n]) for n in ("dino", "ibot"))
    for a, b in zip(through.optimizers[0].state.values(), resumed.optimizers[0].state.values(), strict=True):
        assert all(torch.equal(a[n], b[n]) for n in ("exp_avg", "exp_avg_sq", "step"))
    assert not torch.equal(fresh.student.backbone.cls_token, through.student.backbone.cls_token)


def test_a_state_of_other_networks_is_refused():
    """Other heads, other optimisers."""
    one, two = small_state(), small_state(shared=True)
    with pytest.raises(ValueError, match="ibot centre has 20 numbers for 12 prototypes"):
        two.load_state_dict(one.state_dict())
    saved = one.state_dict()
    saved["optimizers"] = []
    with pytest.raises(ValueError, match="0 optimisers, this run 1"):
        one.load_state_dict(saved)


def test_training_lowers_the_loss_on_one_batch():
    """Forty steps on the same crops, the teacher standing still, take the mean pair below its beginning."""
    torch.manual_seed(0)
    state, batch = small_state(dtype=torch.float32), small_batch(4, 2, torch.float32)
    history = []
    for _ in range(40):
        found = losses(state.student, state.teacher, state.centers, batch, 0.1, Objective())
        history.append(found.total.item())
        update(state, found, Rates(5e-3, 5e-3, 0.0, 1.0, 0.1))
    assert history[-1] < 0.8 * history[0]
    moved = copy.deepcopy(state.teacher)
    follow(moved, state.student, 1.0)
    assert all(relative_error(a, b) == 0 for a, b in zip(moved.parameters(), state.teacher.parameters(), strict=True))
