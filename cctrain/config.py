"""The settings of a run: what `conf/` fills in and the command line overrides.

Dataclasses are validated once, in the parent; ranks get the result as `config.json` and trust it. They are not
frozen because Hydra refuses to override frozen ones. The text under each field is its reference documentation; that of
tune.* is in tune_config.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cctrain.errors import RequestError
from cctrain.tune_config import TuneConfig

AUTO = "auto"
DEFAULT_BLOCKS = 8


class CcMode(Enum):
    """What the user expects of the machine. The mode that goes into the record is the one observed."""

    auto = "auto"
    off = "off"
    on = "on"
    emulated = "emulated"
    unverified = "unverified"


class Engine(Enum):
    """The library that trains."""

    automodel = "automodel"
    hf = "hf"


class StepKind(Enum):
    """What one optimizer step does."""

    stock = "stock"
    graphed = "graphed"
    auto = "auto"


class WeightsKind(Enum):
    """Where the model's weights come from."""

    recipe = "recipe"
    random = "random"
    pretrained = "pretrained"


class DataKind(Enum):
    """Where the training data come from."""

    recipe = "recipe"
    pydoc = "pydoc"
    jsonl = "jsonl"
    synthetic = "synthetic"
    squad = "squad"
    medpix = "medpix"


class MeasureKind(Enum):
    """Which figures a run gives."""

    steady = "steady"
    seed = "seed"


class Lengths(Enum):
    """How long the synthetic samples are."""

    fixed = "fixed"
    squad = "squad"


class LaunchKind(Enum):
    """Who starts the ranks."""

    torchrun = "torchrun"
    slurm = "slurm"
    kubernetes = "kubernetes"
    nemo_run = "nemo_run"


@dataclass
class RecipeConfig:
    """Which AutoModel recipe is run."""

    name: str = "???"
    """Name in the record; for a recipe file of your own, its file name."""
    file: str = "???"
    """The AutoModel recipe file, relative to recipes/ or absolute."""
    pretrained: str | None = None
    """Weights in place of those that the file names, for a recipe that is another one's at another size."""
    model: str | None = None
    """Directory under recipes/ with the model's config.json, used by weights=random."""
    text: str | None = None
    """Directory under recipes/ with the tokenizer or processor used with weights=random."""


@dataclass
class CcConfig:
    """Confidential computing."""

    mode: CcMode = CcMode.auto
    """Expected mode. off and on stop the run where the machine is not so; emulated injects the tolls of tolls= into a
    machine without CC; unverified takes any machine and marks the record mode "unknown"."""
    blocks: int = DEFAULT_BLOCKS
    """emulated: pairs of blocks of plain and tolled steps, the replicates of the keep ratio's interval."""
    explain: bool = False
    """emulated: further blocks, with each class of tolls alone and each left out; what the verb explain sets."""

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise RequestError(f"cc.blocks={self.blocks}: allowed is 2 or more pairs, fewer give no interval")
        if self.blocks != DEFAULT_BLOCKS and self.mode is not CcMode.emulated:
            raise RequestError(f"cc.blocks={self.blocks} is read with cc=emulated only, got cc={self.mode.value}")
        if self.explain and self.mode is not CcMode.emulated:
            raise RequestError(f"cc.explain=true is read with cc=emulated only, got cc={self.mode.value}")


@dataclass
class StepConfig:
    """The training step."""

    kind: StepKind = StepKind.stock
    """stock: AutoModel's own, left as it is. graphed: the same recorded into CUDA graphs, which a few launches a step
    replay; refused where a part cannot be recorded. auto: graphed where it can be, else stock; the record says why."""
    compile: bool = True
    """graphed, auto: have torch fuse the operations within each layer before they are recorded."""

    def __post_init__(self) -> None:
        if self.kind is StepKind.stock and not self.compile:
            raise RequestError("step.compile=false is read with step=graphed and step=auto only, got step=stock")


@dataclass
class EngineConfig:
    """The library that trains."""

    name: Engine = Engine.automodel
    """automodel: NVIDIA NeMo AutoModel. hf: the same recipe through transformers' Trainer, PEFT and Accelerate; what
    they cannot express is refused."""


@dataclass
class WeightsConfig:
    """The model's weights."""

    kind: WeightsKind = WeightsKind.recipe
    """recipe: as the recipe file says. random: no download. pretrained: from the hub or a directory."""
    path: str | None = None
    """pretrained: local directory or hub id; null keeps the recipe's own."""


