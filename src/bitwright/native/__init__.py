"""Compiled kernels: products with packed weights, loops of solvers, bit packing. C++ in ``native/``.

Nothing is loaded at import. :func:`library` loads the extension at the first call and chooses the fastest instruction
set that the processor has; without the extension (an installation without a compiler, an unknown platform) it returns
``None`` and everything runs on torch.
"""

from bitwright.native.loading import chosen, extension, instruction_sets, library, require_library, unavailable

__all__ = ["chosen", "extension", "instruction_sets", "library", "require_library", "unavailable"]
