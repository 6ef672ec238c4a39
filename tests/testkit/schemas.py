"""Random JSON schemas, and a random model whose texts end soon."""

import numpy as np

from testkit import models

#: Tokens besides the 256 bytes. The ends of JSON values occur often, so that texts end soon.
PIECES = ['"'] * 12 + ["}"] * 5 + ["]"] * 5 + ['",', '"}', '"]', '":', '{"', '["', ': "', ', "']
PIECES += ["true", "false", "null", "12", "3.", "0.5", "é", "ab", "a\\", "\\n", "\n", "  ", "-1"]


def tokenizer_metadata():
    """Return GGUF keys of an SPM vocabulary of bytes and `PIECES`."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    texts += [piece.replace(" ", "▁") for piece in PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.zeros(len(texts), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(PIECES), np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
    }


def model(tmp_path, seed=0, **changes):
    """Load a tiny random model with that vocabulary."""
    metadata = tokenizer_metadata()
    shape = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn": 32, "context": 4096}
    return models.random_model(
        tmp_path,
        vocab=len(metadata["tokenizer.ggml.tokens"]),
        metadata=metadata,
        seed=seed,
        **{**shape, **changes},
    )


def random_schema(rng, depth=3, names=()):
    """Return a random schema with at least one valid value. `names` are definitions to use."""
    kinds = ["string", "integer", "number", "boolean", "null", "constant", "pattern", "format"]
    if depth:
        kinds += ["object", "array", "tuple", "anyOf", "oneOf", "allOf", "types"] * 2
        kinds += ["ref"] * 2 * bool(names)
    kind = rng.choice(kinds)

    def inner():
        return random_schema(rng, depth - 1, names)

    if kind == "string":
        low = rng.choice([0, 0, 1, 3])
        return {
            "type": "string",
            **({"minLength": low} if low else {}),
            **({"maxLength": low + rng.randrange(6)} if rng.random() < 0.7 else {}),
        }
    if kind in ("integer", "number"):
        schema = {"type": kind}
        scale = rng.choice([1, 10, 1000, 10**6])
        low = rng.randint(-scale, scale)
        high = low + rng.randrange(2, 2 * scale + 2)
        if kind == "number":
            low, high = low / rng.choice([1, 8, 10, 100]), high + rng.choice([0, 0.5, 0.125, 0.99])
        if rng.random() < 0.5:
            schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
        if rng.random() < 0.5:
            schema[rng.choice(["maximum", "exclusiveMaximum"])] = high
        return schema
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "constant":
        values = ["a", 'q"\\\n', "é😀", 1, -2.5, True, None, [1, "x"], {"k": [], "l": {}}, ""]
        if rng.random() < 0.3:
            return {"const": rng.choice(values)}
        return {"enum": rng.sample(values, rng.randint(1, 4))}
    if kind == "pattern":
        patterns = ["^[a-z]{1,3}$", r"^\d+-\d+$", "^(ab|c)*$", r'^["\\\n]{0,3}$', "^é?.x"]
        return {"type": "string", "pattern": rng.choice(patterns)}
    if kind == "format":
        return {
            "type": "string",
            "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4"]),
        }
    if kind == "object":
        keys = rng.sample(["a", "b", "ab", "long name", 'q"', "é", ""], rng.randrange(5))
        schema = {"type": "object", "properties": {key: inner() for key in keys}}
        if rng.random() < 0.7:
            schema["required"] = [key for key in keys if rng.random() < 0.5]
        if rng.random() < 0.5:
            schema["additionalProperties"] = rng.choice([True, False, {"type": "integer"}, inner()])
        return schema
    if kind == "array":
        schema = {"type": "array", "items": inner()}
        low = rng.randrange(3)
        if low:
            schema["minItems"] = low
        if rng.random() < 0.5:
            schema["maxItems"] = low + rng.randrange(3)
        return schema
    if kind == "tuple":
        schema = {"type": "array", "prefixItems": [inner() for _ in range(rng.randrange(1, 4))]}
        if rng.random() < 0.5:
            schema["items"] = rng.choice([False, inner()])
        if rng.random() < 0.5:
            schema["minItems"] = rng.randint(0, len(schema["prefixItems"]))
        return schema
    if kind == "anyOf":
        return {"anyOf": [inner() for _ in range(rng.randint(1, 3))]}
    if kind == "oneOf":
        tagged = [
            {
                "type": "object",
                "properties": {"kind": {"const": f"k{i}"}, "v": inner()},
                "required": ["kind"],
            }
            for i in range(2)
        ]
        return {"oneOf": rng.sample([{"type": "string"}, {"type": "integer"}, *tagged], 3)}
    if kind == "allOf":
        return {
            "allOf": [
                {"type": "object", "properties": {"a": inner()}, "required": ["a"]},
                {"properties": {"b": inner()}, "required": ["b"]},
            ]
        }
    if kind == "types":
        return {"type": rng.sample(["string", "integer", "null", "boolean", "array"], 2)}
    return {"$ref": f"#/$defs/{rng.choice(names)}"}


def random_document(rng):
    """Return a random schema, half of them with definitions that refer to themselves."""
    if rng.random() < 0.5:
        return random_schema(rng)
    names = ["tree", "other"]
    schema = {"anyOf": [random_schema(rng, 2, names), {"$ref": "#/$defs/tree"}]}
    schema["$defs"] = {
        "tree": {
            "type": "object",
            "properties": {
                "value": random_schema(rng, 1),
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
            },
            "required": ["value"],
        },
        "other": random_schema(rng, 2),
    }
    return schema
