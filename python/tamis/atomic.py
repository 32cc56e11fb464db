"""Whole folders written aside and renamed into place, so that a failed write changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from tamis.checkpoint import INDEX, MANIFEST, WEIGHTS
from tamis.errors import TamisFileError, TamisTypeError

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_KEPT = "what was on disk is unchanged."


@contextlib.contextmanager
def replaced_folder(
    target: str | os.PathLike[str], *, overwrite: bool, caller: str
) -> Iterator[Path]:
    """Yields an empty folder beside ``target``; on success it becomes ``target``, else it goes.

    The files are flushed to disk before the rename. An existing ``target`` is exchanged in one
    step where the system can (Linux renameat2), else by two renames that are undone on failure.

    Raises:
        TamisTypeError: ``target`` is no path.
        TamisFileError: ``target`` is in the way, cannot be written, or the disk is full.
    """
    check_path(target, caller)
    final = Path(os.path.realpath(target))
    made: list[Path] = []
    work = final.parent / f".{final.name}.{secrets.token_hex(4)}.tamis"
    try:
        check_target(final, overwrite, caller)
        _make_parents(final.parent, made)
        work.mkdir()
        yield work
        _flush(work)
        _move(work, final, overwrite)
    except BaseException as err:
        shutil.rmtree(work, ignore_errors=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        sentence = _sentence(err, final, caller)
        if sentence is None:
            raise
        raise TamisFileError(sentence) from err


def check_path(path: object, caller: str) -> None:
    """Refuses what is no path.

    Raises:
        TamisTypeError: It is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise TamisTypeError(f"{caller}: dir: got {type(path).__name__}, wanted a path.")


def check_target(final: Path, overwrite: bool, caller: str) -> None:
    """Refuses, before any work, what ``replaced_folder`` would not replace.

    Raises:
        TamisFileError: A file, a folder with files in it where they are to stay, or one without a model.
    """
    if not final.exists():
        return
    if not final.is_dir():
        raise TamisFileError(
            f"{caller}: dir: got the file {final}, wanted a folder; pass another path."
        )
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise TamisFileError(
            f"{caller}: dir: got the folder {final} with files in it, wanted a new or empty one; "
            "pass overwrite=True to replace it."
        )
    if not any((final / name).is_file() for name in (WEIGHTS, INDEX, MANIFEST, "config.json")):
        raise TamisFileError(
            f"{caller}: dir: got {final}, which holds no model, wanted a saved model to overwrite; "
            "pass another path."
        )


def _make_parents(parent: Path, made: list[Path]) -> None:
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for folder in reversed(missing):
        folder.mkdir()
        made.append(folder)


def _flush(work: Path) -> None:
    """Gives every file the permissions that the folder got from the umask, and syncs them."""
    mode = work.stat().st_mode & 0o666
    for path in [*(p for p in work.rglob("*") if p.is_file()), work]:
        if path != work:
            path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _move(work: Path, final: Path, overwrite: bool) -> None:
    if not (overwrite and final.exists()):
        work.rename(final)  # fails where somebody else has put files there meanwhile
    elif _exchange(work, final):
        shutil.rmtree(work, ignore_errors=True)
    else:
        _swap(work, final)
    _sync(final.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two paths in one step; false where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, exchange = -100, 2
    return bool(rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0)


def _swap(work: Path, final: Path) -> None:
    old = work.with_suffix(".old")
    final.rename(old)
    try:
        work.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sentence(err: BaseException, final: Path, caller: str) -> str | None:
    """What to say about a failed write, or None to let the exception pass."""
    if isinstance(err, TamisFileError):
        return None
    code, reason = None, str(err)
    if isinstance(err, OSError):
        code, reason = err.errno, err.strerror or str(err)
    elif type(err).__name__ == "SafetensorError":
        found = re.search(r"\(os error (\d+)\)", reason)
        code = int(found.group(1)) if found else None
        reason = os.strerror(code) if code is not None else reason
    if code is None:
        return None
    start = f"{caller}: dir: got '{reason}' while writing {final},"
    if code in _FULL:
        return f"{start} wanted enough free space; free some or pass another path; {_KEPT}"
    if code in _DENIED:
        return f"{start} wanted a writable folder; pass another path; {_KEPT}"
    if code in _TAKEN:
        return (
            f"{start} wanted it to stay new or empty; pass another path or overwrite=True; {_KEPT}"
        )
    return f"{start} wanted to write it; pass another path; {_KEPT}"
