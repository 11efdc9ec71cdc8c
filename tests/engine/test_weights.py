"""A weight update happens whole or not at all."""

from __future__ import annotations

import threading

import pytest
import torch

from lockstep.engine import weights as module
from lockstep.engine.weights import Weights
from lockstep.errors import InputError, NumericsError
from lockstep.kernels.linear import Packed, pack
from lockstep.models.checkpoint import digest
from lockstep.weight_update import WeightVersion


@pytest.fixture
def held(llama):
    weights = Weights(llama.model.arch, torch.float32, "float32", "cpu")
    weights.replace(llama.params, llama.version)
    return weights


def moved(params, by=0.01):
    return {name: tensor + by for name, tensor in params.items()}


def named(params, number=1):
    return WeightVersion(number, digest(params))


def derived(prepared):
    """The digest of everything that was made from the parameters."""
    packed = {name: x.content for name, x in prepared.operands.items() if isinstance(x, Packed)}
    return digest({**packed, "logits": prepared.head.content})


def snapshot(weights):
    serving = weights.serving
    return serving, serving.version, digest(serving.params), derived(serving.prepared)


def test_a_good_update_moves_everything_at_once(held, llama):
    before = held.serving
    new = moved(llama.params)
    held.replace(new, named(new))
    assert held.serving.version == named(new)
    assert digest(held.serving.params) == digest(new)
    assert torch.equal(held.serving.prepared.head.content, new["embedding"])
    assert digest(before.params) == llama.version.digest, "the old generation is left as it was"


def test_the_copy_is_our_own(held, llama):
    source = {name: tensor.clone() for name, tensor in llama.params.items()}
    held.replace(source, named(source))
    for tensor in source.values():
        tensor.zero_()
    assert digest(held.serving.params) == llama.version.digest
    assert float(held.serving.prepared.head.content.abs().sum()) > 0


def test_parameters_that_require_grad_are_taken_without_it(held, llama):
    held.replace({name: t.clone().requires_grad_() for name, t in llama.params.items()}, named(llama.params))
    assert not any(tensor.requires_grad for tensor in held.serving.params.values())


def test_an_fp32_head_over_bf16_weights_follows_them(network):
    net = network("qwen2", "bfloat16")  # untied
    weights = Weights(net.model.arch, torch.bfloat16, "float32", "cpu")
    for number, params in enumerate((net.params, moved(net.params, 0.5))):
        weights.replace(params, named(params, number))
        head = weights.serving.prepared.head
        assert head.wide
        assert torch.equal(head.content, pack(params["head"], wide=True).content)
    narrow = Weights(net.model.arch, torch.bfloat16, "model", "cpu")
    narrow.replace(net.params, net.version)
    assert not narrow.serving.prepared.head.wide


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_parameters_and_of_what_is_made_from_them(network, dtype, kernels, monkeypatch):
    """Where nothing is laid out anew there is nothing more to hold."""
    monkeypatch.setenv("LOCKSTEP_KERNELS", kernels)
    net = network("qwen2", dtype)
    weights = Weights(net.model.arch, getattr(torch, dtype), "float32", "cpu")
    weights.replace(net.params, net.version)
    serving = weights.serving
    plain = sum(tensor.nbytes for tensor in serving.params.values())
    packed = [x for x in (*serving.prepared.operands.values(), serving.prepared.head) if isinstance(x, Packed)]
    assert len(packed) == 4 * net.model.arch.num_layers + 1
    copies = sum(x.content.nbytes for x in packed if x.content.data_ptr() != x.weight_OI.data_ptr())
    assert serving.num_bytes == plain + copies
    if dtype == "float32":
        assert copies == 0
    elif kernels == "reference":
        assert copies == 2 * net.params["head"].nbytes


def test_packed_copies_are_of_the_generation_that_they_serve(network):
    """WGT10: an update has its own, whoever still uses the one before."""
    net = network("llama", "bfloat16")
    weights = Weights(net.model.arch, torch.bfloat16, "float32", "cpu")
    weights.replace(net.params, net.version)
    before, old = weights.serving, derived(weights.serving.prepared)
    new = moved(net.params, 0.5)
    weights.replace(new, named(new))
    for name, operand in weights.serving.prepared.operands.items():
        if isinstance(operand, Packed):
            assert operand.weight_OI.data_ptr() == weights.serving.params[name].data_ptr()
            assert torch.equal(operand.content, pack(new[name]).content)
    assert derived(before.prepared) == old != derived(weights.serving.prepared)
    assert before.prepared.current
    assert weights.serving.prepared.current


