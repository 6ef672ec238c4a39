"""The functions behind the methods of `Model`: generate, stream, chat, beam search."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from ..base.checks import ranged
from ..chat import stop_strings
from ..runtime.decoder import decoder, has_decoder, start_token
from ..runtime.prompt import Prompt, is_batch, token_ids
from ..runtime.runner import Runner
from ..runtime.session import Session
from .beam import search
from .drafts import check_draft
from .options import ChatOptions, Options, Request
from .result import Generation
from .stepper import Stepper
from .stream import GenerationStream

__all__ = [
    "agenerate",
    "beam_search",
    "chat",
    "chat_stepper",
    "chat_stream",
    "generate",
    "stream",
]


def generate(model: Runner, prompt: Any, request: Request) -> Any:
    """Return the generation of a prompt, or those of several; see `Model.generate`."""
    return _by_prompt(_finished(_several(model, prompt, request)), prompt, request)


def _several(model: Runner, prompt: Any, request: Request) -> Stepper:
    """Return a `Stepper` for a prompt, or for those of a batch."""
    return _stepper(model, list(prompt) if is_batch(prompt) else [prompt], request)


def _by_prompt(results: list[Generation], prompt: Any, request: Request) -> Any:
    """Return the results in the form that `Model.generate` returns."""
    n = request.n
    found: Any = results
    if n is not None:
        found = [results[i : i + n] for i in range(0, len(results), n)]
    return found if is_batch(prompt) else found[0]


async def agenerate(model: Runner, prompt: Any, request: Request) -> Any:
    """Return what `generate` returns; the model runs in a thread. See `Model.agenerate`."""
    stepper = _several(model, prompt, request)
    running = asyncio.ensure_future(asyncio.to_thread(_finished, stepper))
    try:
        results = await asyncio.shield(running)
    except asyncio.CancelledError:
        stepper.cancel()
        await asyncio.wait([running])
        raise
    return _by_prompt(results, prompt, request)


def stream(model: Runner, prompt: Prompt, request: Request) -> GenerationStream:
    """Return the pieces of a generated text as they are drawn; see `Model.stream`."""
    if model.tokenizer is None:
        raise ValueError("stream() returns text, but the model's file has no tokenizer")
    model.tokenizer.stream_decoder()  # raises if it has no text
    return GenerationStream(_stepper(model, [prompt], request))


def chat(model: Runner, messages: Any, chat_options: ChatOptions, request: Request) -> Any:
    """Return the answer to a conversation, or those to several; see `Model.chat`."""
    several = isinstance(messages, list | tuple) and any(
        isinstance(item, str | list | tuple) for item in messages
    )
    stepper = chat_stepper(model, messages if several else [messages], chat_options, request)
    results = _finished(stepper)
    return results if several else results[0]


def chat_stream(
    model: Runner, messages: Any, chat_options: ChatOptions, request: Request
) -> GenerationStream:
    """Return the pieces of an answer as they are drawn; see `Model.chat_stream`."""
    return GenerationStream(chat_stepper(model, [messages], chat_options, request))


def beam_search(
    model: Runner,
    prompt: Prompt,
    beams: int,
    options: Options,
    length_penalty: float,
    parse_special: bool = False,
) -> list[Generation]:
    """Return continuations of high probability; see `Model.beam_search`."""
    beams = ranged("beams", beams, 1)
    if not 0 <= length_penalty <= 10:
        raise ValueError(f"length_penalty is {length_penalty!r}; expected 0 to 10")
    model, prompts = _with_source(model, [prompt], parse_special)
    model.need_logits()
    ids = token_ids(prompts[0], model.tokenizer, parse_special=parse_special)
    return search(model, ids, beams, options, float(length_penalty))


def chat_stepper(
    model: Runner, conversations: Sequence[Any], chat_options: ChatOptions, request: Request
) -> Stepper:
    """Return a `Stepper` that draws the answers to some conversations."""
    tokenizer, session = model.tokenizer, chat_options.session
    if tokenizer is None:
        raise ValueError(
            "a conversation is text, but the model's file has no tokenizer; load with tokenizer="
        )
    if session is not None:
        if not isinstance(session, Session):
            raise TypeError(f"session is {type(session).__name__}; expected a tl.Session")
        if session.model is not model:
            raise ValueError("session belongs to another model; expected a session of this one")
        if len(conversations) != 1:
            raise ValueError(
                f"session is given with {len(conversations)} conversations; expected one"
            )
    more = stop_strings(tokenizer.chat_templates, chat_options.template)
    if more:
        options = dataclasses.replace(request.options, stop=(*request.options.stop, *more))
        request = dataclasses.replace(request, options=options)
    variables = {
        "documents": chat_options.documents,
        "continue_final_message": chat_options.continue_final_message,
        "merge_system": chat_options.merge_system,
        **(chat_options.variables or {}),
    }
    prompts = [
        tokenizer.encode_chat(
            [{"role": "user", "content": messages}] if isinstance(messages, str) else messages,
            chat_options.tools,
            chat_options.add_generation_prompt,
            chat_options.template,
            chat_options.parse_content,
            **variables,
        )
        for messages in conversations
    ]
    return _stepper(model, prompts, request, None if session is None else [session])


def _stepper(
    model: Runner,
    prompts: Sequence[Any],
    request: Request,
    sessions: Sequence[Session | None] | None = None,
) -> Stepper:
    check_draft(model, request.draft)
    n = 1 if request.n is None else request.n
    samplers = request.chain.samplers(len(prompts), n)
    for sampler in samplers:
        sampler.check_ids(model.config.vocab_size)
    model, prompts = _with_source(model, prompts, request.parse_special)
    names = [f"prompt {i}" if len(prompts) > 1 else "the prompt" for i in range(len(prompts))]
    ids = [
        token_ids(prompt, model.tokenizer, name, request.parse_special)
        for prompt, name in zip(prompts, names, strict=True)
    ]
    ids = [each for each in ids for _ in range(n)]
    layout = None if request.capture is None else model.layout(request.capture)
    program = model.program(request.edits)
    return Stepper(model, ids, samplers, request.options, layout, program, sessions, request.draft)


def _with_source(
    model: Runner, prompts: Sequence[Any], parse_special: bool
) -> tuple[Runner, Sequence[Any]]:
    """Return a model and its prompts; of an encoder the decoder, for which the prompt is a source.

    A text of the decoder begins with its start token.
    """
    if not has_decoder(model):
        return model, prompts
    if len(prompts) != 1:
        raise ValueError(
            f"there are {len(prompts)} prompts; a model of the architecture "
            f"{model.config.architecture} takes one at a time, because each has a decoder of its "
            "own: call generate for each"
        )
    return decoder(model, prompts[0], (), parse_special), [[start_token(model)]]


def _finished(stepper: Stepper) -> list[Generation]:
    for _ in stepper:
        pass
    return stepper.results()
