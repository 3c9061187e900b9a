"""Static ranges of activation quantizers, fitted on the quantized stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwright.jobs.installing import install_module
from bitwright.jobs.result import UnitResult
from bitwright.jobs.sweep import Gatherer, input_hooks
from bitwright.jobs.units import Unit
from bitwright.stages.ranges.activation import fit_activation

if TYPE_CHECKING:
    from bitwright.jobs.engine import Engine


def fit_input_ranges(engine: Engine, unit: Unit, result: UnitResult) -> None:
    """Choose scale and zero point of every static input quantizer of the unit.

    Inputs are seen as the quantizer will see them: behind the site's online operations, with all weights of the unit
    quantized and the input quantizers of the earlier layers not yet active (ranges are those of the signal, not of
    another quantizer's error).
    """
    static = {
        path: quantizer
        for path, module in result.modules.items()
        if (quantizer := engine.choices[path].input) is not None and quantizer.format.time == "static"
    }
    if not static:
        return
    requests = {path: quantizer.needs for path, quantizer in static.items()}
    root = engine.model.module
    gatherer = Gatherer(root, requests)
    with input_hooks(root, gatherer.requests, gatherer):
        for index in range(len(engine.batches)):
            gatherer.keep = engine.work_runner.keep(index)
            engine.work_runner.until_stopped(unit, index, engine.quantized[index])
    found = gatherer.results()
    for path, quantizer in static.items():
        module = result.modules[path]
        fitted = fit_activation(quantizer, found.get(path, {}))
        if fitted is None:
            engine.events.record("no calibration signal", path, "its input stays float: the layer was never called")
            continue
        module.input_format, module.input_scale, module.input_zero = fitted
        install_module(root, module, cache_weights=True)
