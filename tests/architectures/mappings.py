"""Which classes transformers' automatic mappings list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "embedding": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
}


@dataclass(frozen=True)
class Entry:
    """One class of a mapping: the config's type and the class's name."""

    mapping: str
    model_type: str
    name: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.mapping}/{self.model_type}/{self.name}"

    def classes(self) -> tuple[type, type]:
        """(config class, model class)."""
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type], getattr(transformers, self.name)


def entries(mapping: str) -> list[Entry]:
    """All classes of a mapping, in its order; a class under several types counts for each of its configs once."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    table: Any = getattr(modeling_auto, MAPPINGS[mapping])
    found: dict[tuple[Any, str], Entry] = {}
    for model_type, names in table.items():
        for name in [names] if isinstance(names, str) else names:
            found.setdefault((CONFIG_MAPPING[model_type], name), Entry(mapping, model_type, name))
    return list(found.values())
