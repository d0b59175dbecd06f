"""Images of texts: a text encoder's hidden states in rows of their own, and a start row.

B images, t text rows of at most T, E width of the encoder's hidden states, D width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from lpd.errors import InputError
from lpd.models.condition import Conditioning, Ragged, TextCondition
from lpd.models.layers import RMS_NORM_EPS

BUCKET = 64
"""Texts are padded to a multiple of so many rows, or to the most there may be: few shapes, for each
of which generations are captured."""
PARAMETERS = (
    *("text_pos", "text_norm.weight", "text_in.weight", "text_in.bias"),
    *("text_out.weight", "text_out.bias"),
)
"""Those that models of classes do not have."""


class TextConditioning(Conditioning[TextCondition]):
    """A text in T rows, padded on the right, and a start row, which is that of no class.

    A text of length 0 is no text: what is left of the prefix then is what models of classes have
    for no class, so there is nothing else to learn for guidance.
    """

    config_fields = (
        *("text_width", "text_length", "text_encoder", "text_encoder_sha256", "text_layer"),
    )

    def __init__(self, config: Any) -> None:
        self.dim: int = config.dim
        self.width: int = config.text_width
        self.encoder_name: str | None = config.text_encoder
        self.num_ragged: int = config.text_length
        self.num_rows = self.num_ragged + 1

    @property
    def told(self) -> str:
        """How long texts are, and what reads them."""
        reader = "" if self.encoder_name is None else f" of {self.encoder_name}"
        return f"texts of up to {self.num_ragged} tokens{reader}"

    def add_parameters(self, model: nn.Module) -> None:
        """``fake_latent`` (1, D), as models of classes have it, ``text_pos`` (T, D), and what makes
        rows of hidden states: ``text_norm``, ``text_in`` and ``text_out``."""
        model.fake_latent = nn.Parameter(torch.empty(1, self.dim))
        model.text_pos = nn.Parameter(torch.empty(self.num_ragged, self.dim))
        model.text_norm = nn.RMSNorm(self.width, eps=RMS_NORM_EPS)
        model.text_in = nn.Linear(self.width, self.dim)
        model.text_out = nn.Linear(self.dim, self.dim)

    def init_weights(self, model: nn.Module) -> None:
        """Those of modules are drawn with the model's."""
        for parameter in (model.fake_latent, model.text_pos):
            assert isinstance(parameter, Tensor)
            nn.init.normal_(parameter, std=0.02)

    def encode(self, wanted: Iterable[Any]) -> TextCondition:
        """An (n, E) tensor of hidden states for each image, n <= T, None for no text -> texts in as
        many rows as the longest one's bucket has."""
        texts = [None if each is None else self._checked(each) for each in wanted]
        lengths = torch.tensor([0 if text is None else len(text) for text in texts])
        dtype = torch.float32
        given = [text.dtype for text in texts if text is not None]
        if given:  # a wider one holds the numbers of a narrower one
            dtype = max(given, key=lambda each: torch.finfo(each).bits)
        num_rows = self.bucket(int(lengths.max())) if len(texts) else 0
        features = torch.zeros(len(texts), num_rows, self.width, dtype=dtype)
        for row, text in zip(features, texts, strict=True):
            if text is not None:
                row[: len(text)] = text
        return TextCondition(features, lengths)

    def check_wanted(self, wanted: Iterable[Any]) -> None:
        """Look at each text alone."""
        for each in wanted:
            if each is not None:
                self._checked(each)

    def bucket(self, length: int) -> int:
        """How many rows texts of up to ``length`` are padded to: a multiple of 64, or T."""
        return min(-(-length // BUCKET) * BUCKET, self.num_ragged)

    def rows(self, model: Any, condition: TextCondition) -> Tensor:
        """Texts of t <= T rows -> (B, t + 1, D)."""
        start = model.fake_latent + model.pos_embed[:, 0]  # (1, D)
        start = start.expand(len(condition), 1, -1)  # (B, 1, D)
        ragged = self.ragged(condition)
        if ragged is None:
            return start
        # What pads a text may be NaN, which no attention weight of 0 would take away.
        padding = torch.arange(ragged.num_rows, device=condition.device) >= ragged.lengths[:, None]
        hidden = condition.features.float().masked_fill(padding[..., None], 0)  # (B, t, E)
        hidden = gelu(_apply(model.text_in, model.text_norm(hidden)))  # (B, t, D)
        text = _apply(model.text_out, hidden).float() + model.text_pos[: ragged.num_rows]
        return torch.cat([text, start], dim=1)  # (B, t + 1, D)

    def ragged(self, condition: TextCondition) -> Ragged | None:
        """The text rows."""
        num_rows = condition.features.shape[1]
        return Ragged(num_rows, condition.lengths) if num_rows else None

    def null(self, condition: TextCondition) -> TextCondition:
        """Texts of length 0: nothing of the features is left."""
        return TextCondition(condition.features, torch.zeros_like(condition.lengths))

    def join(self, conditions: Iterable[TextCondition]) -> TextCondition:
        """In as many rows as the longest one has."""
        conditions = list(conditions)
        num_rows = max(each.features.shape[1] for each in conditions)
        padded = [each.padded(num_rows) for each in conditions]
        return TextCondition(
            torch.cat([each.features for each in padded]),
            torch.cat([each.lengths for each in padded]),
        )

    def empty(self, count: int, **memory: Any) -> TextCondition:
        """Of T rows in bfloat16, as encoders compute them."""
        shape = (count, self.num_ragged, self.width)
        return TextCondition(
            torch.empty(shape, dtype=torch.bfloat16, **memory),
            torch.empty(count, dtype=torch.int64, **memory),
        )

    def check(self, condition: TextCondition) -> None:
        """Features must be of the encoder's width, T rows at most, and finite where texts are."""
        if not isinstance(condition, TextCondition):
            raise InputError(
                "this model is conditioned on text, a TextCondition, and not on "
                f"{type(condition).__name__} such as labels"
            )
        features, lengths = condition.features, condition.lengths
        _check_features(features, self.width)
        if features.ndim != 3 or lengths.shape != features.shape[:1]:
            raise InputError(
                f"text features must be (images, rows, {self.width}) with a length for each image, "
                f"got {list(features.shape)} and {list(lengths.shape)} lengths"
            )
        num_rows = features.shape[1]
        self._check_length(num_rows)
        if lengths.dtype != torch.int64:
            raise InputError(f"the lengths of texts must be int64, got {lengths.dtype}")
        if not len(lengths):
            return
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > num_rows:
            raise InputError(
                f"the lengths of texts must be from 0 to their {num_rows} rows, got {low} to {high}"
            )
        is_text = torch.arange(num_rows) < lengths[:, None]
        if not bool(features.isfinite().all(-1)[is_text].all()):
            raise InputError(
                "text features are not finite (NaN or infinity): the text encoder's numbers do not "
                "fit its dtype"
            )

    def _checked(self, wanted: Any) -> Tensor:
        """The hidden states that stand for an image's text, as a tensor in host memory."""
        try:
            text = torch.as_tensor(wanted)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"this model is conditioned on text, by an encoder's hidden states, and cannot "
                f"read {wanted!r:.60}"
            ) from error
        _check_features(text, self.width)
        if text.ndim != 2:
            raise InputError(
                f"the hidden states of a text must be (rows, {self.width}), got {list(text.shape)}"
            )
        self._check_length(len(text))
        return text.detach().cpu()

    def _check_length(self, num_rows: int) -> None:
        if num_rows > self.num_ragged:
            raise InputError(
                f"{num_rows} text rows are more than this model's {self.num_ragged}: cut the text"
            )


def _check_features(features: Tensor, width: int) -> None:
    if not features.is_floating_point() or not features.ndim or features.shape[-1] != width:
        raise InputError(
            f"this model reads text as hidden states of width {width}, floating-point numbers, got "
            f"{features.dtype} of shape {list(features.shape)}: are they another encoder's, or "
            "labels of classes?"
        )


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    # While sampling its weights may be resident in another dtype, without autocast.
    return linear(x.to(layer.weight.dtype), layer.weight, layer.bias)
