"""`TrainingRecipe`: everything that decides a run. Plain data: print it, store it, change it by `--set`.

Promise: a run is a function of its recipe, its images and what it starts from.
Source: dinov2/configs; Oquab et al. 2023, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dinokit.config import ViTConfig
from dinokit.train.data import Augmentation
from dinokit.train.distill import FeatureLoss
from dinokit.train.schedules import (
    Constant,
    Cosine,
    Frozen,
    Linear,
    Schedule,
    Schedules,
    warm_up,
    warm_up_cosine,
    warm_up_stable_decay,
)
from dinokit.train.step import Objective
from dinokit.train.targets import TARGET_RULES

Shape = Literal["cosine", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Projection heads. `patch_prototypes` 0: one head serves class tokens and patches.

    `prototypes` 0: as many of both as the frozen teacher has, from whose heads a network is distilled.
    """

    prototypes: int = 65_536
    patch_prototypes: int = 0
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    patch_bottleneck_dim: int = 256
    num_layers: int = 3
    init: Literal["official", "fan_in"] = "official"


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which losses, and how much of each. KoLeo's weight goes from `koleo` to `koleo_end` by half a cosine.

    iBOT's rises from 0 over `ibot_warm_up` steps. `patches` says which patches iBOT compares: those that masks hide from the student;
    those of the masks, though they are shown to it ("shown"); all, nothing being hidden ("all").
    """

    targets: Literal["sinkhorn", "centring"] = "sinkhorn"
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_end: float | None = None
    koleo_neighbours: int = 1
    koleo_across_processes: bool = True
    student_temperature: float = 0.1
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    patches: Literal["hidden", "shown", "all"] = "hidden"
    ibot_warm_up: int = 0


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A frozen teacher and what is learned from it (docs/training.md).

    `teacher` is an export's folder, a file with heads, or what `dinokit.load` takes; the run writes its `sha256` here. "prototypes"
    needs its heads, "features" compares tokens, "auto" is the first where there are heads. All else is for features: they are
    averaged over so many `shifts` of the image, by up to `shift_share` of its sides, and as many of its mirror image (0: as they are).
    """

    mode: Literal["off", "auto", "prototypes", "features"] = "off"
    teacher: str = ""
    adapter: Literal["linear", "mlp", "none"] = "linear"
    compare: FeatureLoss = "smooth_l1"
    class_weight: float = 1.0
    patch_weight: float = 1.0
    shifts: int = 0
    shift_share: float = 0.15
    mirrored: bool = False
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class GramAnchoring:
    """A frozen network whose similarities between patches the student keeps, from step `start` on; by default that of `init`.

    It sees crops enlarged `scale` times. `sha256` is written here by the run.
    """

    weight: float = 0.0
    anchor: str = ""
    start: int = 0
    scale: int = 1
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Rates over the run; lengths are steps, whatever the data.

    `lr` is for a batch of 1024 images and grows with its square root, unless `scale_lr` is off. "constant" holds everything
    after the warm-up; "wsd" lets the learning rate fall over the last `cool_down` steps.
    """

    shape: Shape = "cosine"
    lr: float
    scale_lr: bool = True
    min_lr: float = 1e-6
    warm_up: int
    cool_down: int = 0
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    momentum: float = 0.994
    momentum_end: float = 1.0
    teacher_temperature: float = 0.04
    teacher_temperature_end: float = 0.07
    teacher_temperature_warm_up: int = 37_500
    last_layer_freeze: int = 1250
    backbone_freeze: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, who learns how fast, and clipping of each module's gradient.

    `trained` are patterns of the backbone's parameters that learn, by default all; `blocks.-1.*` is the last block.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    layerwise_decay: float = 0.9
    patch_embed: float = 0.2
    clip: float = 3.0
    trained: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Watching:
    """How often to look, and when to raise an alarm (docs/training.md). 0 steps: never.

    `rank_share` and `rank_drop`: RankMe below this share of what it can be, or of what it was at the start. `grace` is the share of
    the run in which no alarm but that of numbers that are not finite is raised. `keep_best` exports the teacher whenever its k-NN
    accuracy is the best so far; `stop` does, too, and ends the run at the alarm `knn`.
    """

    log_every: int = 10
    every: int = 1000
    images: int = 512
    uniform: float = 0.01
    concentrated: float = 0.5
    rank_share: float = 0.1
    rank_drop: float = 0.7
    knn_drop: float = 0.1
    grace: float = 0.2
    keep_best: bool = False
    stop: bool = False


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Checkpoints every so many steps; the last `keep` stay, and one every `keep_every` steps for good (0: none)."""

    every: int = 1000
    keep: int = 3
    keep_every: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A run. `batch_size` is that of all processes and accumulated parts together.

    `init` names weights to start from, and heads, where it is an export's folder or a file with heads; the network's shape is theirs.
    `add_registers` new registers follow theirs; `init_positions` "resample" makes their table one for the global crops' grid.
    Without, the backbone begins as the official one, or with weights and tokens of 1 / sqrt(inputs) ("fan_in", for narrow networks
    without a small layer scale).

    `drop_path_group`: stochastic depth is drawn among so many images in
    a row; set it to a divisor of each process's part, and one process trains as several do. By default it is the part.

    Raises:
        ValueError: values that do not fit each other.
    """

    name: str = "custom"
    model: ViTConfig
    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    init: str = ""
    init_scale: Literal["official", "fan_in"] = "official"
    init_positions: Literal["keep", "resample"] = "keep"
    add_registers: int = 0
    drop_path: float = 0.0
    drop_path_group: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    heads: Heads = field(default_factory=Heads)
    losses: LossSettings = field(default_factory=LossSettings)
    distill: Distillation = field(default_factory=Distillation)
    gram: GramAnchoring = field(default_factory=GramAnchoring)
    schedule: ScheduleSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    precision: Literal["fp32", "bf16"] = "bf16"
    activation_checkpointing: bool = False
    compile: bool = False
    watch: Watching = field(default_factory=Watching)
    save: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        patch = self.model.patch_size
        for name, rule in (("global", self.augmentation.global_crops), ("local", self.augmentation.local_crops)):
            if rule.size % patch:
                raise ValueError(
                    f"{name} crops have {rule.size} pixels and patches {patch}: the crop must be a multiple; "
                    f"set augmentation.{name}_crops.size."
                )
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} images can't be accumulated from {self.accumulate} equal parts."
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; a rate lies in 0 to 1, without 1.")
        if self.model.embed_dropout or self.model.attention_dropout:
            raise ValueError(
                "dropout in the model draws numbers that no checkpoint holds; use drop_path, and set it to 0."
            )
        if self.augmentation.seed != self.seed:  # one seed a run
            object.__setattr__(self, "augmentation", replace(self.augmentation, seed=self.seed))
        if self.model.drop_path:
            raise ValueError("model.drop_path is set; write the rate to drop_path, which is the same for all blocks.")
        self._check_teachers()

    def _check_teachers(self) -> None:
        d, g = self.distill, self.gram
        if d.mode == "off" and d.teacher:
            raise ValueError(
                f"distill.teacher is {d.teacher!r} and distill.mode off: set distill.mode=auto, or take the recipe distill."
            )
        if not 0 <= d.shift_share < 1:
            raise ValueError(
                f"distill.shift_share is {d.shift_share}; it is a share of the crop's sides, 0 to 1 without 1."
            )
        for name, value, least in (
            ("distill.shifts", d.shifts, 0),
            ("gram.scale", g.scale, 1),
            ("gram.weight", g.weight, 0),
            ("add_registers", self.add_registers, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        if d.mode == "features" and not (d.class_weight > 0 or d.patch_weight > 0):
            raise ValueError("distill.class_weight and distill.patch_weight are 0: give one of them a weight.")

    @property
    def by_heads(self) -> bool:
        """Whether there are projection heads: all is compared through them but features, where these are all that is compared."""
        return self.distill.mode != "features" or bool(self.losses.dino or self.losses.ibot)

    @property
    def hides(self) -> bool:
        """Whether masks hide patches from the student."""
        return self.by_heads and self.losses.patches == "hidden"

    @property
    def lr(self) -> float:
        """The peak."""
        return self.schedule.lr * ((self.batch_size / 1024) ** 0.5 if self.schedule.scale_lr else 1.0)

    def rates(self) -> Schedules:
        """One schedule a rate."""
        s, steps = self.schedule, self.steps
        constant = s.shape != "cosine"
        lr: Schedule
        match s.shape:
            case "cosine":
                lr = warm_up_cosine(self.lr, s.min_lr, steps, s.warm_up)
            case "constant":
                lr = warm_up(self.lr, s.warm_up, Constant(self.lr))
            case "wsd":
                lr = warm_up_stable_decay(self.lr, steps, s.warm_up, s.cool_down)

        def over_the_run(start: float, end: float) -> Schedule:
            return Constant(start) if constant else Cosine(start, end, steps)

        temperature: Schedule = Constant(s.teacher_temperature_end)
        if s.teacher_temperature_warm_up > 1:
            temperature = Linear(s.teacher_temperature, s.teacher_temperature_end, s.teacher_temperature_warm_up)
        return Schedules(
            lr,
            Frozen(s.last_layer_freeze, lr),
            over_the_run(s.weight_decay, s.weight_decay_end),
            over_the_run(s.momentum, s.momentum_end),
            temperature,
        )

    def objective(self, step: int) -> Objective:
        """The losses of one step."""
        s, d = self.losses, self.distill
        features = float(d.mode == "features")
        ibot = s.ibot * min(step / s.ibot_warm_up, 1.0) if s.ibot_warm_up else s.ibot
        koleo = s.koleo if s.koleo_end is None else Cosine(s.koleo, s.koleo_end, self.steps)(step)
        return Objective(
            targets=TARGET_RULES[s.targets],
            dino_weight=s.dino,
            ibot_weight=ibot,
            koleo_weight=koleo,
            student_temperature=s.student_temperature,
            koleo_neighbours=s.koleo_neighbours,
            koleo_across_processes=s.koleo_across_processes,
            compare=d.compare,
            class_feature_weight=features * d.class_weight,
            patch_feature_weight=features * d.patch_weight,
            gram_weight=self.gram.weight if step >= self.gram.start else 0.0,
        )
