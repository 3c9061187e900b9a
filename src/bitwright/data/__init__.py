"""Calibration and evaluation data: text, token ids, images, sentence pairs, and text sampled from the model itself."""

from bitwright.data.calibration import calibration
from bitwright.data.evaluation_text import documents_alone, evaluation, pieces, windows
from bitwright.data.images import ImageData
from bitwright.data.pairs import PairData
from bitwright.data.sampling import self_generated
from bitwright.data.sentences import sentence_tokens
from bitwright.data.sources import Documents, read_documents, read_ids
from bitwright.data.tokens import TokenData, token_data

__all__ = [
    "Documents",
    "ImageData",
    "PairData",
    "TokenData",
    "calibration",
    "documents_alone",
    "evaluation",
    "pieces",
    "read_documents",
    "read_ids",
    "self_generated",
    "sentence_tokens",
    "token_data",
    "windows",
]