@dataclass
class DataConfig:
    """The training data."""

    kind: DataKind = DataKind.recipe
    """recipe: as the recipe file says. pydoc: the installed Python's documentation topics. jsonl: your file.
    synthetic: made up. squad, medpix: the hub's."""
    path: str | None = None
    """jsonl: the file, one JSON object a line."""
    question: str = "question"
    """jsonl: name of the column that holds the prompt."""
    answer: str = "answer"
    """jsonl: name of the column that holds the answer, the part the loss is taken on."""
    context: str | None = None
    """jsonl: name of a column put before the prompt; null for none."""
    image: str | None = None
    """jsonl, VLM recipes: name of the column with an image's path (relative to the file); null for text only."""
    seq_len: int | None = None
    """Tokens a sample: synthetic ones have exactly this many (lengths=fixed), others are cut there. null: 512 for
    synthetic and pydoc, no cut for the rest."""
    lengths: Lengths = Lengths.fixed
    """synthetic: fixed, or squad (spread like SQuAD's)."""

    def __post_init__(self) -> None:
        if self.seq_len is not None and self.seq_len < 8:
            raise RequestError(f"data.seq_len={self.seq_len}: allowed is 8 or more tokens")
        if self.kind is DataKind.jsonl and not self.path:
            raise RequestError("data=jsonl needs a file: add data.path=FILE (one JSON object a line)")
        if self.kind is not DataKind.jsonl and self.path:
            raise RequestError(f"data.path={self.path} is only read with data=jsonl, got data={self.kind.value}")


@dataclass
class MeasureConfig:
    """How the run is measured."""

    kind: MeasureKind = MeasureKind.steady
    """steady: of the steady steps. seed: the seed post's figure, what AutoModel itself prints, beside them."""
    warmup: int = 10
    """Steps set aside at the start (compilation, autotuning, clocks)."""
    steps: int | str = 100
    """Steps measured after the warm-up; auto: until the interval is narrow enough."""
    half_width: float = 0.0025
    """steps=auto: half-width of the step time's 95 % interval to stop at, as a fraction of the mean."""
    max_steps: int = 1000
    """steps=auto: the most steps measured."""
    crossings: bool = False
    """Count launches, copies, waits... of a plain run, as emulated runs do; not with CC on."""
    validation: bool = False
    """Keep the recipe's validation; its time belongs to no step."""
    checkpoint: bool = False
    """Keep the recipe's checkpoints; their time belongs to no step."""
    setup_timeout_s: float = 3600.0
    """Longest wait for the first step: loading, compiling, autotuning."""
    step_timeout_s: float = 600.0
    """Longest wait for any later step, with validation and checkpoints; a rank that hangs ends the run after it."""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise RequestError(f"measure.warmup={self.warmup}: allowed is 0 or more steps")
        if self.steps != AUTO and (isinstance(self.steps, str) or self.steps < 1):
            raise RequestError(f"measure.steps={self.steps}: allowed is a whole number from 1, or auto")
        if not 0 < self.half_width < 1:
            raise RequestError(f"measure.half_width={self.half_width}: allowed is a fraction of the mean, as 0.0025")
        if self.max_steps < 1:
            raise RequestError(f"measure.max_steps={self.max_steps}: allowed is 1 or more steps")
        for key, default in (("half_width", 0.0025), ("max_steps", 1000)):
            if not self.is_auto and getattr(self, key) != default:
                raise RequestError(f"measure.{key}={getattr(self, key)} is read with measure.steps=auto only")
        for key in ("setup_timeout_s", "step_timeout_s"):
            if not getattr(self, key) > 0:
                raise RequestError(f"measure.{key}={getattr(self, key)}: allowed is more than 0 seconds")

    @property
    def is_auto(self) -> bool:
        """Whether the measured steps decide when there are enough."""
        return self.steps == AUTO

    @property
    def most_steps(self) -> int:
        """The most steps that are measured."""
        return self.max_steps if self.is_auto else int(self.steps)


