"""The compiled decoding step: a whole token in one call, for networks whose parts are found and proved by experiment.

:func:`native_network` traces a model on a few random tokens, reads off what its blocks do, builds the compiled network,
and compares its logits with the model's. :func:`find_decoders` falls back to the model where any of this fails.
"""

from bitwright.runtime.native_decoder.build import NativeNetwork
from bitwright.runtime.native_decoder.decoder import NativeDecoder
from bitwright.runtime.native_decoder.find import Found, find_decoders, native_network
from bitwright.runtime.native_decoder.plan import NotServedError

__all__ = ["Found", "NativeDecoder", "NativeNetwork", "NotServedError", "find_decoders", "native_network"]
