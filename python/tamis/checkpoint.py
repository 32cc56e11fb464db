"""Checkpoint: the safetensors files of one folder, mapped and checked before a byte is believed."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.errors import TamisFileError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "tamis.json"
# Set in every weights file that tamis.json describes. save_pretrained rewrites the files without
# it, so a tamis.json left over from an earlier save is recognised as stale.
MARKER = "tamis_manifest"

_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_JSON_LIMIT = 256_000_000
_COPY_AGAIN = "the file is damaged, copy or save it again."

# safetensors dtype -> NumPy storage type. bf16 and fp8 travel as their bits.
_NUMPY: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where its bytes lie in the file and what they mean."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.stop - self.start


class Checkpoint:
    """Every tensor of one or more safetensors files, by name; bytes are mapped on first use.

    Args:
        files: Paths of the safetensors files.
        caller: Name that starts each error message ("load", "convert").

    Raises:
        TamisFileError: A file is missing, truncated or damaged, or two files hold one name.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]], caller: str = "load") -> None:
        self.caller = caller
        self.files = [Path(file) for file in files]
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[Path, dict[str, str]] = {}
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        for file in self.files:
            entries, self.metadata[file] = _read_header(file, caller)
            for name, entry in entries.items():
                if name in self.entries:
                    raise self.error(
                        f"{file.name}: {name}",
                        f"a tensor that {self.entries[name].file.name} holds too",
                        "each tensor in one file",
                        _COPY_AGAIN,
                    )
                self.entries[name] = entry

    @classmethod
    def open(cls, folder: str | os.PathLike[str], caller: str = "load") -> Checkpoint:
        """Checkpoint of a folder that holds model.safetensors or shards and their index.

        Raises:
            TamisFileError: The folder or one of its files is missing or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            got = "a file" if folder.is_file() else "nothing there"
            raise file_error(caller, str(folder), got, "a checkpoint folder", "check the path.")
        if (folder / WEIGHTS).is_file():
            return cls([folder / WEIGHTS], caller)
        if not (folder / INDEX).is_file():
            raise file_error(
                caller,
                str(folder),
                f"no {WEIGHTS} and no {INDEX}",
                "one of them",
                "check the path; other weight files (.bin, .gguf, ...) are not read.",
            )
        weight_map = _read_index(folder / INDEX, caller)
        checkpoint = cls([folder / name for name in sorted(set(weight_map.values()))], caller)
        for name, file in weight_map.items():
            entry = checkpoint.entries.get(name)
            if entry is None or entry.file.name != file:
                raise checkpoint.error(
                    f"{INDEX}: {name}",
                    f"no such tensor in {file}",
                    "the tensor in the file that the index names",
                    "copy or save the folder again.",
                )
        return checkpoint

    def error(self, where: str, got: str, wanted: str, fix: str) -> TamisFileError:
        """The exception for a fault at ``where``, to raise."""
        return file_error(self.caller, where, got, wanted, fix)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Bytes of a tensor, mapped copy-on-write: writing to them never reaches the file."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, dtype=np.uint8, mode="c")
        return self._maps[entry.file][entry.start : entry.stop]

    def numpy(self, name: str) -> npt.NDArray[Any]:
        """A tensor as an array; bf16 as uint16, fp8 as uint8. Mapped where its offset is aligned."""
        entry = self.entries[name]
        kind = np.dtype(_NUMPY[entry.dtype])
        raw = self.raw(name)
        if entry.start % kind.itemsize:
            raw = raw.copy()
        return np.asarray(raw).view(kind).reshape(entry.shape)

    def crc32(self, name: str) -> str:
        """Checksum over name, dtype, shape and bytes of a tensor, eight hex digits.

        Reads through a small buffer: mapped pages would count as this process's memory.
        """
        entry = self.entries[name]
        crc = zlib.crc32(f"{name}|{entry.dtype}|{list(entry.shape)}".encode())
        left = entry.nbytes
        buffer = memoryview(bytearray(min(left, 2**20)))
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            while left:
                count = file.readinto(buffer[:left])
                if not count:
                    raise self.error(str(entry.file), "its end", f"{left} bytes", _COPY_AGAIN)
                crc = zlib.crc32(buffer[:count], crc)
                left -= count
        return f"{crc:08x}"

    def checksums(self) -> dict[str, str]:
        """``crc32`` of every tensor, by name; files are read on several threads."""
        names = list(self.entries)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(names, pool.map(self.crc32, names), strict=True))


def file_error(caller: str, where: str, got: str, wanted: str, fix: str) -> TamisFileError:
    """A TamisFileError with the project's one-sentence form."""
    return TamisFileError(f"{caller}: {where}: got {got}, wanted {wanted}; {fix}")


