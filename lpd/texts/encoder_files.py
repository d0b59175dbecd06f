"""The files of a text encoder: where they are, and the hash that it is known by.

They are those that transformers reads of a folder. Where the folder lies, and what else is in it,
makes no difference: an encoder that is moved, or fetched anew, is the same.
"""

from pathlib import Path, PurePath

from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import read_json
from lpd.hashes import hash_files
from lpd.hub import fetch_folder
from lpd.provenance import digest

_CONFIG, _WEIGHTS, _WEIGHTS_INDEX = (
    *("config.json", "model.safetensors", "model.safetensors.index.json"),
)
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tekken.json", "*.model", "*.tiktoken"),
)
_ADAPTER = "adapter_config.json"


def encoder_folder(name: str | Path, **hub: object) -> Path:
    """The folder of an encoder; one of the hub is fetched, without what is not read.

    Args:
        name: a folder, or a repository of the hub.
        hub: for huggingface_hub: revision, cache_dir, token, ...

    Raises:
        InputError: it is neither, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(
            f"{name} is a file: a text encoder is a folder with {_CONFIG}, safetensors weights and "
            "a tokenizer, or a repository of the hub"
        )
    small = [_CONFIG, _WEIGHTS_INDEX, _ADAPTER, *_TOKENIZER_FILES]
    folder = fetch_folder(str(name), small, ignore_patterns=["*/*"], **hub)
    weights = {_WEIGHTS, *_weights_of_index(folder)}
    return fetch_folder(str(name), sorted(weights), ignore_patterns=["*/*"], **hub)


def encoder_files(folder: Path) -> list[Path]:
    """The files that hidden states depend on, in a fixed order.

    Raises:
        InputError: a configuration or safetensors weights are missing, or it is an adapter of
            another model.
    """
    if (folder / _ADAPTER).is_file():
        raise InputError(
            f"{folder} holds an adapter of another model: merge the two, and give the whole"
        )
    if not (folder / _CONFIG).is_file():
        raise InputError(f"{folder} is no text encoder: it holds no {_CONFIG}")
    single = folder / _WEIGHTS
    weights = (
        [single] if single.is_file() else [folder / each for each in _weights_of_index(folder)]
    )
    lacking = [file.name for file in weights if not file.is_file()]
    if lacking or not weights:
        raise InputError(
            f"{folder} holds no {(lacking or [_WEIGHTS])[0]}: a text encoder's weights are read "
            "from safetensors files and from no other; save_pretrained of transformers writes them"
        )
    tokenizer = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return [folder / _CONFIG, *sorted(weights), *sorted(tokenizer)]


def encoder_sha256(folder: Path, world: World) -> str:
    """A hash of the names and bytes of an encoder's files, on all processes, which share the work;
    they call this together.

    Raises:
        InputError: as :func:`encoder_files`, or a file cannot be read; raised on all processes.
    """
    files: list[Path] = []
    with world.together():
        files = encoder_files(folder)
    hashes = hash_files(files, world)
    return digest([[file.name, hash_] for file, hash_ in zip(files, hashes, strict=True)])


def _weights_of_index(folder: Path) -> list[str]:
    """The names of the weight files that an index has; none where there is no index."""
    index = folder / _WEIGHTS_INDEX
    if not index.is_file():
        return []
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(
        isinstance(name, str) and name == PurePath(name).name and name.endswith(".safetensors")
        for name in names
    ):
        raise InputError(f"{index} does not name the safetensors files beside it; fetch it anew")
    return sorted(set(names))
