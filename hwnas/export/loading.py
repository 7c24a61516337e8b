"""Reads an artefact's files: each once, and only what has the hash that its manifest states is handed on to a runtime.

Engines are native code, and what reads the other formats is code that hardly expects malice. So a model that was changed since it
was exported is not loaded, unless its user says that the change is theirs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from hwnas.errors import InputError, VerificationError
from hwnas.export.formats import FORMATS, MODEL_FILE, WEIGHTS_FILE, Format
from hwnas.export.manifest import FileRecord, Manifest, load_manifest
from hwnas.export.onnx_file import fix_batch, whole_model
from hwnas.runtimes import Program


@dataclass(frozen=True)
class LoadedArtifact:
    """An artefact in memory.

    Attributes:
        directory: Its folder.
        manifest: Its manifest.
        contents: All files that the manifest lists.
        changed: Those of the model that do not have their hash, but were trusted.
    """

    directory: Path
    manifest: Manifest
    contents: Mapping[str, bytes] = field(repr=False)
    changed: tuple[str, ...] = ()

    @property
    def format(self) -> Format:
        """What the model is."""
        return FORMATS[self.manifest.format]

    def program(self, batch_size: int | None = None) -> Program:
        """What the format's runtime loads.

        Args:
            batch_size: For a model of open batch size; 1 unless given.
        """
        batch, *shape = self.manifest.input_shape
        fixed = [size for size in (batch, *shape) if size is not None]
        return self.format.program(self.contents, tuple(fixed if batch is not None else [batch_size or 1, *fixed]),
                                   self.manifest.outputs)

    def onnx_model(self) -> bytes:
        """The model of the format `onnx`, whole and of fixed batch size, for any runtime that takes ONNX.

        Raises:
            InputError: The format is another, or the model is too large for one file.
            VerificationError: The file is no ONNX model.
        """
        if self.manifest.format != "onnx":
            raise InputError(f"{self.directory} must hold an ONNX model, but is of the format {self.manifest.format}: export the "
                             "network as onnx.")
        model = whole_model(self.contents)
        if self.manifest.input_shape[0] is None:
            return fix_batch(model, 1).SerializeToString()
        return self.contents[MODEL_FILE] if WEIGHTS_FILE not in self.contents else model.SerializeToString()


def load_artifact(directory: str | os.PathLike[str], trust_engine: bool = False) -> LoadedArtifact:
    """Reads an artefact and checks all hashes; executes nothing.

    Args:
        directory: The folder.
        trust_engine: Take the model's files even if they are not those that were exported.

    Raises:
        InputError: The manifest is missing, truncated or edited.
        VerificationError: A file is missing, a link, or not the one that was exported.
    """
    folder = Path(directory)
    manifest = load_manifest(folder)
    of_model = FORMATS[manifest.format].files
    contents, changed = {}, []
    for name, record in manifest.files.items():
        contents[name] = _read(folder / name)
        difference = _difference(contents[name], record)
        if difference is None:
            continue
        if name not in of_model:
            raise VerificationError(f"{folder / name} {difference}: copy or export it again.")
        if not trust_engine:
            raise VerificationError(f"{folder / name} {difference}, and a changed model is not loaded: copy or export it again, "
                                    "or pass --trust-engine if the change is yours.")
        changed.append(name)
    return LoadedArtifact(folder, manifest, contents, tuple(changed))


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise VerificationError(f"An artefact holds every file that its manifest lists, but {path} is missing or a link: copy "
                                "the whole folder again.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None


def _difference(content: bytes, record: FileRecord) -> str | None:
    if len(content) != record.size_bytes:
        return f"must have {record.size_bytes} bytes, but has {len(content)}"
    found = sha256(content).hexdigest()
    return None if found == record.sha256 else f"must have the SHA-256 {record.sha256}, but has {found}"
