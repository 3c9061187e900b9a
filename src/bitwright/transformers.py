"""``import bitwright.transformers`` lets ``AutoModel....from_pretrained(folder)`` load native checkpoints.

Importing this module registers the quantization method ``bitwright`` with transformers; nothing else happens.
"""

from __future__ import annotations

from bitwright.runtime.cache import QuantizedCache, cache_factory
from bitwright.runtime.hf import BitwrightConfig, BitwrightQuantizer, register

__all__ = ["BitwrightConfig", "BitwrightQuantizer", "QuantizedCache", "cache_factory", "register"]

register()
