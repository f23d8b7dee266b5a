"""Which model a checkpoint is, told without loading it: numbers of its config, and a fingerprint of its files.

Reads files only; used by `lvspec calibrate` when it writes a file, and by the server and `lvspec doctor` when they read
one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
SAMPLES, SAMPLE_BYTES = 16, 4096  # a file: two checkpoints of one shape differ in their numbers alone
_VOLATILE = ("transformers_version", "_name_or_path")  # change when a checkpoint is copied or saved again


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model, as far as a calibration depends on it.

    Attributes:
        fingerprint: sha256 over the config's canonical text and, for every weight file, its name, its size and 16
            samples of 4 KiB at even distances. A renamed folder keeps it; a fine-tuned, merged or quantized model of
            the same shape does not.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    fingerprint: str


def identify(path: str, revision: str | None = None) -> ModelIdentity:
    """Identity of a checkpoint: a folder, or a repository of the Hugging Face Hub that is in the local cache.

    Raises:
        ValueError: nothing readable there.
    """
    try:
        folder = _folder(path, revision)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        return ModelIdentity(
            architecture=config["architectures"][0],
            hidden_size=text["hidden_size"],
            num_layers=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            vocab_size=text["vocab_size"],
            fingerprint=_fingerprint(folder, config),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"A model is recognised by its config.json and weight files; found none that can be read for {path} "
            f"({type(error).__name__}: {error}). Name a checkpoint folder, or download the model first."
        ) from error


def _folder(path: str, revision: str | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, local_files_only=True))


def _fingerprint(folder: Path, config: dict[str, Any]) -> str:
    stable = {key: value for key, value in config.items() if key not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(stable, sort_keys=True).encode())
    for file in sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"\n{file.name} {size}\n".encode())
        with file.open("rb") as source:
            for sample in range(SAMPLES):
                # Even distances, the first at the start (safetensors: names and shapes), the last at the end.
                source.seek(max(size - SAMPLE_BYTES, 0) * sample // (SAMPLES - 1))
                digest.update(source.read(SAMPLE_BYTES))
    return digest.hexdigest()
