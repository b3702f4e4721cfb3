"""What a config costs, from its shapes alone: parameters, operations a token, checkpoint, and sparse layers.

Nothing is compiled and no data are read. Batches are at full length. With --topology (which needs libtpu, but
no TPU: pip install -e '.[tpu]') also what each chip of a slice moves and sends, and the least time of the
all-to-alls of sparse layers, by bisection bandwidth.

Examples:
  python -m experiments.cost --config=configs/language_model/corpora.py
  python -m experiments.cost --config=configs/pod/moe_deepseek.py --topology=v5e:16x16 --json
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.results import markdown_table
from experiments import cli, planning
from moe import cost
from training import chips, collectives, flops, frozen, mesh, roofline
from training.collectives import Collective
from training.roofline import bytes_for_people
from training.task import create


def main() -> None:
    """Entry point of `retrievax-cost`."""
    command = cli.Command(__doc__)
    config = command.config("configs/pod/moe_deepseek.py")
    topology = command.string("topology", None, "The slice: v5e, v5p or v6e and its shape in chips.")
    as_json = command.boolean("json", "Print JSON instead of tables.")

    def run() -> None:
        if topology.value is not None:
            planning.prepare()
        found = of(config.value.to_dict(), topology.value)
        print(json.dumps(found, indent=1) if as_json.value else "\n".join(lines(found)))

    command.run(run)


def of(config: Mapping[str, Any], topology: str | None = None) -> dict[str, Any]:
    """Returns what a config costs, as JSON has it: bytes, operations, seconds.

    Args:
      config: an experiment's, as a plain dict; its data are not read.
      topology: such as "v5e:16x16"; None for one device.

    Raises:
      UsageError, SpecError: the config or the topology is malformed.
    """
    planning.check_fields(config)
    task, optimizer, schedule = planning.parts(config)
    shapes = planning.batch_shapes(config)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    key = jax.random.key(0)
    average = schedule.average_decay > 0
    optimizer = frozen.left_out(optimizer, frozen.of(task))
    state = jax.eval_shape(lambda: create(task, optimizer, key, _zeros(batch), average=average))

    def loss(params, task_state, batch):
        return task.loss(params, task_state, batch, key, train=True)[0]

    # In chunks, a layer is called for each with a part of the batch.
    whole = dataclasses.replace(task, chunks=1) if getattr(task, "chunks", 1) > 1 else task
    in_one_piece = lambda params, state, batch: whole.loss(params, state, batch, key, train=True)[0]
    with cli.expecting(ValueError):
        layers = cost.sparse_layers(in_one_piece, state.params, state.state, batch)
    tokens = sum(array.size for name, array in batch.items() if name.endswith("mask"))
    counted = {
        "forward": flops.count(loss, state.params, state.state, batch),
        "forward_and_backward": flops.count(jax.value_and_grad(loss), state.params, state.state, batch),
    }
    parameters = cost.parameters(state.params, layers)
    found = {
        "parameters": {
            "total": sum(total for total, _ in parameters.values()),
            "active": sum(active for _, active in parameters.values()),
            "by_kind": {
                name: {"total": total, "active": active} for name, (total, active) in parameters.items()
            },
        },
        "checkpoint_bytes": {
            "parameters": _bytes(state.params),
            "state": _bytes(state.state),
            "optimizer": _bytes(state.opt_state),
            "average": _bytes(state.average),
        },
        "tokens_of_a_batch": tokens,
        "flops_per_token": {
            name: {
                "total": of_pass.total / tokens,
                "matmul": of_pass.matmul / tokens,
                "recomputed": of_pass.recomputed / tokens,
                "by_kind": {k: n / tokens for k, n in cost.operations(of_pass, layers).items()},
            }
            for name, of_pass in counted.items()
        },
        "not_counted": list(dict.fromkeys(what for one in counted.values() for what in one.uncounted)),
    }
    return found | {"topology": topology, "layers": _layers(layers, config, topology)}


def _layers(layers: list[cost.Layer], config: Mapping[str, Any], topology: str | None) -> list[dict]:
    """Each sparse layer, and what a device moves for it."""
    devices, parts, exchange_seconds = 1, 1, lambda operand_bytes: None
    if topology is not None:
        _, on = planning.mesh_of(config, topology)
        devices, parts = mesh.batch_parts(on), on.shape["expert"]
        places = [planning.place(device) for device in on.devices.flat]
        links, torus = chips.find(on.devices.flat[0]).links, roofline.torus_of(places)
        along = np.moveaxis(np.arange(on.size).reshape(on.devices.shape), on.axis_names.index("expert"), -1)
        members = tuple(along.reshape(-1, parts)[0].tolist())

        def exchange_seconds(operand_bytes):
            sent = collectives.sent("all-to-all", operand_bytes, parts)
            one = Collective("all-to-all", ("expert",), members, operand_bytes, sent)
            return roofline.collective_seconds(one, links, places, torus)

    found = []
    for layer in layers:
        moved = cost.moved(layer, devices=devices, expert_parts=parts)
        seconds = exchange_seconds(moved.exchange) if moved.exchange else 0.0
        found.append(
            dataclasses.asdict(layer)
            | {"device": dataclasses.asdict(moved), "exchange_seconds": seconds, "devices": devices}
        )
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Returns the lines that say what was found."""
    parameters, per_token = found["parameters"], found["flops_per_token"]
    forward, both = per_token["forward"], per_token["forward_and_backward"]
    kinds = [name for name in cost.KINDS if name in {**parameters["by_kind"], **both["by_kind"]}]
    none = {"total": 0, "active": 0}

    def row(name: str, of_kind: Mapping[str, float], flops_forward: float, flops_both: float) -> tuple:
        counts = f"{of_kind['total']:,}", f"{of_kind['active']:,.0f}"
        return name, *counts, f"{flops_forward:.3g}", f"{flops_both:.3g}"

    rows = [
        row(
            name,
            parameters["by_kind"].get(name, none),
            forward["by_kind"].get(name, 0),
            both["by_kind"].get(name, 0),
        )
        for name in kinds
    ]
    rows.append(row("all", parameters, forward["total"], both["total"]))
    head = ("", "parameters", "active for a token", "FLOP a token, forward", "and backward")
    shown = [
        *markdown_table(head, rows).splitlines(),
        "",
        f"Of the last column {both['recomputed'] / max(both['matmul'], 1):.0%} of the products are computed "
        "again; the optimizer is not in it.",
        *(f"not counted: {what}" for what in found["not_counted"]),
        "",
        *markdown_table(
            ("checkpoint", "bytes"),
            [
                *((name, bytes_for_people(n)) for name, n in found["checkpoint_bytes"].items() if n),
                ("all", bytes_for_people(sum(found["checkpoint_bytes"].values()))),
            ],
        ).splitlines(),
    ]
    if found["layers"]:
        shown += ["", *_layer_lines(found)]
    return shown