def without(params, name):
    return {key: tensor for key, tensor in params.items() if key != name}


def poisoned(params, value):
    bad = {key: tensor.clone() for key, tensor in params.items()}
    bad["layers.1.down"][3, 4] = value
    return bad


BROKEN = {
    "missing": (lambda p: without(p, "norm"), "no norm"),
    "extra": (lambda p: {**p, "layers.9.down": p["norm"]}, "layers.9.down"),
    "shape": (lambda p: {**p, "layers.1.down": p["layers.1.down"].T.contiguous()}, "shape of layers.1.down"),
    "dtype": (lambda p: {**p, "layers.0.qkv": p["layers.0.qkv"].bfloat16()}, "dtype of layers.0.qkv"),
    "nan": (lambda p: poisoned(p, float("nan")), "layers.1.down must be finite"),
    "inf": (lambda p: poisoned(p, float("inf")), "layers.1.down must be finite"),
    "empty": (lambda p: {}, "no embedding"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_update_is_refused_by_name_and_changes_nothing(held, llama, kind):
    before = snapshot(held)
    damage, words = BROKEN[kind]
    bad = damage(moved(llama.params))
    with pytest.raises(InputError, match=words) as caught:
        held.replace(bad, named(bad))
    assert str(caught.value).startswith("weights (version 1@")
    assert snapshot(held) == before


def test_one_bit_off_is_refused(held, llama):
    before = snapshot(held)
    new = moved(llama.params)
    version = named(new)
    new["layers.0.output"].view(torch.int32)[0, 0] ^= 1
    with pytest.raises(NumericsError, match="hold what the version names"):
        held.replace(new, version)
    assert snapshot(held) == before


@pytest.mark.parametrize("point", ["digest", "prepare"])
def test_a_failure_inside_leaves_the_old_generation(held, llama, monkeypatch, point):
    before = snapshot(held)

    def fail(*_):
        raise MemoryError(point)

    monkeypatch.setattr(module, point, fail)
    new = moved(llama.params)
    with pytest.raises(MemoryError):
        held.replace(new, named(new))
    monkeypatch.undo()
    assert snapshot(held) == before
    held.replace(new, named(new))
    assert held.serving.version.number == 1


def test_a_copy_that_goes_wrong_is_caught(held, llama, monkeypatch):
    """The digest is of what the engine holds, not of what it was given."""
    before = snapshot(held)
    new = moved(llama.params)
    version = named(new)

    def lost(tensor):
        return tensor.zero_() if tensor.shape == new["layers.1.gate_up"].shape else tensor

    real = torch.Tensor.contiguous
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", lambda tensor: lost(real(tensor)))
        with pytest.raises(NumericsError):
            held.replace(new, version)
    assert snapshot(held) == before
    held.replace(new, version)


def test_versions_rise(held, llama):
    new = moved(llama.params)
    held.replace(new, named(new, 5))
    for stale in (WeightVersion(4, named(llama.params).digest), WeightVersion(5, named(llama.params).digest)):
        with pytest.raises(InputError, match="versions rise"):
            held.replace(llama.params, stale)
        assert held.serving.version == named(new, 5)
    held.replace(new, named(new, 5))  # a reload


def test_there_and_back_returns_every_bit(held, llama):
    first = snapshot(held)[2:]
    new = moved(llama.params)
    held.replace(new, named(new, 1))
    assert snapshot(held)[2:] != first
    held.replace(llama.params, named(llama.params, 2))
    assert snapshot(held)[2:] == first


def test_a_reader_sees_one_whole_generation(held, llama):
    """Whatever thread looks, version and parameters belong together."""
    sets = [llama.params, moved(llama.params)]
    versions = {0: named(sets[0]).digest, 1: named(sets[1]).digest}
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            serving = held.serving
            seen.append((serving.version.number % 2, digest(serving.params)))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(1, 20):
        held.replace(sets[number % 2], named(sets[number % 2], number))
    stop.set()
    reader.join()
    assert seen
    assert all(versions[parity] == found for parity, found in seen)
