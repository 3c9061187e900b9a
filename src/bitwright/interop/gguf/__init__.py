"""GGUF: the files of llama.cpp, read. README.md beside this file says what is read and what is refused."""

from bitwright.interop.gguf.dequantize import READABLE, dequantize
from bitwright.interop.gguf.reader import GgufFile, TensorEntry, is_gguf, read_gguf
from bitwright.interop.gguf.types import TYPES, BlockType

__all__ = ["READABLE", "TYPES", "BlockType", "GgufFile", "TensorEntry", "dequantize", "is_gguf", "read_gguf"]
