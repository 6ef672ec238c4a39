"""T5: an encoder, and decoders that attend to what it made of a source."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, data, hf, models
from tinyllm import reference
from tinyllm.architectures.decoders import made, source

pytestmark = pytest.mark.sanitize
SMALL = {"width": 64, "ffn": 64, "vocab": 50}


@pytest.fixture(scope="module")
def golden():
    """What Hugging Face computed in float64 with its checkpoint."""
    return np.load(data.path("hf", "t5.npz"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "t5.gguf"
    return tl.load(models.write(path, *hf.load_checkpoint(data.path("hf", "t5"))))


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "t5.gguf"
    tl.write_gguf(path, *architectures.random_architecture("t5", **SMALL))
    return tl.load(path)


def test_both_halves_are_those_of_hugging_face(model, golden):
    """The keys and values of the source go from encoder to decoder, in float64 for the oracle."""
    encoder, ids = model.trace(golden["ids"]), golden["decoder_ids"]
    decoder = model.decoder(golden["ids"])
    exact = reference.forward(model.steps, model.weights, golden["ids"])
    weights = dict(decoder.weights)
    for layer in range(2):
        for name, tap, axes in zip(source(layer), made(layer), ((1, 0, 2), (1, 2, 0)), strict=True):
            weights[name] = exact[tap].transpose(axes)
    found = reference.forward(decoder.steps, weights, ids)
    trace = decoder.trace(ids, "*")
    assert list(trace) == list(found)
    assert models.normwise_error(exact["output_norm"], golden["encoder_last"]) < 1e-6
    assert models.normwise_error(found["output"], golden["logits"]) < 1e-6
    assert models.normwise_error(encoder["output_norm"], golden["encoder_last"]) < 1e-5
    assert models.normwise_error(decoder.logits(ids), golden["logits"]) < 1e-5
    for half, hidden in ((encoder, "hidden"), (trace, "decoder_hidden")):
        states = [*half.stack("blk.*.resid_pre"), half["output_norm"]]
        assert models.normwise_error(np.array(states), golden[hidden]) < 1e-5
    for tap, value in found.items():
        assert models.normwise_error(trace[tap], value) < 3e-6, tap


def test_generating_is_decoding_from_the_start_token(model, golden):
    ids = [0]
    decoder = model.decoder(golden["ids"])
    for _ in range(6):
        ids.append(int(decoder.logits(ids)[-1].argmax()))
    for text in (
        model.generate(golden["ids"], 6, temperature=0),
        decoder.generate([0], 6, temperature=0),
        model.beam_search(golden["ids"], beams=1, max_tokens=6)[0],
    ):
        assert list(text.ids) == ids[1 : 1 + len(text.ids)]
    assert len(text.ids) > 2
    with pytest.raises(ValueError, match=r"2 prompts.*one at a time"):
        model.generate([golden["ids"], golden["ids"]], 2)


def test_the_model_alone_is_the_encoder(model, golden):
    with pytest.raises(ValueError, match=r"the model alone is the encoder.*model\.decoder\(source"):
        model.logits(golden["ids"])
    with pytest.raises(ValueError, match="alone is the encoder"):
        model.session()
    assert model.embed(golden["ids"]).shape == (24,)
    decoder = model.decoder(golden["ids"])
    with pytest.raises(ValueError, match="t5 has no decoder that reads a source"):
        decoder.decoder(golden["ids"])
    with pytest.raises(ValueError, match="vocabulary has 56 entries"):
        model.decoder([1, 99])
    assert decoder.fingerprint != model.decoder(golden["ids"][:-1]).fingerprint


def test_edits_and_captures_of_both_halves(model, golden):
    ids, target = golden["ids"], golden["decoder_ids"]
    same = model.decoder(ids, edits=[tl.apply("*", lambda x: x)])
    want = model.decoder(ids).logits(target)
    assert np.array_equal(same.logits(target), want)
    blind = model.decoder(ids, edits=[tl.set(f"dec.blk.{i}.cross_attn_v", 0) for i in range(2)])
    assert np.abs(blind.logits(target) - want).max() > 0.1
    mix = blind.trace(target)["blk.0.cross_attn_mix"]
    assert mix.shape == (12, 4, 6)
    assert not mix.any()
    cut = [tl.set(f"blk.{i}.cross_attn_output", 0) for i in range(2)]
    assert np.array_equal(model.decoder(ids).logits(target, edits=cut), blind.logits(target))
    probs = model.decoder(ids).trace(target)["blk.1.cross_attn_probs"]
    assert probs.shape == (12, 4, 24)
    assert np.allclose(probs.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_bits_of_the_decoder(random, mode):
    """A source of 300 tokens, and a text that is run at once or in parts, by 1 or 3 threads."""
    ids = np.random.default_rng(1).integers(0, 50, 300)
    one = tl.load(random.path, threads=1, mode=mode).decoder(ids)
    three = tl.load(random.path, threads=3, mode=mode).decoder(ids)
    want = one.logits(ids[:40])
    assert np.array_equal(three.logits(ids[:40]), want)
    session = three.session()
    parts = [session.eval(ids[i : i + 7], "all") for i in range(0, 40, 7)][:-1]
    assert np.array_equal(np.concatenate(parts), want[:35])
    assert np.array_equal(one.trace(ids[:40], "*")["output"], want)


def test_a_session_comes_back_only_for_its_source(random, tmp_path):
    first, second = random.decoder([1, 2, 3]), random.decoder([1, 2, 4])
    session = first.session()
    session.eval([0, 5])
    session.save(tmp_path / "s.npz")
    again = first.session(tmp_path / "s.npz")
    assert np.array_equal(again.eval([6]), session.eval([6]))
    with pytest.raises(tl.FormatError, match="belongs to another model"):
        second.session(tmp_path / "s.npz")


@pytest.mark.parametrize("tap", ["blk.0.cross_attn_q", "blk.0.resid_pre", "blk.1.cross_attn_mix"])
def test_gradients_of_the_decoder(random, tap):
    """The derivative along a random direction, by differences in float64."""
    decoder, ids = random.decoder([1, 2, 3]), [0, 4, 9, 7]
    grad = decoder.gradients(ids, tl.logit(7), tap)[tap]
    direction = np.random.default_rng(2).standard_normal(grad.shape)
    weights = {name: weight.numpy(dtype=np.float64) for name, weight in decoder.weights.items()}

    def logit(step):
        taps = {"tokens": np.array(ids), "positions": np.arange(4)}
        for each in reference.steps(decoder.steps):
            taps[each.tap] = each.run(weights, taps)
            if each.tap == tap:
                taps[tap] = taps[tap] + step * direction
        return taps["output"][-1, 7]

    want = (logit(1e-5) - logit(-1e-5)) / 2e-5
    assert abs((grad * direction).sum() - want) < 1e-5 * max(1, abs(want))


def test_texts(tmp_path):
    """The encoder's text ends with the end token, and the decoder's begins with the start token."""
    vocabulary = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [
            "<pad>",
            "</s>",
            "<unk>",
            "▁",
            *"abcdefghij",
            *map(str, range(36)),
        ],
        "tokenizer.ggml.scores": np.array([0, 0, 0, -2, *[-3.0] * 46], np.float32),
        "tokenizer.ggml.token_type": np.array([3, 3, 2, *[1] * 47], np.int32),
    }
    file = architectures.random_architecture("t5", metadata=vocabulary, **SMALL)
    encoder = tl.load(models.write(tmp_path / "m.gguf", *file))
    trace = encoder.trace("ab")
    assert trace.pieces[-1] == "</s>"
    decoder = encoder.decoder("ab")
    assert decoder.trace("cd").pieces == ["<pad>", "c", "d"]
    assert encoder.generate("ab", 5, seed=1).text == decoder.generate("", 5, seed=1).text
    assert "".join(encoder.stream("ab", 5, seed=1)) == decoder.generate("", 5, seed=1).text


def test_tensors_of_both_halves_are_checked(tmp_path):
    metadata, tensors = architectures.random_architecture("t5", **SMALL)
    more = dict(tensors)
    more["dec.blk.0.ffn_norm.bias"] = np.zeros(64, np.float32)
    with pytest.raises(
        tl.UnsupportedError, match=r"does not use the tensors dec\.blk\.0\.ffn_norm"
    ):
        tl.load(models.write(tmp_path / "more.gguf", metadata, more))
    more = dict(tensors)
    more["dec.blk.1.cross_attn_rel_b.weight"] = np.zeros((32, 4), np.float32)  # of old files
    assert tl.load(models.write(tmp_path / "old.gguf", metadata, more)).decoder([1])
    less = {
        name: array for name, array in tensors.items() if name != "dec.blk.1.cross_attn_q.weight"
    }
    with pytest.raises(tl.FormatError, match=r"dec\.blk\.1\.cross_attn_q\.weight"):
        tl.load(models.write(tmp_path / "less.gguf", metadata, less)).decoder([1])


def test_an_adapter_of_the_decoder(random, tmp_path):
    keys = {"general.type": "adapter", "general.architecture": "t5"}
    keys |= {"adapter.type": "lora", "adapter.lora.alpha": 2.0}

    def adapter(name):
        shape = random.weights[name].shape
        a, b = np.ones((2, shape[1]), np.float32), np.full((shape[0], 2), 0.1, np.float32)
        path = tmp_path / f"{name}.gguf"
        tl.write_gguf(path, keys, {f"{name}.lora_a": a, f"{name}.lora_b": b})
        return path

    decoder = random.decoder([1, 2, 3])
    changed = decoder.with_adapter(adapter("dec.blk.1.cross_attn_q.weight"))
    assert np.abs(changed.logits([0, 1]) - decoder.logits([0, 1])).max() > 1e-3
    with pytest.raises(tl.UnsupportedError, match="make the decoder of a model without them"):
        random.with_adapter(adapter("enc.blk.0.attn_q.weight")).decoder([1])
