"""A transformer over several devices: FSDP2 (arXiv:2304.11277), one unit per layer.

The rest of the network is a unit of its own. Weights are gathered for a call and given up after it,
so that a call without gradients never leaves a copy behind that an update would make stale.
"""

import warnings
from functools import partial

import torch
from torch import nn

from longlive.models.dit import DiT

_LAYER_METHODS = ("text_keys_values", "store_keys")


def data_parallel_mesh(device_type: str, nodes: int, world: int) -> "torch.distributed.DeviceMesh":
    """Return the mesh over all processes: sharded within a node, replicated across nodes."""
    from torch.distributed.device_mesh import init_device_mesh

    if nodes > 1:
        names = ("replicate", "shard")
        return init_device_mesh(device_type, (nodes, world // nodes), mesh_dim_names=names)
    return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))


def shard(
    module: nn.Module, mesh: "torch.distributed.DeviceMesh", compute_dtype: torch.dtype | None
) -> None:
    """Spread a module's weights over the devices of a mesh, in place.

    Args:
        module: A transformer, whose layers become units, or any other module, one unit.
        mesh: Of :func:`data_parallel_mesh`.
        compute_dtype: Type in which weights are gathered; None for their own. Gradients are summed
            in float32, and the weights that are updated keep their type.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # Keys, values and velocities are views, and nothing here changes them in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=torch.float32 if compute_dtype else None,
        cast_forward_inputs=False,
    )
    spread = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if isinstance(module, DiT):
        for layer in module.layers:
            spread(layer)
            for method in _LAYER_METHODS:
                register_fsdp_forward_method(layer, method)
    spread(module)
    if isinstance(module, DiT):
        register_fsdp_forward_method(module, "text_keys_values")
