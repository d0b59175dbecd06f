"""Models and tokenizers from weights on disk or on the hub, and weights fitted to another
resolution."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor
from torch.nn.functional import interpolate

from lpd.errors import InputError
from lpd.files import sha256_of_file
from lpd.hub import (
    TOKENIZER_REPOSITORY,
    TOKENIZERS,
    check_options,
    fetch_file,
    fetch_folder,
    find_published_model,
)
from lpd.models.lpd import LPD, LPDConfig, preset_shape
from lpd.models.presets import preset_conditioning
from lpd.models.text import PARAMETERS as TEXT_PARAMETERS
from lpd.tokenizer.vq_tokenizer import TOKENIZER_FILES, VQTokenizer
from lpd.tokenizer.vqgan import VQGANConfig
from lpd.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    find_config,
    load_state_dict_file,
    load_strictly,
    save_weights,
    weights_file,
)

TOKENIZER_FOLDER = "tokenizer"
"""The folder of the tokenizer in a model's, where both were saved as one."""
_CLASSES = "class_emb.weight"
_MODEL_FILES = ("*.pth",)  # the published ones


def config_of_preset(name: str, **fields: Any) -> LPDConfig:
    """The configuration of a preset, with other fields (img_size, vocab_size, ...) as given.

    Raises:
        InputError: there is no such preset, or the fields do not go together.
    """
    depth, dim, num_heads = preset_shape(name)
    fields = {"conditioning": preset_conditioning(name), **fields}
    return LPDConfig(depth=depth, dim=dim, num_heads=num_heads, **fields)


def load_model(
    path: Path, device: torch.device, *, preset: str | None = None, img_size: int | None = None
) -> LPD:
    """Load an LPD transformer for inference.

    Args:
        path: a folder with ``model.safetensors`` and ``config.json``, or a weight file. The
            configuration beside the weights wins; published checkpoints have none, and are known
            by the names of their files.
        device: where the model goes.
        preset: the preset's name, for other weights without a configuration.
        img_size: image side in pixels; checked against the configuration, or completes the preset.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: no file, no configuration, an unknown preset, another shape or image size.
    """
    file = weights_file(path)
    config = find_config(path, LPDConfig)
    if config is None:
        published = find_published_model(file.name)
        if published is not None:
            preset = preset or published.preset
            img_size = img_size or published.img_size
        if preset is None:
            raise InputError(f"{file} has no config.json beside it: name its preset with --model")
        config = config_of_preset(preset, img_size=img_size or 256)
    elif preset is not None and (preset_shape(preset), preset_conditioning(preset)) != (
        (config.depth, config.dim, config.num_heads),
        config.conditioning,
    ):
        raise InputError(f"{file} is not a {preset}: its config.json says {config}")
    if img_size is not None and config.img_size != img_size:
        raise InputError(
            f"{file} is a model for images of {config.img_size} pixels, but img_size is {img_size}"
        )
    state = load_state_dict_file(file)
    with torch.device("meta"):
        model = LPD(config)
    model.to_empty(device=device)
    load_strictly(model, state, str(file))
    return model.eval().requires_grad_(False)


def fit_pos_embed(state: Mapping[str, Tensor], config: LPDConfig) -> dict[str, Tensor]:
    """Fit the position embeddings of a model for another resolution, as 512-pixel training starts.

    The embeddings of the positions are interpolated bicubically over the grid (paper section 4.1);
    the class's, in slot 0, stays. A state that fits is returned as it is.

    Args:
        state: the weights, for a square grid.
        config: the model they are for.

    Returns:
        The weights with ``pos_embed`` (1, N + 1, D).

    Raises:
        InputError: the state has no ``pos_embed``, or not that of a square grid.
    """
    pos_embed = state.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3:
        raise InputError(
            "the weights hold no pos_embed of (1, N + 1, D): they are of another model"
        )
    num_positions = pos_embed.shape[1] - 1
    side = math.isqrt(max(0, num_positions))
    if num_positions < 1 or side * side != num_positions:
        raise InputError(f"the weights' pos_embed has {num_positions} positions, no square grid")
    if num_positions == config.num_positions:
        return dict(state)
    grid = pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
    grid = interpolate(grid.float(), config.grid, mode="bicubic", align_corners=False)
    fitted = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)  # (1, N, D)
    return {**state, "pos_embed": torch.cat([pos_embed[:, :1], fitted], dim=1)}


def fit_conditioning(state: Mapping[str, Tensor], model: LPD) -> dict[str, Tensor]:
    """Fit the weights of a model of classes to one of texts, as its training starts.

    What stands for no class stays, so that without a text the model is what it was without a class;
    the classes go. Any other state is returned as it is.

    Args:
        state: the weights.
        model: what they are for, with the initial weights of what reads texts.

    Returns:
        The weights, those that read texts as they are in the model.
    """
    if model.config.conditioning != "text" or _CLASSES not in state:
        return dict(state)
    initial = model.state_dict()
    kept = {name: value for name, value in state.items() if name != _CLASSES}
    return kept | {name: initial[name] for name in TEXT_PARAMETERS}


