"""compressed-tensors: the files of vLLM and llm-compressor. README.md beside this file is the specification."""

from bitwright.interop.compressed_tensors.config import quantization_config
from bitwright.interop.compressed_tensors.exporter import plan
from bitwright.interop.compressed_tensors.refusal import Refusal
from bitwright.interop.compressed_tensors.scheme import Scheme, find_scheme, scheme_of
from bitwright.interop.compressed_tensors.tensors import pack, unpack

__all__ = ["Refusal", "Scheme", "find_scheme", "pack", "plan", "quantization_config", "scheme_of", "unpack"]
