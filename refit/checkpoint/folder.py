"""Checkpoints of several files: a folder, an archive, or a repository, of which the modality reads some.

    files = files_in(Path("minilm/"), patterns)       {"config.json": Path("minilm/config.json"), ...}
    with taken(files) as folder:                      a copy of these, and nothing else
        digest = digest_of(folder)

One SHA-256 pins all of them: of their names, sizes and contents. It is the same for a folder, an archive of it, and the
repository that it came from, whatever else lies beside them.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from ..data.archives import SUFFIXES, unpack
from ..errors import CheckpointError, DataError
from ..files import sha256_of_file

_ARCHIVES = (*SUFFIXES, ".whl")
_DEEPEST = 4  # folders that an archive may have around the files


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or an archive of one by its name."""
    return path.is_dir() or path.name.lower().endswith(_ARCHIVES)


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern fits, sorted."""
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def files_in(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that are read, by their names in it.

    Raises:
        CheckpointError: there are none.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = {name: folder / name for name in matching(names, patterns)}
    if not found:
        raise CheckpointError(f"the checkpoint {folder} has none of the files {', '.join(patterns)}")
    return found


@contextmanager
def unpacked(archive: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """The folder in an archive that has the files, the outermost one.

    Raises:
        CheckpointError: it is damaged, beyond a limit, or has no such folder.
    """
    with tempfile.TemporaryDirectory(prefix="refit-checkpoint-") as temporary:
        root = Path(temporary, "unpacked")
        plain = Path(temporary, f"{archive.stem}.zip" if archive.suffix == ".whl" else archive.name)
        plain.symlink_to(archive.absolute())
        try:
            unpack(plain, root)
        except DataError as error:
            raise CheckpointError(str(error).replace("data.source", "checkpoint.uri")) from None
        depths = [
            root,
            *(path for depth in range(1, _DEEPEST + 1) for path in sorted(root.glob("/".join("*" * depth)))),
        ]
        for folder in depths:
            if folder.is_dir() and matching([path.name for path in folder.iterdir()], patterns):
                yield folder
                return
        raise CheckpointError(f"the archive {archive} has none of the files {', '.join(patterns)}")


@contextmanager
def taken(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder with copies of these files, which nobody changes between their digest and their use."""
    with tempfile.TemporaryDirectory(prefix="refit-checkpoint-") as temporary:
        for name, path in files.items():
            Path(temporary, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(temporary, name))
        yield Path(temporary)


def digest_of(folder: Path) -> str:
    """The SHA-256 of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()
