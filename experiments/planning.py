"""What a config's train step will need on a TPU slice that is not there: compiled ahead of time, and read.

The step is the one that the training loop compiles (`training.compiled.lower`), traced from shapes alone: no
data and no device is needed, only libtpu. Memory and collectives are the compiler's; FLOPs are counted from
the step's jaxpr and divided among the chips; the times are a roofline (`training.roofline`), no measurement.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corpora.tokens import TextSettings
from experiments import generative_settings, language_settings, settings
from experiments.cli import UsageError
from generative_retrieval import query_generator
from language_model import causal
from training import chips, collectives, flops, hlo, traffic
from training import mesh as meshes
from training.build import build, fill
from training.compiled import lower
from training.loop import Schedule
from training.mesh import Layout
from training.roofline import Place, Roofline, model_flops_utilization, roofline, torus_of
from training.start import Start, placed
from training.step import watched
from training.task import Batch, Task

_SIDES = ("tokens", "mask", "segments")
_FIELDS = ("task", "optimizer", "schedule", "batch", "mesh")
EXAMPLES = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
      arguments: state and batch; `outputs` likewise, of which `aliased` lie where arguments did.
      temporaries: what the step needs besides.
      peak: the most at any moment, as the compiler has it.
      available: what the chip has for a program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int
    available: int

    @property
    def needed(self) -> int:
        """The largest of the peak and of what all parts add up to."""
        return max(self.peak, self.arguments + self.outputs - self.aliased + self.temporaries)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one compilation tells.

    Attributes:
      topology: such as "v5e:16x16"; `slices` of them.
      chip: of training.chips.
      axes: sizes of the mesh.
      batch: rows of a step.
      parameters: how many.
      counted: operations of a step over all chips.
      seconds: that tracing and compiling took.
      memory: None where the program did not fit.
      wanted: bytes that a program which did not fit wanted, where the compiler says so.
      refusal: the compiler's own words for that.
      hbm_bytes: that a chip reads and writes in a step.
      sent: collectives, and how often each runs.
      times: the roofline.
      unknown: what the numbers lack, in words.
    """

    topology: str
    slices: int
    chip: chips.Chip
    axes: Mapping[str, int]
    batch: int
    parameters: int
    counted: flops.Flops
    seconds: float
    memory: Memory | None = None
    wanted: int | None = None
    refusal: str = ""
    hbm_bytes: float = 0.0
    sent: Mapping[collectives.Collective, float] = dataclasses.field(default_factory=dict)
    times: Roofline | None = None
    unknown: Sequence[str] = ()

    @property
    def chips(self) -> int:
        return math.prod(self.axes.values())

    @property
    def sent_bytes(self) -> float:
        """What a chip sends in a step."""
        return sum(one.sent_bytes * times for one, times in self.sent.items())

    @property
    def best_utilization(self) -> float | None:
        """The best possible model FLOPs utilization: that of a step as fast as its roofline."""
        if self.times is None:
            return None
        model = self.counted.matmul - self.counted.recomputed
        return model_flops_utilization(model, self.chips, self.chip.peak_flops, self.times.seconds)

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.needed <= self.memory.available


def prepare() -> None:
    """Sets what libtpu needs on a machine without a TPU; comes before the first use of jax.

    Raises:
      UsageError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("libtpu is not installed; pip install -e '.[tpu]' installs it, also without a TPU")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no machine that could tell what this one is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another plan may be under way
    jax.config.update("jax_platforms", "cpu")


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Returns the devices of a slice that need not be there, or of several.

    Raises:
      UsageError: there is no such topology, or training.chips has no memory and links for its chips.
    """
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UsageError(f"--topology is {topology!r}: {reason}; examples: {EXAMPLES}") from None
    chip = chips.find(found[0])
    if chip is None or chip.links is None:
        raise UsageError(f"--topology is {topology!r}, chips without constants here; examples: {EXAMPLES}")
    return list(found)


