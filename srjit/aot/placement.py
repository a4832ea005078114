"""Placement of a program's arguments on devices that are not attached."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping
from typing import Any

import jax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from srjit.aot.compilers import devices_of, mesh_of
from srjit.targets import Target

# Options of jax.jit that say where, as a placement does.
_PLACES = ("in_shardings", "out_shardings", "device", "backend")


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices that a program is compiled for, and what becomes of shardings there.

    Attributes:
      target: whose they are.
      mesh: how they are arranged; None: a single one.
    """

    target: Target
    mesh: Mesh | None

    @classmethod
    def of(cls, target: Target, mesh: Any, *shardings: Any) -> Placement:
        """Makes the placement on a mesh, given as ``mesh_of`` takes it.

        Without one, it is the mesh that ``shardings`` name, or else the one in use.
        """
        if mesh is None:
            named = [s.mesh for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding)]
            named.append(jax.sharding.get_abstract_mesh())
            mesh = next((m for m in named if not m.empty and m.size > 1), None)
        return cls(target, None if mesh is None else mesh_of(target, mesh))

    @property
    def count(self) -> int:
        """The number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """A context that lowers programs: its mesh is the one that PartitionSpecs are about."""
        try:
            with self.target.lowering() if self.mesh is None else _in_use(self.mesh):
                yield
        except ValueError as error:
            if "incompatible devices" in str(error) or "mesh passed to shard_map" in str(error):
                error.add_note(
                    "aot moves arguments and the shardings of jit's options to the devices that it "
                    "compiles for. Inside of the function, shardings have to be PartitionSpecs or "
                    "of an AbstractMesh; shard_map's mesh= an AbstractMesh or left out: then "
                    "it is the one that aot compiles for"
                )
            raise

    def sharding(self, given: Any) -> Any:
        """Returns the sharding here for a sharding, a PartitionSpec, or None.

        Raises:
          ValueError: it names axes that the mesh lacks.
          TypeError: it is of another kind.
        """
        if self.mesh is None:
            if isinstance(given, PartitionSpec) and any(given):
                raise ValueError(
                    f"{given} names axes, and there is no mesh: give aot one, as mesh={{'data': 4}}"
                )
            return SingleDeviceSharding(devices_of(self.target)[0])
        if given is None or isinstance(given, SingleDeviceSharding):
            return NamedSharding(self.mesh, PartitionSpec())
        if isinstance(given, (NamedSharding, PartitionSpec)):
            spec = given.spec if isinstance(given, NamedSharding) else given
            unknown = {a for a in jax.tree.leaves(tuple(spec)) if a not in self.mesh.axis_names}
            if unknown:
                raise ValueError(
                    f"{given} names axes that the mesh to compile for lacks: "
                    f"{', '.join(map(str, sorted(unknown)))}; it has {dict(self.mesh.shape)}"
                )
            return NamedSharding(self.mesh, spec)
        raise TypeError(
            f"aot moves a NamedSharding or a PartitionSpec to the mesh it compiles for, not {given}"
        )

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of ``jax.jit``, for here; arguments carry their shardings themselves."""
        moved = {k: v for k, v in options.items() if k not in _PLACES}
        if self.mesh is not None and options.get("out_shardings") is not None:
            given = options["out_shardings"]
            moved["out_shardings"] = jax.tree.map(self._or_none, given, is_leaf=_is_sharding)
        return moved

    def _or_none(self, given: Any) -> Any:
        return None if given is None else self.sharding(given)

    def arguments(self, tree: Any, shardings: Any = None) -> Any:
        """Arguments without their values, for here; what is no array stays what it is.

        Args:
          tree: of arrays, ``jax.ShapeDtypeStruct`` and anything else.
          shardings: theirs, a prefix of ``tree``; None: an argument's own.
        """
        given = jax.tree.broadcast(shardings, tree, is_leaf=_is_sharding)
        return jax.tree.map(self._argument, tree, given)

    def _argument(self, leaf: Any, given: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        sharding = self.sharding(getattr(leaf, "sharding", None) if given is None else given)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _in_use(mesh: Mesh) -> Any:
    """A context where a mesh is in use; without its devices, which an AbstractMesh lacks, too.

    Not on GPUs: their kernels ask for the device.
    """
    is_typed = AxisType.Explicit in mesh.axis_types
    is_gpu = mesh.devices.flat[0].platform == "gpu"
    if is_typed or is_gpu or not jax.sharding.get_abstract_mesh().empty:
        return jax.set_mesh(mesh)
    abstract = AbstractMesh(mesh.axis_sizes, mesh.axis_names, mesh.axis_types)
    return jax.sharding.use_abstract_mesh(abstract)


def _is_sharding(x: Any) -> bool:
    return x is None or isinstance(x, (PartitionSpec, jax.sharding.Sharding))
