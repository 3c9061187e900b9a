"""Bodies of requests: which fields are understood, which only at a value that changes nothing, which are ignored."""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from bitwright.errors import nearest_key
from bitwright.runtime.sampling import Sampling
from bitwright.serving.failures import RefusedError

MOST_STOPS, MOST_STOP_LETTERS, MOST_BIASES, MOST_SCORES = 16, 256, 1024, 20

# Fields of the official clients that say nothing about the text.
_IGNORED = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
})  # fmt: skip
# Fields that would change the answer, with the values at which they do not. ``None`` is always one.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (), "best_of": (1,), "echo": (False,), "function_call": ("none", "auto"), "functions": ([],),
    "modalities": (["text"],), "n": (1,), "prediction": (), "reasoning_effort": (),
    "response_format": ({"type": "text"},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "verbosity": (), "web_search_options": (),
}  # fmt: skip

Number = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_LETTERS)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class Common(BaseModel):
    """What completions and chats have in common. ``None`` stands for the default, as official clients send it."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MOST_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None

    @property
    def limit(self) -> int | None:
        """Most new tokens that the client asks for."""
        return self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many likeliest tokens are told with their log-probabilities; ``None``: not even the drawn one."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> Sampling:
        """How tokens are drawn; temperature and top-p are 1 where the client does not say, as in OpenAI's API.

        Raises:
            RefusedError: for a bias whose key is no token id.
        """
        return Sampling(
            temperature=_given(self.temperature, 1.0),
            top_k=max(_given(self.top_k, 0), 0),
            top_p=_given(self.top_p, 1.0),
            min_p=_given(self.min_p, 0.0),
            repetition_penalty=_given(self.repetition_penalty, 1.0),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            logit_bias={_token(key): bias for key, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
        )


class Completion(Common):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_SCORES)] | None = None

    @property
    def scores(self) -> int | None:
        """``logprobs`` itself."""
        return self.logprobs


class Part(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: str
    text: str


class Message(BaseModel):
    """A message of a chat. Fields beside role and content are given to the template as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[Part] | None = None


class Chat(Common):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_SCORES)] | None = None

    @property
    def limit(self) -> int | None:
        """The newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def scores(self) -> int | None:
        """``top_logprobs`` where ``logprobs`` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None


Body = TypeVar("Body", Completion, Chat)


def read_body(kind: type[Body], raw: bytes) -> Body:
    """Check the JSON of a request.

    Raises:
        RefusedError: status 400; names the field that is wrong, unknown or not served.
    """
    try:
        found = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RefusedError(400, "the body must be a JSON object")
    try:
        body = kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else None
        place = ".".join(str(step) for step in first["loc"])
        wrong = f"{place}: {first['msg']}"
        if name == "prompt" and len(first["loc"]) > 1:  # one message for each type that it might have been
            wrong = "prompt: give a text, or a list of token ids"
        raise RefusedError(400, wrong, name) from error
    _check_others(body)
    return body


def _check_others(body: Common) -> None:
    for name, value in (body.model_extra or {}).items():
        if name in _IGNORED or (name in _NEUTRAL and (value is None or _is_one_of(value, _NEUTRAL[name]))):
            continue
        if name in _NEUTRAL:
            allowed = " or ".join(str(choice) for choice in _NEUTRAL[name])
            only = f" but for {allowed}" if allowed else ""
            raise RefusedError(400, f"{name}: not served{only}; leave it out", name)
        known = {*type(body).model_fields, *_IGNORED, *_NEUTRAL}
        raise RefusedError(400, f"there is no field {name[:80]!r}; {nearest_key(name[:80], known)}", name[:80])


def _is_one_of(value: object, choices: tuple[object, ...]) -> bool:
    """Equality that tells ``True`` from 1."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise RefusedError(400, f"logit_bias: {key[:40]!r} is no token id", "logit_bias")
    return int(key)


Given = TypeVar("Given", int, float)


def _given(value: Given | None, default: Given) -> Given:
    assert value is None or math.isfinite(value)
    return default if value is None else value
