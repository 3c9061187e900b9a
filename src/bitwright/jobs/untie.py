"""Makes tied parameters two tensors, for transforms that change one end only."""

from __future__ import annotations

from torch import nn

from bitwright.models import Model, Structure


def untie(model: Model, structure: Structure) -> tuple[str, ...]:
    """Give every tied parameter its own tensor and return the names that became independent."""
    for name, owner in structure.ties:
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
    return tuple(name for name, _ in structure.ties)