def read_json(path: Path, caller: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TamisFileError: The file is missing, too large or not a JSON object.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise file_error(
                caller, str(path), f"{path.stat().st_size} bytes", f"at most {_JSON_LIMIT}",
                "this is not a file that tamis or transformers wrote.",
            )  # fmt: skip
        data = _strict_json(path.read_bytes())
    except FileNotFoundError:
        raise file_error(
            caller, str(path), "no such file", "a JSON file", "check the path."
        ) from None
    except ValueError as err:
        raise file_error(caller, str(path), f"broken JSON ({err})", "JSON", _COPY_AGAIN) from None
    if not isinstance(data, dict):
        raise file_error(
            caller, str(path), f"a JSON {type(data).__name__}", "a JSON object", _COPY_AGAIN
        )
    return data


def file_crc32(path: Path) -> str:
    """Checksum of a small file, eight hex digits."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def verify(checkpoint: Checkpoint, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares every checksum of ``manifest`` with the files.

    Raises:
        TamisFileError: A tensor or file differs from what was saved.
    """
    caller = checkpoint.caller
    files, tensors = manifest.get("files", {}), manifest.get("tensors", {})
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        raise file_error(
            caller, str(folder / MANIFEST), "a damaged list of checksums",
            "the objects 'files' and 'tensors'", _COPY_AGAIN,
        )  # fmt: skip
    for name, wanted in files.items():
        path = folder / Path(name).name
        got = file_crc32(path) if path.is_file() else "no such file"
        if got != wanted:
            raise file_error(
                caller, str(path), f"checksum {got}", f"{wanted} as saved",
                "copy or save it again, or pass verify=False if you edited it on purpose.",
            )  # fmt: skip
    found = checkpoint.checksums()
    for name in sorted(found.keys() | tensors.keys()):
        if found.get(name) != tensors.get(name):
            where = checkpoint.entries[name].file.name if name in found else str(folder)
            raise file_error(
                caller, f"{where}: {name}", f"checksum {found.get(name, 'of no such tensor')}",
                f"{tensors.get(name, 'no such tensor')} as saved", _COPY_AGAIN,
            )  # fmt: skip


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _strict_json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_index(path: Path, caller: str) -> dict[str, str]:
    weight_map = read_json(path, caller).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise file_error(caller, str(path), "no 'weight_map'", "tensor name -> file", _COPY_AGAIN)
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file:
            raise file_error(
                caller, f"{path}: {name}", f"file {file!r}", "a plain file name in the same folder",
                "do not load folders that you do not trust.",
            )  # fmt: skip
    return weight_map


def _read_header(path: Path, caller: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of one safetensors file: u64 length, JSON header, data."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 8 + length <= size and length <= _HEADER_LIMIT else None
    except FileNotFoundError:
        raise file_error(
            caller, str(path), "no such file", "this shard of the weights", "copy the whole folder."
        ) from None
    except OSError as err:
        raise file_error(
            caller, str(path), str(err.strerror), "a readable file", "check the path."
        ) from err
    if text is None or size < 8:
        wanted = f"at least {8 + length} for its header"
        if length > _HEADER_LIMIT:
            wanted = f"a header of at most {_HEADER_LIMIT} bytes instead of {length}"
        raise file_error(caller, str(path), f"{size} bytes", wanted, _COPY_AGAIN)
    try:
        header = _strict_json(text)
        metadata = _metadata(header)
        entries = {name: _entry(path, item, 8 + length) for name, item in header.items()}
    except (ValueError, TypeError, KeyError) as err:
        raise file_error(
            caller, str(path), f"a broken header ({err})", "a safetensors header", _COPY_AGAIN
        ) from None
    _check_coverage(entries, 8 + length, size, f"{caller}: {path}")
    return entries, metadata


def _metadata(header: Any) -> dict[str, str]:
    if not isinstance(header, dict):
        raise TypeError("not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise TypeError("__metadata__ is not text by name")
    return metadata


def _entry(path: Path, item: Any, base: int) -> Entry:
    dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
    if dtype not in _NUMPY:
        raise ValueError(f"unknown dtype {dtype!r}")
    numbers = [*shape, start, stop]
    if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise ValueError(f"shape {shape} or offsets {[start, stop]} out of range")
    if math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize != stop - start:
        raise ValueError(f"{dtype} {shape} does not fill {stop - start} bytes")
    return Entry(path, dtype, tuple(shape), base + start, base + stop)


def _check_coverage(entries: dict[str, Entry], base: int, size: int, where: str) -> None:
    end = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise TamisFileError(
                f"{where}: {name}: got data at byte {entry.start}, wanted {end}; {_COPY_AGAIN}"
            )
        end = entry.stop
    if end != size:
        raise TamisFileError(f"{where}: got {size} bytes, wanted {end}; {_COPY_AGAIN}")
