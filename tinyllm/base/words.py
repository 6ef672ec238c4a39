"""Words of other libraries, and ours: one table for names of arguments and attributes.

Sources: transformers 5 (``generate``, ``AutoModelForCausalLM.from_pretrained``, configs),
llama-cpp-python 0.3 (``Llama``), TransformerLens 2 (``HookedTransformer``), the API of OpenAI.
Names of inner values and weights are in `tinyllm.trace.dialects`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

__all__ = [
    "ATTRIBUTES",
    "KEYWORDS",
    "bound",
    "check_keywords",
    "dir_without",
    "getattr_of",
    "no_attribute",
]

_DRAWING = {
    "max_new_tokens": "max_tokens=",
    "max_length": "max_tokens=, which counts new tokens only",
    "max_completion_tokens": "max_tokens=",
    "n_predict": "max_tokens=",
    "num_predict": "max_tokens=",
    "min_new_tokens": "min_tokens=",
    "min_length": "min_tokens=, which counts new tokens only",
    "do_sample": "temperature=0 for the most likely token, else a draw",
    "temp": "temperature=",
    "typical_p": "typical=",
    "repetition_penalty": "repeat_penalty=",
    "no_repeat_ngram_size": "dry=",
    "mirostat_mode": "mirostat= or mirostat_v2=, whose value is tau",
    "mirostat_tau": 'mirostat={"tau": 5.0, "eta": 0.1}',
    "mirostat_eta": 'mirostat={"tau": 5.0, "eta": 0.1}',
    "dynatemp_range": 'dynamic_temperature={"value": 0.8, "range": 0.5}',
    "xtc_probability": 'xtc={"probability": 0.5, "threshold": 0.1}',
    "xtc_threshold": 'xtc={"probability": 0.5, "threshold": 0.1}',
    "dry_multiplier": 'dry={"multiplier": 0.8}',
    "num_beams": "Model.beam_search(prompt, beams=)",
    "num_return_sequences": "Model.generate(prompt, n=)",
    "prompt_lookup_num_tokens": 'draft="lookup"',
    "assistant_model": "draft=",
    "draft_model": "draft=",
    "stop_strings": "stop=",
    "stopping_criteria": "stop=, stop_ids=, timeout= or the iterator of Model.stream",
    "stop_at_eos": "min_tokens=, which forbids the end until then",
    "eos_token_id": "stop_ids=",
    "stop_token_ids": "stop_ids=",
    "bad_words_ids": "banned=",
    "suppress_tokens": "banned=",
    "logits_processor": "a function with the decorator tinyllm.sampling.sampler.sampler",
    "streamer": "Model.stream",
    "stream": "Model.stream or Model.chat_stream",
    "echo": "prompt + text",
    "response_format": "grammar=tl.Grammar.json_schema(schema)",
    "schema": "grammar=tl.Grammar.json_schema(schema)",
    "json_schema": "grammar=tl.Grammar.json_schema(schema)",
    "regex": "grammar=tl.Grammar.regex(pattern)",
    "top_logprobs": "logprobs=",
    "output_scores": "logprobs=",
    "output_hidden_states": 'capture="*.resid_post"',
    "output_attentions": 'capture="*.attn_probs"',
    "fwd_hooks": "edits=",
    "system": 'Model.chat with messages=[{"role": "system", "content": ...}, ...]',
    "chat_template": "Model.chat with template=",
    "verbose": "nothing: tinyllm prints nothing",
}

_TALKING = {
    **_DRAWING,
    "n": "a list of conversations, such as [messages] * 3",
    "system": 'messages, with {"role": "system", "content": ...} first',
    "chat_template": "template=",
}

_LOADING = {
    "n_ctx": "max_context=",
    "max_seq_len": "max_context=",
    "max_position_embeddings": "max_context=",
    "num_ctx": "max_context=",
    "n_threads": "threads=",
    "n_threads_batch": "threads=",
    "num_threads": "threads=",
    "use_mmap": "mmap=",
    "model_path": "path, the first argument",
    "model_name": "path, the first argument",
    "pretrained_model_name_or_path": "path, the first argument",
    "repo_id": 'path, such as "hf:owner/repo:Q4_K_M"',
    "filename": 'path, such as "hf:owner/repo/file.gguf"',
    **dict.fromkeys(("type_k", "type_v", "cache_type_k", "cache_type_v"), "cache="),
    "n_gpu_layers": "device_layers=, with device=",
    "device_map": "device=",
    "dtype": "mode=; weights stay as they are in the file",
    "torch_dtype": "mode=; weights stay as they are in the file",
    "load_in_8bit": "nothing: quantized files run as they are",
    "load_in_4bit": "nothing: quantized files run as they are",
    "n_batch": "nothing: a prompt of any length is split inside",
    "n_ubatch": "nothing: a prompt of any length is split inside",
    "seed": "an argument of generate, seed=",
    "chat_format": "an argument of Model.chat, template=",
    "logits_all": "nothing: Model.logits returns all rows",
    "embedding": "nothing: Model.embed works on every model",
    "verbose": "nothing: tinyllm prints nothing",
    "lora_path": "adapters=",
    "lora_scale": "adapters=[(path, scale)]",
    "hf_model": "path; tl.convert makes a GGUF file of a checkpoint",
}

#: What each function says to the words of others: name of the function -> word -> ours.
KEYWORDS: dict[str, dict[str, str]] = {
    "load": _LOADING,
    "generate": _DRAWING,
    "stream": {**_DRAWING, "n": "Model.generate(prompt, n=)"},
    **dict.fromkeys(("chat", "chat_stream"), _TALKING),
}

_MODEL = {
    "tokenize": "model.tokenizer.encode(text)",
    "detokenize": "model.tokenizer.decode(ids)",
    "encode": "model.tokenizer.encode(text)",
    "decode": "model.tokenizer.decode(ids)",
    "to_tokens": "model.tokenizer.encode(text)",
    "to_string": "model.tokenizer.decode(ids)",
    "to_str_tokens": "model.trace(text).pieces",
    "to_single_token": "model.tokenizer.id(text)",
    "create_completion": "model.generate(prompt)",
    "create_chat_completion": "model.chat(messages)",
    "create_embedding": "model.embed(text)",
    "apply_chat_template": "model.tokenizer.apply_chat_template(messages)",
    "forward": "model.logits(prompt)",
    "run_with_cache": "model.trace(prompt, capture)",
    "run_with_hooks": "model.trace(prompt, edits=...)",
    "add_hook": "edits= of trace, generate and session.eval",
    "reset_hooks": "nothing: edits belong to one call",
    "cfg": "model.config",
    "state_dict": "model.weights",
    "parameters": "model.weights",
    "named_parameters": "model.weights.items()",
    "n_ctx": "model.config.context_length; max_context= of tl.load is another limit",
    "n_vocab": "model.config.vocab_size",
    "n_embd": "model.config.width",
    "n_layers": "model.config.layers",
    "layers": "model.config.layers",
    "eval": "model.session().eval(prompt); a model has no training mode",
    "to": "device= of tl.load",
    "cuda": 'device="gpu" of tl.load',
    "W_E": 'model.weights["token_embd.weight"]',
    "W_U": 'model.weights["output.weight"]',
    "steer": "model.generate(prompt, edits=tl.add(...))",
}

_CONFIG = {
    "n_layers": "layers",
    "n_layer": "layers",
    "num_layers": "layers",
    "num_hidden_layers": "layers",
    "block_count": "layers",
    "d_model": "width",
    "n_embd": "width",
    "hidden_size": "width",
    "dim": "width",
    "embedding_length": "width",
    "n_heads": "heads",
    "n_head": "heads",
    "num_attention_heads": "heads",
    "head_count": "heads",
    "n_kv_heads": "kv_heads",
    "n_head_kv": "kv_heads",
    "n_key_value_heads": "kv_heads",
    "num_key_value_heads": "kv_heads",
    "head_count_kv": "kv_heads",
    "d_head": "head_size",
    "head_dim": "head_size",
    "d_mlp": "ffn_width",
    "n_ff": "ffn_width",
    "intermediate_size": "ffn_width",
    "hidden_dim": "ffn_width",
    "feed_forward_length": "ffn_width",
    "d_vocab": "vocab_size",
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "max_position_embeddings": "context_length",
    "max_seq_len": "context_length",
    "eps": "norm_epsilon",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "rope_theta": "rope_base",
    "rotary_base": "rope_base",
    "rope_freq_base": "rope_base",
    "rotary_dim": "rope_dimension",
    "tie_word_embeddings": "tied",
    "model_type": "architecture",
}

_TOKENIZER = {
    "tokenize": "encode(text), or pieces(ids) for texts",
    "convert_tokens_to_ids": "id(piece)",
    "convert_ids_to_tokens": "pieces(ids)",
    "batch_encode_plus": "encode_batch(texts)",
    "encode_plus": "encode(text)",
    "batch_decode": "[tokenizer.decode(ids) for ids in batch]",
    "token_to_id": "id(piece)",
    "id_to_token": "pieces([id])",
    "get_vocab": "vocab",
    "vocab_size": "len(tokenizer)",
    "n_vocab": "len(tokenizer)",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "bos_token": "vocab[tokenizer.bos]",
    "eos_token": "vocab[tokenizer.eos]",
    "bos_id": "bos",
    "eos_id": "eos",
    "token_bos": "bos",
    "token_eos": "eos",
    "chat_template": "chat_templates",
    "from_pretrained": "tl.load_tokenizer(path)",
    "piece_to_id": "id(piece)",
    "id_to_piece": "pieces([id])",
}

_TRACE = {
    "cache_dict": "dict(trace)",
    "accumulated_resid": 'stack("*.resid_post")',
    "decompose_resid": "tl.attribution(trace, token)",
    "logit_attrs": "tl.attribution(trace, token)",
    "stack_head_results": "head_outputs(layer)",
    "hidden_states": "Model.hidden_states(prompt)",
    "attentions": 'stack("*.attn_probs")',
    "str_tokens": "pieces",
}

_PACKAGE = {
    **dict.fromkeys(
        ("Llama", "AutoModel", "AutoModelForCausalLM", "HookedTransformer", "TransformerBridge",
         "from_pretrained", "pipeline", "open"),
        "tl.load(path)",
    ),
    "AutoTokenizer": "tl.load_tokenizer(path)",
    "LlamaGrammar": "tl.Grammar",
    "SamplingParams": "tl.Sampler",
    "LogitsProcessor": "tl.Sampler",
    "ActivationCache": "tl.Trace",
    "GGUFReader": "tl.GGUF",
    "GGUFWriter": "tl.write_gguf",
    "generate": "tl.load(path).generate(prompt)",
    "logit_lens": "tl.lens(trace)",
    "steer": "tl.add(tap, vector) as an edit",
    "ablate": "tl.zero(tap) as an edit",
    "Hook": "tl.apply(tap, function) as an edit",
}  # fmt: skip

#: What each class, and the package, says to the words of others: class -> word -> ours.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "tinyllm": _PACKAGE,
    "Model": _MODEL,
    "Config": _CONFIG,
    "Tokenizer": _TOKENIZER,
    "Trace": _TRACE,
}


def check_keywords(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise if a keyword is not known; the message says what it is called here.

    Parameters
    ----------
    function : str
        A name of `KEYWORDS`.
    given : collection of str
    known : collection of str
        Keywords that are right.

    Raises
    ------
    TypeError

    Examples
    --------
    >>> check_keywords("generate", {"max_new_tokens": 5}, ["top_k"])
    Traceback (most recent call last):
    TypeError: generate() has no argument max_new_tokens; here it is max_tokens=
    """
    for name in given:
        if name not in known:
            ours = KEYWORDS[function].get(name)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; here it is {ours}" if ours else f"; did you mean {near[0]}=?" if near else ""
            if ours and ours.startswith("nothing: "):
                hint = f"; {ours.removeprefix('nothing: ')}"
            raise TypeError(f"{function}() has no argument {name}{hint}")