def plan(
    config: Mapping[str, Any], topology: str, *, slices: int = 1, say: Callable[[str], None] = print
) -> Plan:
    """Compiles a config's train step for a topology.

    Args:
      config: an experiment's, as a plain dict; its data are not read.
      topology: such as "v5e:16x16".
      slices: how many of them, joined by the data-center network; the mesh axis `replica` must be as many.
      say: is told how it goes.

    Raises:
      UsageError, SpecError: the config or the topology is malformed.
    """
    start = time.monotonic()
    check_fields(config)
    layout, mesh = mesh_of(config, topology, slices)
    say(f"tracing the step for {topology}, {mesh.size} chips")
    step, arguments = _abstract_step(config, layout, mesh)
    lowered, counted = lower(step, arguments, mesh)
    state, _, batch, *_ = arguments
    known = dict(
        topology=topology,
        slices=slices,
        chip=chips.find(mesh.devices.flat[0]),
        axes=dict(mesh.shape),
        batch=next(iter(batch.values())).shape[0],
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        counted=counted,
    )
    say(f"traced in {time.monotonic() - start:.0f} s; compiling")
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal, wanted = _refused(str(error))
        return Plan(**known, seconds=time.monotonic() - start, wanted=wanted, refusal=refusal)
    say(f"compiled after {time.monotonic() - start:.0f} s; reading the program")
    return _read(compiled, mesh, known, start)


def check_fields(config: Mapping[str, Any]) -> None:
    """Raises UsageError where the config has no family, or not what a step needs."""
    if config.get("family") not in _FAMILIES:
        raise UsageError(f"config.family is {config.get('family')!r}; allowed: {', '.join(_FAMILIES)}")
    own, _ = _FAMILIES[config["family"]]
    missing = [field for field in (*own, *_FIELDS) if field not in config]
    if missing:
        raise UsageError(f"the config has no {', '.join(missing)}")


def parts(config: Mapping[str, Any]) -> tuple[Task, optax.GradientTransformation, Schedule]:
    """Returns what of a step does not depend on devices.

    Raises:
      UsageError, SpecError: the config is malformed.
    """
    optimizer = build(config["optimizer"], "config.optimizer")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UsageError("config.optimizer is no optax transformation; is an argument missing?")
    task = build(config["task"], "config.task")
    return task, optimizer, fill(Schedule, config["schedule"], "config.schedule")


def mesh_of(config: Mapping[str, Any], topology: str, slices: int = 1) -> tuple[Layout, Mesh]:
    """Returns the layout of a config and its mesh over all chips of a topology.

    Raises:
      UsageError: the topology does not exist, or the mesh has other sizes.
    """
    found = devices(topology, slices)
    layout = fill(Layout, config["mesh"], "config.mesh")
    try:
        mesh = layout.mesh(found)
    except ValueError as error:
        raise UsageError(f"config.mesh: {error}") from None
    if mesh.size != len(found):
        raise UsageError(
            f"config.mesh has {mesh.size} devices; allowed: {len(found)}, all chips of {topology}"
            f"{f' times {slices}' if slices > 1 else ''}"
        )
    return layout, mesh


def _read(compiled: jax.stages.Compiled, mesh: Mesh, known: Mapping[str, Any], start: float) -> Plan:
    chip = known["chip"]
    module = hlo.parse(compiled.as_text())
    sent, unknown = collectives.find(module, mesh.shape)
    hbm_bytes = traffic.moved(module)
    places = [place(device) for device in mesh.devices.flat]
    analysis = compiled.memory_analysis()
    return Plan(
        **known,
        seconds=time.monotonic() - start,
        memory=Memory(
            arguments=analysis.argument_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            peak=analysis.peak_memory_in_bytes,
            available=chip.hbm_bytes,
        ),
        hbm_bytes=hbm_bytes,
        sent=sent,
        times=roofline(
            chip,
            matmul_flops=known["counted"].matmul / mesh.size,
            hbm_bytes=hbm_bytes,
            sent=sent,
            places=places,
            torus=torus_of(places),
        ),
        unknown=(*known["counted"].uncounted, *unknown),
    )


