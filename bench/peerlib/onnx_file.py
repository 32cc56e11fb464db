"""Writes ONNX files of constant matrix products without the onnx package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FLOAT = 1  # onnx TensorProto.FLOAT
IR_VERSION, OPSET = 7, 13  # old enough for every engine here


def write_layers(path: Path, w: Array, m: int, copies: int) -> None:
    """Model with input x [m,k] and `copies` outputs y_i [m,n] = x @ w_i.T, all of w's values.

    w [n,k] f32. w_i is w rotated by i rows, so that no engine can merge two of them. m = 0 leaves
    the number of rows open.
    """
    n, k = w.shape
    graph = [_text(2, "layers"), _field(11, _value_info("x", (m, k)))]
    for i in range(copies):
        node = _text(1, "x") + _text(1, f"w{i}") + _text(2, f"y{i}") + _text(4, "MatMul")
        graph += [_field(1, node), _field(12, _value_info(f"y{i}", (m, n)))]
    # The weights come last and one at a time: together they are larger than the memory to spare.
    weights_bytes = sum(len(_field_head(5, size)) + size for size in _tensor_sizes(w, copies))
    body = b"".join(graph)
    head = _varint(1, IR_VERSION) + _field(8, _varint(2, OPSET))
    with path.open("wb") as file:
        file.write(head + _field_head(7, len(body) + weights_bytes) + body)
        for tensor_head, data in _tensors(w, copies):
            file.write(_field_head(5, len(tensor_head) + len(data)) + tensor_head)
            file.write(data)


def _tensors(w: Array, copies: int) -> Iterator[tuple[bytes, bytes]]:
    """Fields of each weight but its values, and its values, [k,n]."""
    for i in range(copies):
        data = np.ascontiguousarray(np.roll(w, i, axis=0).T).tobytes()
        yield _tensor_head(i, w), data


def _tensor_sizes(w: Array, copies: int) -> Iterator[int]:
    for i in range(copies):
        yield len(_tensor_head(i, w)) + w.size * 4


def _tensor_head(i: int, w: Array) -> bytes:
    n, k = w.shape
    dims = _varint(1, k) + _varint(1, n)
    return dims + _varint(2, FLOAT) + _text(8, f"w{i}") + _field_head(9, w.size * 4)


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _varint(1, size) if size else _text(2, "m")) for size in shape)
    return _text(1, name) + _field(2, _field(1, _varint(1, FLOAT) + _field(2, dims)))


# Protocol buffers: a field is a varint of number << 3 | kind, then a varint, or a length and bytes.


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _field_head(field: int, size: int) -> bytes:
    return _number(field << 3 | 2) + _number(size)


def _field(field: int, data: bytes) -> bytes:
    return _field_head(field, len(data)) + data


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())
