"""The guard of safetensors files from outside."""

import json

import pytest
import tensor_file_attack
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from seqlora_core.errors import UserError
from seqlora_core.tensor_file import MAX_HEADER, TensorFile

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
CONTENT = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}, {"said": "é\n[1"})


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4)), max_size=5))
@settings(max_examples=40, deadline=None)
def test_whatever_safetensors_writes_is_read_as_it_reads_it(kinds):
    tensors = {f"{i}": torch.full(shape, 1.0).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    file, expected = TensorFile.of(save(tensors, {"a": "b"}), "x"), load(save(tensors))
    assert file.keys() == expected.keys()
    assert file.metadata == {"a": "b"}
    for key, tensor in expected.items():
        assert file.shapes[key] == tuple(tensor.shape)
        assert file[key].dtype == tensor.dtype
        assert torch.equal(file[key].double(), tensor.double())


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_changed_bytes_give_tensors_or_a_sentence(changes, cut):
    content = bytearray(CONTENT)
    for place, value in changes:
        content[place] = value
    try:
        file = TensorFile.of(bytes(content[: len(content) - cut]), "x")
        assert all(tensor.isfinite().all() for tensor in file.values() if tensor.is_floating_point())
    except UserError as error:
        assert str(error).startswith("x ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries({}, optional={"dtype": st.just("F32") | _JSON, "shape": _JSON, "data_offsets": _JSON})


@given(st.dictionaries(st.just("__metadata__") | st.text(max_size=3), _ENTRY | _JSON, max_size=4) | _JSON)
@settings(max_examples=150, deadline=None)
def test_headers_of_any_json_give_tensors_or_a_sentence(header):
    try:
        list(TensorFile.of(with_header(header), "x").values())
    except UserError as error:
        assert str(error).startswith("x ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_header({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, b"1"), "of the type 'F4'"),
        (with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "does not fit its bytes"),
        (with_header({"a": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}), "impossible"),
        (with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"), "leave gaps"),
        (with_header({"__metadata__": {"a": 1}}), "not texts"),
        (with_header(b"{" + b"[" * 10**6), "is not that of"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}" + bytes(99), "its header has"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(content, message):
    with pytest.raises(UserError, match=message):
        TensorFile.of(content, "x")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os = pytest.importorskip("os")
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a regular file"):
        TensorFile.open(tmp_path / "x.safetensors")


def test_damaged_lora_files_end_in_a_result_or_a_sentence():
    results = list(tensor_file_attack.attack(10**6, seed=2, base=None, seconds=3))
    assert len(results) > 50
    assert len(set(results)) > 3