def place(device: jax.Device) -> Place:
    """Returns where a chip stands: its slice, and its coordinates there."""
    return (getattr(device, "slice_index", None) or 0, *device.coords)


def _refused(message: str) -> tuple[str, int | None]:
    """The sentence that says what did not fit, and how many bytes it wanted."""
    line = next((line for line in message.splitlines() if "memory" in line), message.splitlines()[0])
    line = line.partition("RESOURCE_EXHAUSTED: ")[2] or line
    found = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", line)
    if not found:
        return line, None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return line, int(float(number) * 1024 ** " KMGT".index(unit or " "))


def _abstract_step(config: Mapping[str, Any], layout: Layout, mesh: Mesh) -> tuple[Callable, tuple[Any, ...]]:
    """The step that the loop would compile, and the shapes of what it takes, placed on the mesh."""
    task, optimizer, schedule = parts(config)
    start = Start(task, optimizer, mesh, layout, schedule.microbatches, schedule.average_decay)
    whole = NamedSharding(mesh, PartitionSpec())
    batch = _batch(config, mesh, schedule.microbatches)
    key = _alike(jax.random.key(0), whole)
    state = start.shapes(key, batch)
    step = start.step()
    window = _alike(start.window(step, state, batch, key), whole)
    signals = jax.ShapeDtypeStruct(
        (mesh.size,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    )
    return watched(step), (state, window, batch, key, signals)


def _alike(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes of arrays, all placed alike."""
    return placed(tree, jax.tree.map(lambda _: sharding, tree))


def _batch(config: Mapping[str, Any], mesh: Mesh, parts: int) -> Batch:
    shapes = batch_shapes(config)
    rows = next(iter(shapes.values()))[0]
    try:
        meshes.check_rows(rows, mesh, parts=parts, what="config.batch.batch_size")
    except ValueError as error:
        raise UsageError(str(error)) from None
    sharding = meshes.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in shapes.items()}


def batch_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a batch's arrays, all int32, at full length; no data are needed."""
    _, shapes_of = _FAMILIES[config["family"]]
    return shapes_of(config)


def _contrastive(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """One document is relevant to each query."""
    text = fill(TextSettings, config["text"], "config.text")
    batch = fill(settings.Batch, build(config["batch"], "config.batch"), "config.batch")
    rows, documents = batch.batch_size, 1 + batch.negatives_per_query
    return {
        **{f"query_{name}": (rows, text.query_length) for name in _SIDES},
        **{f"document_{name}": (rows, documents, text.document_length) for name in _SIDES},
        "document_rows": (rows, documents),
        "positives": (rows, 1),
    }


def _language(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    batch = fill(language_settings.Batch, config["batch"], "config.batch")
    shapes = causal.batch_shapes(batch.batch_size, batch.length)
    return {name: x.shape for name, x in shapes.items()}


def _generative(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    text = fill(generative_settings.Text, config["text"], "config.text")
    batch = fill(settings.Rows, config["batch"], "config.batch")
    given = fill(generative_settings.Plan, config["plan"], "config.plan")
    of_text = dict.fromkeys(_SIDES, (batch.batch_size, text.length))
    of_id = dict.fromkeys(("targets", "target_mask"), (batch.batch_size, given.docid_length))
    return {**of_text, **of_id, "documents": (batch.batch_size,)}


def _query_generator(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    text = fill(query_generator.TextSettings, config["text"], "config.text")
    batch = fill(settings.Rows, config["batch"], "config.batch")
    of_document = dict.fromkeys(_SIDES, (batch.batch_size, text.document_length))
    of_query = dict.fromkeys(("targets", "target_mask"), (batch.batch_size, text.query_length))
    return {**of_document, **of_query}


# Of each family the fields of its own that its batch depends on, and the shapes of that.
_FAMILIES = {
    "experiments.contrastive.Experiment": (("text",), _contrastive),
    "experiments.generative.Experiment": (("text", "plan"), _generative),
    "experiments.language.Experiment": ((), _language),
    "experiments.query_generator.Experiment": (("text",), _query_generator),
}
