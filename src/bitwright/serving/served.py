"""The model that is served: from the body of a request to tokens, within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError
from bitwright.runtime.continuation import Wish
from bitwright.serving.bodies import Chat, Common, Completion, Message
from bitwright.serving.failures import RefusedError

# Roles that newer clients send and that templates do not know.
_ROLES = {"developer": "system"}
COMPLETION_TOKENS = 16
"""New tokens of a completion that names no number, as in OpenAI's API."""


@dataclass(frozen=True)
class Served:
    """What is known of the model beside its weights.

    Args:
        name: what clients call it. tokenizer: reads prompts; used by one thread at a time.
        context: positions of the model, ``None`` where there is no limit. vocabulary: ids below it are tokens.
        most_prompt, most_tokens: limits of a request, in tokens.
    """

    name: str
    tokenizer: Any
    ends: frozenset[int]
    context: int | None
    vocabulary: int
    most_prompt: int
    most_tokens: int

    def check_name(self, name: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            RefusedError: status 404.
        """
        if name is not None and name != self.name:
            raise RefusedError(
                404, f"there is no model {name[:80]!r}; this server has {self.name!r}", "model", "model_not_found"
            )

    def wish(self, body: Completion | Chat) -> Wish:
        """The wish of a checked body.

        Raises:
            RefusedError: status 400, for a prompt that cannot be read or that exceeds a limit.
        """
        if isinstance(body, Chat):
            ids, usual = self._chat_ids(body.messages), self.most_tokens
        else:
            ids, usual = self._completion_ids(body.prompt), min(COMPLETION_TOKENS, self.most_tokens)
        self._check_length(len(ids))
        return Wish(ids, self._limit(body, usual), body.sampling(), self.ends, body.stops, body.scores)

    def _limit(self, body: Common, usual: int) -> int:
        wanted = usual if body.limit is None else body.limit
        if wanted > self.most_tokens:
            raise RefusedError(400, f"max_tokens is {wanted}; this server allows {self.most_tokens}", "max_tokens")
        return wanted

    def _check_length(self, tokens: int) -> None:
        if tokens == 0:
            raise RefusedError(400, "the prompt has no tokens; give at least one word", "prompt")
        most = self.most_prompt if self.context is None else min(self.most_prompt, self.context - 1)
        if tokens > most:
            raise RefusedError(
                400, f"the prompt has {tokens} tokens; at most {most} fit here", "prompt", "context_length_exceeded"
            )

    def _completion_ids(self, prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return _tokens(lambda: self.tokenizer(prompt)["input_ids"])
        inner = [item for item in prompt if not isinstance(item, int)]
        if len(inner) > 1:
            raise RefusedError(400, "prompt: one prompt per request; send the others on their own", "prompt")
        if inner:
            return self._completion_ids(inner[0])
        ids = tuple(token for token in prompt if isinstance(token, int))
        if any(not 0 <= token < self.vocabulary for token in ids):
            raise RefusedError(400, f"prompt: token ids are 0 to {self.vocabulary - 1}", "prompt")
        return ids

    def _chat_ids(self, messages: list[Message]) -> tuple[int, ...]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RefusedError(
                400, f"{self.name} has no chat template; use /v1/completions, or a model that has one", "messages"
            )
        given = [_plain(message) for message in messages]
        return _tokens(
            lambda: self.tokenizer.apply_chat_template(
                given, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates take it: the content is one text."""
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text":
                raise RefusedError(400, f"messages: a part of type {part.type[:40]!r}; only text is read", "messages")
        content = "".join(part.text for part in content)
    return {**(message.model_extra or {}), "role": _ROLES.get(message.role, message.role), "content": content or ""}


def _tokens(read: Callable[[], Any]) -> tuple[int, ...]:
    """Run the tokenizer; what it says of a text that it cannot read is the client's to know."""
    try:
        return tuple(int(token) for token in read())
    except ImportError as error:
        raise InputError("a chat template needs jinja2 on the server; run: pip install 'bitwright[serve]'") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RefusedError(400, f"the prompt cannot be read: {lines[0][:300]}") from error
