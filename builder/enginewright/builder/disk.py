"""A full disk, or a folder that cannot be written, said with the folder it is about."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from enginewright.runtime.errors import BuildError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EPERM)


@contextlib.contextmanager
def writing_to(folder: Path, name: str, remedy: str) -> Iterator[None]:
    """Raise BuildError where what is done inside cannot write to the folder.

    ``name`` goes before the folder's path, ``remedy`` is what to do where the disk is full. An
    error about a file elsewhere is left as it is.
    """
    try:
        yield
    except OSError as error:
        if not _is_about(error, folder):
            raise
        if error.errno in _FULL:
            raise BuildError(
                f"no space left in {name}{folder} ({error.strerror}); {remedy}"
            ) from error
        if error.errno in _UNWRITABLE:
            raise BuildError(f"cannot write to {name}{folder} ({error.strerror})") from error
        raise


def _is_about(error: OSError, folder: Path) -> bool:
    """Writing to an open file names none; making a folder may fail at one above it.

    A copy that ran out of space names its source first, and then what was being written.
    """
    copied = error.errno in _FULL and error.filename2 is not None
    name = error.filename2 if copied else error.filename
    if not isinstance(name, (str, bytes)):
        return True
    path, wanted = Path(os.fsdecode(name)).absolute(), folder.absolute()
    return path.is_relative_to(wanted) or wanted.is_relative_to(path)