def load_pretrained(
    name: str | Path,
    device: torch.device,
    *,
    preset: str | None = None,
    img_size: int | None = None,
    **hub: Any,
) -> LPD:
    """Load an LPD transformer from wherever it is.

    Args:
        name: a folder, a weight file, or a repository of the hub, which is fetched: one with
            ``model.safetensors`` and ``config.json``, or with a single ``.pth`` file. Those of the
            paper are known by their names.
        device: where the model goes.
        preset: the preset's name, for other weights without a configuration.
        img_size: image side in pixels; checked, or completes the preset.
        hub: for huggingface_hub: revision, cache_dir, token, ...

    Raises:
        InputError: there is none of these, or what is there does not fit.
    """
    check_options(hub)
    path = Path(name)
    if not path.exists():
        path = fetch_folder(str(name), [CONFIG_NAME, WEIGHTS_NAME, *_MODEL_FILES], **hub)
        published = find_published_model(str(name))
        if published is not None:
            preset = preset or published.preset
            img_size = img_size or published.img_size
    return load_model(weights_file(path, *_MODEL_FILES), device, preset=preset, img_size=img_size)


def sha256_of_local(name: str | Path) -> str | None:
    """The SHA-256 of the weights that :func:`load_pretrained` reads, in hexadecimal; None for a
    repository of the hub, which is known by its name."""
    path = Path(name)
    return sha256_of_file(weights_file(path, *_MODEL_FILES)) if path.exists() else None


def load_tokenizer(name: str | Path | None, device: torch.device, **hub: Any) -> VQTokenizer:
    """Load a tokenizer from wherever it is.

    Args:
        name: a folder, a weight file, or a repository of the hub with ``model.safetensors`` and
            ``config.json``; None for the tokenizer of the published models. LlamaGen's are known by
            their repositories, of classes and of texts.
        device: where to compute.
        hub: for huggingface_hub: revision, cache_dir, token, ...

    Raises:
        InputError: there is none of these, or what is there does not fit.
    """
    check_options(hub)
    if name is None:
        name = TOKENIZER_REPOSITORY
    if str(name) in TOKENIZERS:
        path = fetch_file(str(name), TOKENIZERS[str(name)], **hub)
    elif Path(name).exists():
        path = Path(name)
    else:
        path = fetch_folder(str(name), [CONFIG_NAME, WEIGHTS_NAME], **hub)
    return VQTokenizer.from_pretrained(weights_file(path, *TOKENIZER_FILES), device)


def find_tokenizer(name: str | Path, config: LPDConfig, **hub: Any) -> Path | None:
    """The tokenizer of a model for which none was named.

    Args:
        name: what the model was loaded by, as of :func:`load_pretrained`.
        config: the model's.
        hub: for huggingface_hub.

    Returns:
        The one that was saved with the model; None for that of the published models.

    Raises:
        InputError: there is none with it, and the published one has other codes.
    """
    path = Path(name)
    if not path.exists() and find_published_model(str(name)) is None:
        files = [f"{TOKENIZER_FOLDER}/{file}" for file in (CONFIG_NAME, *TOKENIZER_FILES)]
        path = fetch_folder(str(name), files, **hub)
    beside = (path.parent if path.name == WEIGHTS_NAME else path) / TOKENIZER_FOLDER
    if beside.is_dir():
        return beside
    published = VQGANConfig()
    if (config.vocab_size, config.stride) != (published.codebook_size, published.stride):
        raise InputError(
            f"there is no tokenizer with {name}, and the published one is for {published.stride} x "
            f"{published.stride} pixels and {published.codebook_size} codes, the model for "
            f"{config.stride} x {config.stride} and {config.vocab_size}: name the model's tokenizer"
        )
    return None


class PretrainedLPD(
    LPD,
    PyTorchModelHubMixin,
    library_name="lpd",
    license="mit",
    tags=["image-generation", "arxiv:2507.01957"],
):
    """An LPD transformer with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    ``PretrainedLPD.from_pretrained("FOLDER_OR_HUB_ID")`` takes a local folder or a repository of
    the hub with ``model.safetensors`` and ``config.json``, what ``save_pretrained`` writes, or one
    of the paper's, which hold a ``.pth`` file.
    """

    @classmethod
    def from_pretrained(  # the mixin's would pass over missing keys
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        preset: str | None = None,
        img_size: int | None = None,
        device: str | torch.device = "cpu",
        **hub: Any,
    ) -> Self:
        """Load a model from a local folder or the hub, strictly.

        Args and errors: those of :func:`load_pretrained`.

        Returns:
            The model, in evaluation mode.
        """
        loaded = load_pretrained(
            pretrained_model_name_or_path,
            torch.device(device),
            preset=preset,
            img_size=img_size,
            **hub,
        )
        with torch.device("meta"):
            model = cls(loaded.config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        # The mixin's would write fields that earlier versions do not know.
        save_weights(save_directory, self.state_dict(), self.config)