def no_attribute(owner: str, name: str, known: Collection[str] = ()) -> AttributeError:
    """Return the error about an attribute that does not exist, which says what it is called here.

    Parameters
    ----------
    owner : str
        A name of `ATTRIBUTES`.
    name : str
    known : collection of str
        Names that exist, for a guess about a misspelled one.

    Returns
    -------
    AttributeError

    Examples
    --------
    >>> print(no_attribute("Config", "n_layers"))
    tinyllm.Config has no attribute n_layers; here it is layers
    """
    what = owner if owner == "tinyllm" else f"tinyllm.{owner}"
    ours = ATTRIBUTES[owner].get(name)
    near = [] if ours else difflib.get_close_matches(name, known, 1, 0.75)
    hint = f"; here it is {ours}" if ours else f"; did you mean {near[0]}?" if near else ""
    if ours and ours.startswith("nothing: "):
        hint = f"; {ours.removeprefix('nothing: ')}"
    return AttributeError(f"{what} has no attribute {name}{hint}")


def getattr_of(owner: str) -> Callable[[Any, str], NoReturn]:
    """Return the method ``__getattr__`` of a class: it raises the error of `no_attribute`.

    A class defines it under ``if not TYPE_CHECKING``, because a type checker would take it as a
    sign that all attributes exist.

    Parameters
    ----------
    owner : str
        A name of `ATTRIBUTES`.

    Examples
    --------
    >>> class Config:
    ...     __getattr__ = getattr_of("Config")
    >>> hasattr(Config(), "n_layers")
    False
    """

    def __getattr__(self: Any, name: str) -> NoReturn:
        if hasattr(type(self), name):
            object.__getattribute__(self, name)  # a property, whose own error is raised again
        raise no_attribute(owner, name, () if name.startswith("_") else dir(self))

    return __getattr__


def dir_without(*names: str) -> Callable[[Any], list[str]]:
    """Return the method ``__dir__`` of a class, which leaves out names that only tinyllm uses.

    Examples
    --------
    >>> class Box:
    ...     __dir__ = dir_without("lid")
    ...     lid = size = 3
    >>> "lid" in dir(Box()), "size" in dir(Box())
    (False, True)
    """

    def __dir__(self: Any) -> list[str]:
        return sorted(set(object.__dir__(self)) - set(names))

    vars(__dir__)["hidden"] = names  # for the pages of the reference
    return __dir__


def bound(function: Callable[..., Any], *arguments: Any, **options: Any) -> Mapping[str, Any]:
    """Return the arguments that a call of a function would have, by name, with its defaults.

    Examples
    --------
    >>> bound(lambda a, b=2, **more: 0, 1, c=3)
    {'a': 1, 'b': 2, 'more': {'c': 3}}
    """
    call = inspect.signature(function).bind(*arguments, **options)
    call.apply_defaults()
    return call.arguments
