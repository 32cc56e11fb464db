"""Layout: what the arrays of one compressed weight mean; the unit of exchange with files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from tamis.errors import TamisTypeError, TamisValueError

FORMATS = ("bitmap", "csr", "nm", "block", "csr8", "groupq")
DTYPES = ("f32", "f16", "bf16", "i8", "u4", "u8")
CODES = ("i8", "u4", "u8")  # integers that scales make weights of
ITEMSIZE = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "u4": 0.5, "u8": 1}

# Arrays of each format, in the order of every signature; codes add scales.
_ARRAYS = {
    "bitmap": ("values", "mask", "row_offsets"),
    "csr": ("values", "row_offsets", "col_indices"),
    "nm": ("values", "mask"),
    "block": ("values", "row_offsets", "col_indices"),
    "csr8": ("values", "row_offsets", "col_indices"),
    "groupq": ("values", "mask", "row_offsets"),
}
_INDEX = {"mask": "i64", "row_offsets": "i64", "col_indices": "i32", "scales": "f32"}
_INDEX_BYTES = {"i64": 8, "i32": 4, "u8": 1, "f32": 4, "f16": 2}
_JSON_KEYS = ("format", "rows", "cols", "dtype", "keep", "of", "block", "group_size")


@dataclass(frozen=True)
class Layout:
    """Format, shape and element type of a compressed weight w [rows, cols].

    Args:
        format: "bitmap", "csr", "nm", "block", "csr8" or "groupq".
        rows: Output features, n.
        cols: Input features, k.
        dtype: What ``values`` holds: "f32", "f16", "bf16" or "i8"; groupq: codes of 4 bits, "u4",
            two to an element, or "u8".
        keep: nm: weights kept of every ``of`` consecutive columns.
        of: nm: length of a group of columns; divides ``cols``.
        block: block: rows and columns of a block; they divide ``rows`` and ``cols``.
        group_size: i8: columns that share a scale; 0 is one scale per row. groupq: columns that
            are kept together and share a scale and zero point, 16 or 32; they divide ``cols``.

    Raises:
        TamisTypeError: A field has the wrong type.
        TamisValueError: A field is out of range or contradicts another.
    """

    format: str
    rows: int
    cols: int
    dtype: str
    keep: int = 0
    of: int = 0
    block: tuple[int, int] = (0, 0)
    group_size: int = 0
    # One string that names this layout in operator graphs; ``from_token`` reads it.
    token: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_names(self)
        _check_integers(self)
        _check_nm(self)
        _check_block(self)
        _check_groupq(self)
        if not self.quantized and self.group_size != 0:
            raise TamisValueError(
                f"Layout: group_size: got {self.group_size} with dtype {self.dtype}, wanted 0; "
                "only codes have scales."
            )
        object.__setattr__(self, "token", json.dumps(self.to_json(), separators=(",", ":")))

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays, values first."""
        names = _ARRAYS[self.format]
        return (*names, "scales") if self.quantized else names

    @property
    def quantized(self) -> bool:
        """Whether values are integer codes, which are not trained."""
        return self.dtype in CODES

    def stored(self, elements: int) -> int:
        """Stored values, nnz, where ``values`` has this many elements."""
        return 2 * elements if self.dtype == "u4" else elements

    def array_shapes(self, nnz: int) -> dict[str, tuple[int, ...]]:
        """Shape of each array when ``nnz`` values are stored (block, groupq: zeros in them too).

        Raises:
            TamisValueError: No matrix of this layout stores ``nnz`` values.
        """
        self._check_nnz(nnz)
        r, c = self.block
        shapes: dict[str, tuple[int, ...]] = {
            "values": (nnz // 2 if self.dtype == "u4" else nnz,),
            "mask": (self.rows, -(-self._units() // 64)),
            "row_offsets": (self.rows // r + 1 if self.format == "block" else self.rows + 1,),
            "col_indices": (self._columns(nnz),),
            "scales": self._scales_shape(nnz),
        }
        return {name: shapes[name] for name in self.array_names}

    def nbytes(self, nnz: int) -> int:
        """Bytes of all arrays when ``nnz`` values are stored."""
        shapes = self.array_shapes(nnz)
        return sum(
            math.prod(shape)
            * (self._value_bytes() if name == "values" else _INDEX_BYTES[self.index_dtype(name)])
            for name, shape in shapes.items()
        )

    def index_dtype(self, name: str) -> str:
        """Element type of an array other than ``values``: "i64", "i32", "u8", "f32" or "f16"."""
        if name == "scales" and self.format == "groupq":
            return "f16"
        return "u8" if name == "col_indices" and self.format == "csr8" else _INDEX[name]

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same weight stored densely in the same dtype (codes: with their scales)."""
        size = self.rows * self.cols
        scales = math.prod(self._scales_shape(size)) if self.quantized else 0
        bytes_each = 2 if self.format == "groupq" else 4
        return int(size * ITEMSIZE[self.dtype]) + bytes_each * scales

    @property
    def label(self) -> str:
        """Short name for tables, e.g. "bitmap bf16", "2:4 bf16", "block 16x16 f32"."""
        if self.format == "nm":
            name = f"{self.keep}:{self.of}"
        elif self.format == "block":
            name = f"block {self.block[0]}x{self.block[1]}"
        else:
            name = self.format
        return f"{name} {self.dtype}" + (f" g{self.group_size}" if self.group_size else "")

    def to_json(self) -> dict[str, object]:
        """Plain dict; fields that the format does not use are left out."""
        out: dict[str, object] = {
            "format": self.format,
            "rows": self.rows,
            "cols": self.cols,
            "dtype": self.dtype,
        }
        if self.format == "nm":
            out |= {"keep": self.keep, "of": self.of}
        if self.format == "block":
            out["block"] = list(self.block)
        if self.group_size:
            out["group_size"] = self.group_size
        return out

    @classmethod
    def from_json(cls, data: object) -> Layout:
        """Layout from ``to_json``'s dict, which may come from an untrusted file.

        Raises:
            TamisTypeError: ``data`` or a field has the wrong type.
            TamisValueError: A field is missing, unknown or out of range.
        """
        if not isinstance(data, Mapping):
            raise TamisTypeError(
                f"Layout.from_json: data: got {type(data).__name__}, wanted a dict of fields."
            )
        unknown = sorted(str(key) for key in data if key not in _JSON_KEYS)
        missing = [key for key in _JSON_KEYS[:4] if key not in data]
        if unknown or missing:
            got = f"unknown {unknown}" if unknown else f"no {missing}"
            raise TamisValueError(
                f"Layout.from_json: data: got {got}, wanted the fields {list(_JSON_KEYS)}; "
                "the file may come from a newer tamis."
            )
        fields = dict(data)
        block = fields.get("block", (0, 0))
        fields["block"] = tuple(block) if isinstance(block, list) else block
        return cls(**fields)

    @classmethod
    def from_token(cls, token: str) -> Layout:
        """Layout from ``token``; repeated calls return one object.

        Raises:
            TamisValueError: ``token`` is not such a string.
        """
        return _from_token(token)

    def _columns(self, nnz: int) -> int:
        """Length of ``col_indices``."""
        r, c = self.block
        if self.format == "block":
            return nnz // (r * c)
        return nnz + (self.rows * -(-self.cols // 64) if self.format == "csr8" else 0)

    def _units(self) -> int:
        """What the mask has a bit for, in a row."""
        return self.cols // self.group_size if self.format == "groupq" else self.cols

    def _value_bytes(self) -> int:
        return max(1, int(ITEMSIZE[self.dtype]))

    def _scales_shape(self, nnz: int) -> tuple[int, int]:
        if self.format == "groupq":
            return (nnz // self.group_size, 2)
        return (self.rows, -(-self.cols // (self.group_size or self.cols)))

    def _check_nnz(self, nnz: int) -> None:
        r, c = self.block
        size = self.rows * self.cols
        if not 0 <= nnz <= size:
            raise TamisValueError(
                f"Layout: nnz: got {nnz}, wanted 0 to rows * cols = {size} stored values."
            )
        if self.format == "nm" and nnz != size // self.of * self.keep:
            raise TamisValueError(
                f"Layout: nnz: got {nnz}, wanted {size // self.of * self.keep} "
                f"for {self.keep}:{self.of} of [{self.rows}, {self.cols}]."
            )
        if self.format == "groupq" and nnz % self.group_size:
            raise TamisValueError(
                f"Layout: nnz: got {nnz}, wanted a multiple of a group's {self.group_size} values."
            )
        if self.format == "block" and nnz % (r * c):
            raise TamisValueError(
                f"Layout: nnz: got {nnz}, wanted a multiple of the block's {r * c} values."
            )


def _check_names(a: Layout) -> None:
    for name, got, known in (("format", a.format, FORMATS), ("dtype", a.dtype, DTYPES)):
        if got not in known:
            raise TamisValueError(f"Layout: {name}: got {got!r}, wanted one of {list(known)}.")


def _check_integers(a: Layout) -> None:
    if not isinstance(a.block, tuple) or len(a.block) != 2:
        raise TamisTypeError(f"Layout: block: got {a.block!r}, wanted a pair (rows, columns).")
    numbers = {"rows": a.rows, "cols": a.cols, "keep": a.keep, "of": a.of}
    numbers |= {"block[0]": a.block[0], "block[1]": a.block[1], "group_size": a.group_size}
    for name, value in numbers.items():
        if type(value) is not int:
            raise TamisTypeError(
                f"Layout: {name}: got {value!r} of type {type(value).__name__}, wanted int."
            )
        low = 1 if name in ("rows", "cols") else 0
        if not low <= value < 2**31:
            raise TamisValueError(f"Layout: {name}: got {value}, wanted {low} to 2**31 - 1.")


def _check_nm(a: Layout) -> None:
    if a.format != "nm":
        if a.keep or a.of:
            raise TamisValueError(
                f"Layout: keep, of: got {a.keep}, {a.of} with format {a.format!r}, wanted 0, 0; "
                "only nm keeps N of M."
            )
        return
    if not 1 <= a.keep <= a.of <= 32:
        raise TamisValueError(
            f"Layout: keep, of: got {a.keep}:{a.of}, wanted 1 <= keep <= of <= 32."
        )
    if a.cols % a.of:
        raise TamisValueError(
            f"Layout: cols: got {a.cols}, wanted a multiple of {a.of} for {a.keep}:{a.of}; "
            'use format="bitmap" for this shape.'
        )


def _check_groupq(a: Layout) -> None:
    if (a.format == "groupq") != (a.dtype in ("u4", "u8")):
        raise TamisValueError(
            f"Layout: dtype: got {a.dtype} with format {a.format!r}, wanted u4 or u8 with groupq and "
            "with no other format."
        )
    if a.format != "groupq":
        return
    if a.group_size not in (16, 32):
        raise TamisValueError(
            f"Layout: group_size: got {a.group_size} with format 'groupq', wanted 16 or 32."
        )
    if a.cols % a.group_size:
        raise TamisValueError(
            f"Layout: cols: got {a.cols}, wanted a multiple of the {a.group_size} columns of a "
            'group; use format="bitmap" for this shape.'
        )


def _check_block(a: Layout) -> None:
    r, c = a.block
    if a.format != "block":
        if r or c:
            raise TamisValueError(
                f"Layout: block: got {a.block} with format {a.format!r}, wanted (0, 0)."
            )
        return
    if r < 1 or c < 1:
        raise TamisValueError(f"Layout: block: got {a.block}, wanted two positive integers.")
    if a.rows % r or a.cols % c:
        raise TamisValueError(
            f"Layout: block: got {r}x{c} for shape [{a.rows}, {a.cols}], wanted a block that "
            'divides both; pass another block or format="bitmap".'
        )


@lru_cache(maxsize=4096)
def _from_token(token: str) -> Layout:
    try:
        data = json.loads(token)
    except ValueError as err:
        raise TamisValueError(
            f"Layout.from_token: token: got {token!r}, wanted what Layout.token returned."
        ) from err
    return Layout.from_json(data)
