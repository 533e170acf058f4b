"""Weights of a model: they need no pickle, keep their precision and may be on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heimdall_tracking import (
    InvalidInputError,
)
from heimdall_tracking.models import pytorch, safetensors
from support.models import ROWS


def test_the_weights_need_no_pickle(log, net):
    _, folder = log(net)
    from safetensors.torch import load_file

    for state in (
        torch.load(folder / "state_dict.pth", weights_only=True),
        load_file(folder / "state_dict.safetensors"),
        safetensors.load(folder / "state_dict.safetensors"),
    ):
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_stay_of_it(tracker, log, dtype):
    import mlflow

    model = nn.Linear(4, 2).to(dtype)
    rows = ROWS.to(dtype)
    info, folder = log(model, input_example=rows)
    kind = {torch.bfloat16: "float32", torch.float16: "float16", torch.float64: "float64"}[dtype]
    assert json.loads(info.signature["inputs"])[0]["tensor-spec"]["dtype"] == kind
    loaded = tracker.load_model(info.model_uri)
    assert loaded.weight.dtype == dtype
    assert torch.equal(loaded(rows), model(rows))
    assert torch.equal(safetensors.load(folder / "state_dict.safetensors")["weight"], model.weight)
    served = mlflow.pyfunc.load_model(str(folder)).predict(rows.to(getattr(torch, kind)).numpy())
    np.testing.assert_allclose(served, model(rows).detach().to(getattr(torch, kind)).numpy(), rtol=0, atol=0)


class Tied(nn.Module):
    """One weight in two places, a frozen one, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out.weight = self.into.weight
        self.into.bias.requires_grad_(False)
        self.register_buffer("offset", torch.ones(4))
        self.scale = torch.full((4,), 2.0)

    def forward(self, rows):
        return self.out(self.into(rows) * self.scale + self.offset)


def test_a_copy_for_the_cpu_is_the_same_module_without_gradients():
    model = Tied()
    model(ROWS).sum().backward()
    copied = pytorch.copied_to_cpu(model)
    assert copied.out.weight is copied.into.weight
    assert copied.into.weight is not model.into.weight
    assert [it.requires_grad for it in copied.parameters()] == [it.requires_grad for it in model.parameters()]
    assert all(parameter.grad is None for parameter in copied.parameters())
    assert model.into.weight.grad is not None
    torch.testing.assert_close(copied(ROWS), model(ROWS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("serialization", ["pickle", "torchscript"])
def test_a_model_on_a_gpu_stays_there_and_is_written_for_the_cpu(tracker, log, serialization):
    model = Tied().cuda()
    model.scale = model.scale.cuda()
    info, folder = log(model, input_example=ROWS, serialization=serialization)
    assert {it.device.type for it in (*model.parameters(), *model.buffers(), model.scale)} == {"cuda"}
    assert all(it.device.type == "cpu" for it in safetensors.load(folder / "state_dict.safetensors").values())
    loaded = tracker.load_model(info.model_uri)
    torch.testing.assert_close(loaded(ROWS), model(ROWS.cuda()).cpu(), rtol=1e-5, atol=1e-6)


TENSORS = st.sampled_from(sorted(safetensors.NAMES)).flatmap(
    lambda name: st.tuples(st.just(name), st.lists(st.integers(0, 4), max_size=3))
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), TENSORS, max_size=5))
def test_safetensors_are_those_of_the_package(tmp_path_factory, described):
    from safetensors.torch import load_file, save_file

    tensors = {
        name: torch.randint(0, 2, shape).to(getattr(torch, dtype))
        for name, (dtype, shape) in described.items()
        if name != "__metadata__"
    }
    folder = tmp_path_factory.mktemp("safetensors")
    safetensors.save(tensors, folder / "ours", {"format": "pt"})
    save_file(tensors, folder / "theirs")
    for read in (load_file(folder / "ours"), safetensors.load(folder / "theirs")):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].shape == tensor.shape
            assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_tensors_that_share_their_numbers_or_have_strides_are_written_each(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "part": whole[:, 1]}
    safetensors.save(tensors, tmp_path / "f")
    read = safetensors.load(tmp_path / "f")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(InvalidInputError, match="tensor 'sparse' cannot be written"):
        safetensors.save({"sparse": torch.eye(2).to_sparse()}, tmp_path / "f")


def broken_files() -> list[bytes]:
    def file(header: object) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(16)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return [
        b"",
        b"123",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (5).to_bytes(8, "little") + b"[1,2]",
        file([1]),
        file({"a": 1}),
        file({"a": {**entry, "dtype": "F33"}}),
        file({"a": {**entry, "shape": [3]}}),
        file({"a": {**entry, "shape": [-2]}}),
        file({"a": {**entry, "shape": [1 << 61], "data_offsets": [0, 1 << 63]}}),
        file({"a": {**entry, "data_offsets": [16, 24]}}),
        file({"a": {**entry, "data_offsets": [-8, 0]}}),
    ]


@pytest.mark.parametrize("content", broken_files())
def test_a_broken_file_of_safetensors_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidInputError, match="is no file of safetensors"):
        safetensors.load(tmp_path / "f")


class Remembering(nn.Linear):
    """State that is no tensor."""

    def __init__(self, state: object) -> None:
        super().__init__(4, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_state_that_is_no_tensor_is_kept_where_no_code_is_needed_for_it(log, caplog):
    _, folder = log(Remembering({"seen": 3}))
    assert torch.load(folder / "state_dict.pth", weights_only=True)["_extra_state"] == {"seen": 3}
    _, folder = log(Remembering(Path("/")))
    assert torch.load(folder / "state_dict.pth", weights_only=True).keys() == {"weight", "bias"}
    assert "no tensor is left out" in caplog.text