@dataclass
class LaunchConfig:
    """How the ranks are started."""

    kind: LaunchKind = LaunchKind.torchrun
    """torchrun: here and now. slurm, kubernetes, nemo_run: submit a job that runs this command, with the rest of its
    settings, on other machines; run_root is then a directory that they share."""
    nproc_per_node: int | None = None
    """Ranks on each machine; null: one per visible GPU, or 1 for a CPU recipe."""
    num_nodes: int = 1
    """Machines. With launch=torchrun start the same command on each of them, with a run_root that they share."""
    rdzv_endpoint: str | None = None
    """torchrun on several machines: HOST:PORT, a name of one of them, node 0, and a free port there. Node 0 writes and
    follows the run directory."""
    node_rank: int | None = None
    """torchrun on several machines: which of them this is; null finds out whether rdzv_endpoint names it, which
    suffices unless several "machines" share one."""
    image: str | None = None
    """kubernetes: container image with cctrain installed."""
    executor: str = "local"
    """nemo_run: which of NeMo-Run's executors, as local, slurm, kubeflow, skypilot."""
    options: list[str] = field(default_factory=list)
    """slurm: further options of sbatch, as ["--partition=gpu","--time=60"]; kubernetes: of kubectl; nemo_run: arguments
    of the executor, as ["account=me"]."""

    def __post_init__(self) -> None:
        for key in ("nproc_per_node", "num_nodes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                what = "ranks" if key == "nproc_per_node" else "machines"
                raise RequestError(f"launch.{key}={value}: allowed is 1 or more {what}")
        if self.kind is LaunchKind.torchrun:
            self._check_torchrun()
        self._refuse_unread()

    def _check_torchrun(self) -> None:
        endpoint = re.fullmatch(r"[^\s:]+:(\d{1,5})", self.rdzv_endpoint or "")
        if self.num_nodes > 1 and not (endpoint and 0 < int(endpoint[1]) < 1 << 16):
            raise RequestError(
                f"launch.rdzv_endpoint={self.rdzv_endpoint}: with launch.num_nodes={self.num_nodes} allowed is "
                "HOST:PORT, the same on every machine, HOST being one of them"
            )
        if self.node_rank is not None and not 0 <= self.node_rank < self.num_nodes:
            raise RequestError(f"launch.node_rank={self.node_rank}: allowed is 0 to {self.num_nodes - 1}")

    def _refuse_unread(self) -> None:
        kind = self.kind.value
        several = "launch=torchrun and launch.num_nodes=2 or more"
        is_several = self.kind is LaunchKind.torchrun and self.num_nodes > 1
        for key, is_read, by in (
            ("rdzv_endpoint", is_several, several),
            ("node_rank", is_several, several),
            ("image", kind == "kubernetes", "launch=kubernetes"),
            ("options", kind != "torchrun", "launch=slurm, kubernetes or nemo_run"),
        ):
            value = getattr(self, key)
            if value not in (None, []) and not is_read:
                raise RequestError(f"launch.{key}={value} is read with {by} only")


@dataclass
class TrackConfig:
    """Where the run is shown as it goes. The run directory is the result; these are copies of it."""

    sinks: list[str] = field(default_factory=list)
    """What track=NAME stands for: files of cctrain/sinks/. wandb: live with a login, else offline in the run
    directory. trackio: an SQLite file on this machine, no account. both. none."""
    project: str | None = None
    """Project there; null: WANDB_PROJECT, else cctrain."""
    group: str | None = None
    """Runs to be seen together; null: those alike in all but the mode, by the recipe's name and hash."""

    def __post_init__(self) -> None:
        for key in ("project", "group"):
            value = getattr(self, key)
            if value is None:
                continue
            if not self.sinks:
                raise RequestError(f"track.{key}={value} is read with track=wandb, trackio or both, got track=none")
            if not re.fullmatch(r"[\w. -]{1,100}", value):
                raise RequestError(
                    f"track.{key}={value}: allowed are 1 to 100 letters, digits, spaces and any of . _ -"
                )


@dataclass
class Config:
    """One run, as asked for."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    cc: CcConfig = field(default_factory=CcConfig)
    step: StepConfig = field(default_factory=StepConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    tolls: dict[str, Any] | None = None
    """cc=emulated: tolls=NAME|FILE, of which this is the content, a profile of `cctrain/emulation/profile.py`."""
    run_root: str = "runs"
    """Directory under which run directories are made."""
    dry_run: bool = False
    """Print the torchrun command and the recipe, start nothing."""
    allow_targets: list[str] = field(default_factory=list)
    """Further names that a recipe's _target_ and *_fn keys may import. Naming one here runs its code."""
    train: dict[str, Any] = field(default_factory=dict)
    """The AutoModel recipe itself; any of its keys can be overridden."""

    def __post_init__(self) -> None:
        if not self.run_root:
            raise RequestError("run_root is empty: allowed is a directory, runs by default")
