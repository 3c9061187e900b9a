"""Makes tied parameters two tensors, for transforms that change one end only and for ends that are coded apart."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from bitwright.models import Model, Structure


def untie(model: Model, structure: Structure, names: Collection[str]) -> tuple[str, ...]:
    """Give the tied parameters ``names`` tensors of their own and return those that became independent."""
    chosen = [(name, owner) for name, owner in structure.ties if name in names]
    for name, owner in chosen:
        parent, _, leaf = name.rpartition(".")
        module = model.module.get_submodule(parent)
        shared = module.get_parameter(leaf)
        module.register_parameter(leaf, nn.Parameter(shared.detach().clone(), requires_grad=False))
        if model.streamed and model.names is not None:
            # Both names now read the same stored tensor, each into a parameter of its own.
            model.names.aliases.pop(name, None)
            model.names.sources.setdefault(name, model.names.sources[owner])
            places = tuple(place for place in model._places.get(owner, (owner,)) if place != name)
            model._places[owner] = places
            model._places[name] = (name,)
    return tuple(name for name, _ in chosen)
