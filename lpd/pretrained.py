"""Models from weights on disk or on the hub, and weights fitted to another resolution."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from lpd.errors import InputError
from lpd.models.lpd import LPD, LPDConfig, preset_shape
from lpd.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    find_config,
    load_state_dict_file,
    load_strictly,
    weights_file,
)


def config_of_preset(name: str, **fields: Any) -> LPDConfig:
    """The configuration of a preset, with other fields (img_size, vocab_size, ...) as given.

    Raises:
        InputError: there is no such preset, or the fields do not go together.
    """
    depth, dim, num_heads = preset_shape(name)
    return LPDConfig(depth=depth, dim=dim, num_heads=num_heads, **fields)


def load_model(
    path: Path, device: torch.device, *, preset: str | None = None, img_size: int | None = None
) -> LPD:
    """Load an LPD transformer for inference.

    Args:
        path: a folder with ``model.safetensors`` and ``config.json``, or a weight file. The
            configuration beside the weights wins; published checkpoints have none and need a
            preset.
        device: where the model goes.
        preset: the preset's name, for weights without a configuration.
        img_size: image side in pixels; checked against the configuration, or completes the preset.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: no file, no configuration, an unknown preset, another shape or image size.
    """
    file = weights_file(path)
    config = find_config(path, LPDConfig)
    if config is None:
        if preset is None:
            raise InputError(f"{file} has no config.json beside it: name its preset with --model")
        config = config_of_preset(preset, img_size=img_size or 256)
    elif preset is not None and preset_shape(preset) != (
        config.depth,
        config.dim,
        config.num_heads,
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


class PretrainedLPD(
    LPD,
    PyTorchModelHubMixin,
    library_name="lpd",
    license="mit",
    tags=["image-generation", "arxiv:2507.01957"],
):
    """An LPD transformer with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    ``PretrainedLPD.from_pretrained("FOLDER_OR_HUB_ID")`` takes a local folder or a repository of
    the hub with ``model.safetensors`` and ``config.json``, what ``save_pretrained`` writes; for one
    with a published ``.pth`` file it takes ``preset="lpd_l"`` and ``img_size=256`` too.
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

        Args:
            pretrained_model_name_or_path: a folder, or a repository of the hub.
            preset: the preset's name, for weights without a configuration.
            img_size: image side in pixels; checked, or completes the preset.
            device: where the model goes.
            hub: for huggingface_hub.snapshot_download: revision, cache_dir, token, ...

        Returns:
            The model, in evaluation mode.

        Raises:
            InputError: no such folder or repository, or what is there does not fit.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            wanted = [CONFIG_NAME, WEIGHTS_NAME, "*.pth"]
            try:
                folder = Path(snapshot_download(name, allow_patterns=wanted, **hub))
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise InputError(
                    f"{name} is neither a folder nor a repository of the hub that can be reached: "
                    f"{error}"
                ) from error
        loaded = load_model(
            _only_weights(folder), torch.device(device), preset=preset, img_size=img_size
        )
        with torch.device("meta"):
            model = cls(loaded.config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        return model.eval()


def _only_weights(folder: Path) -> Path:
    if (folder / WEIGHTS_NAME).is_file():
        return folder / WEIGHTS_NAME
    published = sorted(folder.glob("*.pth"))
    if len(published) != 1:
        raise InputError(
            f"{folder} holds {len(published)} .pth files and no {WEIGHTS_NAME}: "
            "load the one you mean with load_model"
        )
    return published[0]
