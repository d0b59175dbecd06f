"""The Python API of models of texts: a model, its tokenizer and text encoder, images from prompts.

from lpd.text_pipeline import LPDTextPipeline

pipe = LPDTextPipeline.from_pretrained("outputs/quickstart_text/lpd/model")
result = pipe(["a red three", "a green seven"], generation_steps=16, cfg=4.0)
result.images[0].save("a_red_three.png")
"""

import dataclasses
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from lpd.data.masks import Mask
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.text_encoder import check_encoder
from lpd.options import from_flat, takes_options
from lpd.pipeline_base import BasePipeline, Callback, check_dtype, load_models
from lpd.pipeline_inputs import Indices, Picture, Wanted, checked_count
from lpd.pipeline_options import OutpaintCall, PipelineOptions
from lpd.pipeline_results import EditResult, PipelineResult
from lpd.prompts import (
    Encoder,
    Prompt,
    encode_prompts,
    listed,
    load_encoder,
)
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.sampling.execution import AUTO
from lpd.tokenizer.vq_tokenizer import VQTokenizer


class LPDTextPipeline(BasePipeline):
    """Generates images from prompts."""

    kind = "text"
    asked_by = "prompts"

    def __init__(
        self,
        model: LPD,
        tokenizer: VQTokenizer,
        text_encoder: Encoder,
        *,
        dtype: torch.dtype | str | None = torch.float32,
        batch_size: int = 64,
        backend: str = AUTO,
        cuda_graphs: bool = True,
    ) -> None:
        """Args:
            model: as for :class:`lpd.pipeline_base.BasePipeline`, like all others but the next.
            tokenizer: the tokenizer whose codes it models.
            text_encoder: the text encoder whose hidden states it reads.
            dtype: what the model computes in; the text encoder has a dtype of its own.
            batch_size: most images generated at a time.
            backend: how the transformer's blocks are run.
            cuda_graphs: on CUDA, generate by captured graphs.

        Raises:
            InputError: as the base, or the text encoder is another than the model's.
        """
        super().__init__(
            model,
            tokenizer,
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )
        check_encoder(model.config, text_encoder.identity, max_length=text_encoder.max_length)
        self.text_encoder = text_encoder
        """What makes hidden states of prompts. It stays where it is when the pipeline moves."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        tokenizer: str | Path | None = None,
        *,
        text_encoder: str | Path | Encoder | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = torch.float32,
        preset: str | None = None,
        img_size: int | None = None,
        batch_size: int = 64,
        backend: str = AUTO,
        cuda_graphs: bool = True,
        **hub: Any,
    ) -> Self:
        """Load a model, its tokenizer and its text encoder.

        Args:
            pretrained_model_name_or_path: a folder that LPD wrote, a weight file, or a repository
                of the hub; see :func:`lpd.pretrained.load_pretrained`.
            tokenizer: the same for the tokenizer. By default it is the one that
                :meth:`save_pretrained` has put beside the model, or else that of the published
                models.
            text_encoder: a folder or repository of the hub as transformers reads it, or an encoder
                that is loaded already. By default the one that the model's configuration names.
            device: cpu, cuda, ...; by default CUDA where there is one.
            dtype: as for the class.
            preset: the model's preset, for weights that are known neither by a configuration nor
                by their name.
            img_size: image side in pixels, for the same.
            batch_size: as for the class.
            backend: as for the class.
            cuda_graphs: as for the class.
            hub: for huggingface_hub: revision (of the model), cache_dir, token, local_files_only,
                ...

        Raises:
            InputError: a file is missing, damaged, or does not fit, or the hub cannot be reached.
            TypeError: there is no option of a name.
        """
        check_dtype(dtype)  # before anything is fetched
        where = pick_device(None if device is None else str(device))
        model, vq_tokenizer = load_models(
            pretrained_model_name_or_path,
            tokenizer,
            where,
            kind=cls.kind,
            preset=preset,
            img_size=img_size,
            hub=hub,
        )
        of_others = {option: value for option, value in hub.items() if option != "revision"}
        return cls(
            model,
            vq_tokenizer,
            load_encoder(model.config, text_encoder, where, **of_others),
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )

    def _saved_config(self) -> LPDConfig:
        """That of the model, with the encoder as it is called here; its weights are not saved."""
        identity = self.text_encoder.identity
        return dataclasses.replace(
            self.model.config,
            text_encoder=identity.name,
            text_encoder_sha256=identity.sha256,
            text_layer=identity.layer,
        )

    @takes_options(PipelineOptions)
    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        negative_prompt: Prompt | Sequence[Prompt] = None,
        seed: int = 0,
        num_images_per_prompt: int = 1,
        callback: Callback | None = None,
        callback_images: Iterable[int] | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> PipelineResult:
        """Generate images of prompts.

        Image i depends on its prompt and negative prompt, the options, the seed and its index
        alone. Orders with passes of their own take those, not ``generation_steps``.

        Args:
            prompts: one or several, in any language that the text encoder reads; blank or None for
                anything.
            negative_prompt: what guidance leads away from: one for all, or one for each prompt;
                blank or None for nothing in particular. It takes a ``cfg`` other than 1.
            seed: names the run's random numbers.
            num_images_per_prompt: how many images of each, one after the other.
            callback: called after each pass of each batch with a
                :class:`lpd.pipeline_results.Step`. On CUDA passes are then launched one by one,
                which is slower.
            callback_images: which images it is for, by their place in the call; batches without any
                of them are generated at full speed, and nothing is told of them. By default all.
            image_indices: (n,) the images' indices in a run of which the call is a part; by default
                from 0 on. The image of an index is the same in every call.
            options: those of :class:`PipelineOptions`; ``help(LPDTextPipeline)`` shows them with
                their defaults.

        Raises:
            InputError: a prompt, order, number of steps or sampling setting of no use.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        chosen = from_flat(PipelineOptions, options)
        count = checked_count(num_images_per_prompt, "num_images_per_prompt")
        return self._generate(
            self._wanted(prompts, negative_prompt, chosen.sampling).repeated(count),
            chosen,
            seed=seed,
            image_indices=image_indices,
            callback=callback,
            callback_images=callback_images,
            started=started,
        )

    @takes_options(EditSettings)
    def inpaint(
        self,
        images: Picture | Sequence[Picture],
        masks: Picture | Mask | Sequence[Picture | Mask],
        prompts: Prompt | Sequence[Prompt],
        *,
        negative_prompt: Prompt | Sequence[Prompt] = None,
        keep_painted: bool = False,
        num_images_per_prompt: int = 1,
        callback: Callback | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> EditResult:
        """Generate anew what a mask touches, as a prompt has it.

        The codes of all other cells are the image's own, exactly.

        Args:
            images: one for all prompts, or one for each. Files are turned as their EXIF says.
            masks: likewise, of their images' sizes: white, or anything painted, is generated anew;
                see :func:`lpd.data.masks.painted`.
            prompts: what the whole image is to show: one or several.
            negative_prompt: as for generation.
            keep_painted: the other way round: keep what is painted, generate the rest.
            num_images_per_prompt: how many results of each, one after the other.
            callback: as for generation.
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: an image, mask, prompt or setting is of no use; the message names it.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        settings = from_flat(EditSettings, options)
        return self._inpaint(
            images,
            masks,
            self._wanted(prompts, negative_prompt, settings.sampling),
            checked_count(num_images_per_prompt, "num_images_per_prompt"),
            settings,
            keep_painted=keep_painted,
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    @takes_options(EditSettings)
    def variations(
        self,
        images: Picture | Sequence[Picture],
        prompts: Prompt | Sequence[Prompt],
        *,
        negative_prompt: Prompt | Sequence[Prompt] = None,
        keep: float | npt.NDArray[np.bool_] = 0.5,
        num_images_per_prompt: int = 1,
        callback: Callback | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> EditResult:
        """Keep some of an image's codes and generate the others anew.

        Args:
            images: as :meth:`inpaint`, like all that follows but ``keep``.
            prompts: what is to be seen.
            negative_prompt: as for generation.
            keep: the share of the codes that is kept, chosen at random by seed and image; or which
                cells, (rows, columns) or (N,) booleans.
            num_images_per_prompt: how many results of each.
            callback: as for generation.
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        settings = from_flat(EditSettings, options)
        return self._variations(
            images,
            self._wanted(prompts, negative_prompt, settings.sampling),
            checked_count(num_images_per_prompt, "num_images_per_prompt"),
            settings,
            keep=keep,
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    @takes_options(OutpaintCall)
    def outpaint(
        self,
        images: Picture | Sequence[Picture],
        prompts: Prompt | Sequence[Prompt],
        *,
        negative_prompt: Prompt | Sequence[Prompt] = None,
        num_images_per_prompt: int = 1,
        callback: Callback | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> EditResult:
        """Continue an image beyond its sides.

        Args:
            images: as :meth:`inpaint`, like all that follows but the options.
            prompts: what is to be seen, in every window of the canvas.
            negative_prompt: as for generation.
            num_images_per_prompt: how many results of each.
            callback: as for generation.
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.canvas.OutpaintOptions`, which say how far, and
                of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        chosen = from_flat(OutpaintCall, options)
        return self._outpaint(
            images,
            self._wanted(prompts, negative_prompt, chosen.settings.sampling),
            checked_count(num_images_per_prompt, "num_images_per_prompt"),
            chosen,
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    def _wanted(
        self,
        prompts: Prompt | Sequence[Prompt],
        negative_prompt: Prompt | Sequence[Prompt],
        sampling: SamplingConfig,
    ) -> Wanted:
        """Prompts as they were given, an entry for each, and their hidden states."""
        positive, negative = listed(prompts), listed(negative_prompt)
        if len(negative) not in (1, len(positive)):
            raise InputError(
                f"negative_prompt must be one for all, or one for each of the {len(positive)} "
                f"prompts, got {len(negative)}"
            )
        if len(negative) == 1:
            negative = negative * len(positive)
        states = encode_prompts(self.text_encoder, [*positive, *negative])
        labels, nulls = states[: len(positive)], states[len(positive) :]
        leads_away = any(null is not None for null in nulls)
        if leads_away and sampling.cfg == 1:
            warnings.warn(
                "negative_prompt has no effect without guidance: give a cfg other than 1",
                stacklevel=3,
            )
        return Wanted(
            named=tuple(positive), labels=labels, null_labels=nulls if leads_away else None
        )