def _layer_lines(found: Mapping[str, Any]) -> list[str]:
    head = (
        "sparse layers", "how many", "experts", "edges a token", "dispatch", "combine", "expert weights",
        "an all-to-all sends", "at least",
    )  # fmt: skip
    rows = []
    for layer in found["layers"]:
        device, seconds = layer["device"], layer["exchange_seconds"]
        rows.append(
            (
                layer["path"],
                str(layer["copies"]),
                str(layer["num_experts"]),
                f"{layer['edges'] / layer['tokens']:.3g}",
                *(bytes_for_people(device[name]) for name in ("dispatch", "combine", "weights", "sent")),
                f"{1e3 * seconds:.3g} ms",
            )
        )
    devices = found["layers"][0]["devices"]
    where = "one device" if found["topology"] is None else f"a chip of {found['topology']}, of {devices}"
    return [
        f"Of one layer's forward pass on {where} with a batch of {found['tokens_of_a_batch']:,} tokens:",
        "",
        *markdown_table(head, rows).splitlines(),
        "",
        "There are two all-to-alls forward and two backward, and two more where the forward pass is computed "
        "again; the time is the larger of what links and bisection allow.",
    ]


def _zeros(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    return {name: jnp.zeros(array.shape, array.dtype) for name, array in batch.items()}


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
