"""Read and write weight files safely.

Read: ``.safetensors``, and ``.pth``/``.pt`` through torch's restricted unpickler, which refuses
anything but tensors and plain containers; ``argparse.Namespace`` is allowed too, because the
published checkpoints keep their arguments in one. Written: ``.safetensors`` with a ``config.json``
beside it.
"""

import argparse
import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lpd.errors import InputError
from lpd.files import TEMPORARY, atomic_path, read_json, write_json
from lpd.options import YOUNGER

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CHECKPOINT_MODEL = "model"
"""The folder of the weights in a checkpoint of a training."""

# Keys under which training scripts of the field put the state dict, and wrappers' key prefixes.
_WRAPPING_KEYS = ("model", "state_dict")
_WRAPPING_PREFIXES = ("module.", "_orig_mod.")

ConfigT = TypeVar("ConfigT")


def weights_file(path: Path, *patterns: str) -> Path:
    """The weight file that ``path`` means: itself, ``model.safetensors`` in a folder, or that of
    the folder ``model`` in a checkpoint of a training.

    Args:
        path: a file or folder.
        patterns: names, such as ``*.pth``, of which a folder without any of these may hold one.

    Raises:
        InputError: there is no such file, or there are several.
    """
    file = weights_folder(path) / WEIGHTS_NAME if path.is_dir() else path
    if patterns and path.is_dir() and not file.is_file():
        return _only_file(path, patterns)
    if not file.is_file():
        raise InputError(f"no weight file at {file}; check the path, or download the weights first")
    return file


def weights_folder(path: Path) -> Path:
    """The folder in which the weights are that ``path``, a folder or file, means."""
    if not path.is_dir():
        return path.parent
    in_checkpoint = path / CHECKPOINT_MODEL
    return path if (path / WEIGHTS_NAME).exists() or not in_checkpoint.is_dir() else in_checkpoint


def weight_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a folder with a name of some patterns, but for those that are being written."""
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in files if not TEMPORARY.fullmatch(file.name))


def _only_file(folder: Path, patterns: tuple[str, ...]) -> Path:
    files = weight_files(folder, patterns)
    if len(files) != 1:
        raise InputError(
            f"{folder} holds no {WEIGHTS_NAME} and {len(files)} {' or '.join(patterns)} files: "
            "name the weight file that you mean"
        )
    return files[0]


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.safetensors``, ``.pth`` or ``.pt`` file, on CPU.

    Wrappings are taken off: a dict under ``model`` or ``state_dict``, and ``module.`` and
    ``_orig_mod.`` before the keys.

    Raises:
        InputError: the file is missing, damaged, of another kind, or a pickle with code in it.
    """
    path = weights_file(path)
    if path.suffix == ".safetensors":
        try:
            content: Any = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    elif path.suffix in {".pth", ".pt"}:
        content = _load_pickle(path)
    else:
        raise InputError(
            f"{path}: weights are read from .safetensors, .pth and .pt, not {path.suffix!r}"
        )
    for key in _WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InputError(f"{path} does not hold a state dict (a mapping of names to tensors)")
    return {_without_wrapping(key): value for key, value in content.items()}


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is damaged, or a pickle that holds more than weights"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise InputError(f"{path} is not a whole torch weight file: {error}") from error


def _without_wrapping(key: str) -> str:
    while key.startswith(_WRAPPING_PREFIXES):
        for prefix in _WRAPPING_PREFIXES:
            key = key.removeprefix(prefix)
    return key


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``module``; every key must be there, with its shape, and no other.

    Args:
        module: the module; its parameters keep their dtype and device.
        state: names and tensors.
        source: where the state comes from, for the message.

    Raises:
        InputError: names the first missing, extra and misshapen keys, or a number is not finite.
    """
    expected = module.state_dict()
    problems = []
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{key} is {list(state[key].shape)}, expected {list(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    for what, keys in (("missing", missing), ("not expected", extra), ("shapes", misshapen)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{what}: {', '.join(keys[:3])}{more}")
    if problems:
        raise InputError(
            f"{source} does not fit this {type(module).__name__} ({'; '.join(problems)}); "
            "is it another model or preset?"
        )
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if broken:
        raise InputError(
            f"{source} holds numbers that are not finite (NaN or infinity), first in {broken[0]}; "
            "nothing can be computed with it"
        )
    module.load_state_dict(state)


def check_sizes(config: Any, bounds: Mapping[str, int]) -> None:
    """Check the sizes that a configuration names, which may come from anyone's file.

    Args:
        config: the configuration.
        bounds: by field, the most it may be.

    Raises:
        InputError: a field is no integer from 1 to its bound.
    """
    for name, most in bounds.items():
        value = getattr(config, name)
        if type(value) is not int:
            raise InputError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
        if value > most:
            raise InputError(f"{name} must be at most {most}, got {value}")


def save_pretrained(folder: Path, module: nn.Module, config: Any) -> None:
    """Write ``module`` and its ``config`` as :func:`save_weights` does."""
    save_weights(folder, module.state_dict(), config)


def save_weights(folder: Path, state: Mapping[str, Tensor], config: Any) -> None:
    """Write weights and their ``config`` dataclass as ``model.safetensors`` and ``config.json``.

    The weights come last, so a folder that holds them is complete.
    """
    write_json(folder / CONFIG_NAME, config_to_dict(config))
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(tensors, temporary)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The values of a configuration dataclass, as they stand in ``config.json``.

    A field that is marked with ``YOUNGER`` is left out while it has its default, so that what does
    not need it can be read by versions that do not know it, and is called by the same name.
    """
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if field.metadata.get(YOUNGER) and values[field.name] == field.default:
            del values[field.name]
    return values


def find_config(path: Path, config_class: type[ConfigT]) -> ConfigT | None:
    """The ``config.json`` that belongs to the weights at ``path``, or None where there is none.

    Raises:
        InputError: the file is no configuration of ``config_class``.
    """
    file = weights_folder(path) / CONFIG_NAME
    if not file.is_file():
        return None
    return config_from_dict(config_class, read_json(file), str(file))


def config_from_dict(config_class: type[ConfigT], values: Any, source: str) -> ConfigT:
    """Build a configuration dataclass from JSON values; lists become tuples.

    Raises:
        InputError: ``values`` is no mapping of the dataclass's fields; ``source`` is named.
    """
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or not values.keys() <= names:
        raise InputError(
            f"{source} is not a {config_class.__name__}: expected an object with the fields "
            f"{', '.join(sorted(names))}, got {json.dumps(values)[:200]}"
        )
    try:
        return config_class(
            **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} is not a {config_class.__name__}: {error}") from error
