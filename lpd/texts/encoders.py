"""Frozen text encoders of transformers: T5's encoder, decoders such as Gemma, and BERT's likes.

A text becomes the hidden states of its tokens, those included which the tokenizer adds, such as an
end. A decoder's see the tokens before them alone, as its causal mask has it. Where texts of several
lengths are encoded at once, the shorter ones are padded at their ends, which no token of a text
sees.

n tokens of a text, E width, B texts that are encoded at once, T tokens of each with its padding.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lpd.distributed import World
from lpd.errors import InputError
from lpd.texts.config import check_layer, check_length
from lpd.texts.encoder_files import encoder_folder, encoder_sha256
from lpd.texts.foreign import check_whole, loading, refusals_told
from lpd.texts.identity import EncoderIdentity

_TOKENS_AT_ONCE = 8192  # with their padding, where texts are encoded together
_LENGTH_STEP = 16  # a batch of captions is of many lengths, and each would be a call of its own
_SHOWN = 60  # characters of a text in a message


class Tokens(NamedTuple):
    """A text as its encoder reads it."""

    ids: tuple[int, ...]
    """At most the encoder's ``max_length``; none for a blank text."""
    is_cut: bool
    """Whether the text had more."""


class TextEncoder:
    """Encodes texts; its weights never change.

    On a CPU each text is encoded alone, so that its hidden states depend on no other, bit by bit.
    On other devices texts of about the same length are encoded together, where their number and
    their padding may change how the last bit is rounded.
    """

    identity: EncoderIdentity
    """Which encoder it is."""
    max_length: int
    """The most tokens that a text has."""
    device: torch.device
    """Where it computes."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        sha256: str,
        max_length: int,
        layer: int = -1,
        device: torch.device,
    ) -> None:
        """Args:
            model: of transformers, on the device.
            tokenizer: of transformers.
            name: what it is called.
            sha256: of its files.
            max_length: the most tokens of a text, those that the tokenizer adds included.
            layer: which hidden states, as in a list of the embeddings and all layers' outputs.
            device: where to compute.

        Raises:
            InputError: it has no such layer, or reads no texts of that length.
        """
        self.device = device
        self.max_length = max_length
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        # Cutting is a setting of the tokenizer's, which two threads would change under each other.
        self._lock = threading.Lock()
        self._check_length(name)
        self._num_embeddings: int = model.get_input_embeddings().num_embeddings
        pad = tokenizer.pad_token_id
        # Many decoders have none, and some tokenizers one that was added without a row for it.
        self._pad: int = pad if pad is not None and pad < self._num_embeddings else 0
        ids = self._ids(["a"], cut=False)[0] or [0]
        states = self._states(*_padded([ids], len(ids), self._pad), every=True)
        check_layer(layer)
        if not -len(states) <= layer < len(states):
            raise InputError(
                f"{name} has hidden layers from 0, the embeddings, to {len(states) - 1}, or from "
                f"-{len(states)} to -1 counted from the last one; there is no text_layer {layer}"
            )
        self._layer = layer if layer < 0 else layer - len(states)
        # Lengths are rounded up to multiples of it; where it is None, each text is encoded alone.
        self._length_step: int | None = None
        if device.type != "cpu":
            self._length_step = 1 if self._sees_padding(ids[0]) else _LENGTH_STEP
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # for the weights
        self.identity = EncoderIdentity(
            name=name, sha256=sha256, layer=self._layer, width=states[layer].shape[-1]
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device,
        *,
        max_length: int,
        layer: int = -1,
        dtype: torch.dtype | None = None,
        world: World | None = None,
        **hub: Any,
    ) -> Self:
        """Load an encoder from a folder or the hub. No code of a repository is run, and nothing is
        unpickled.

        Args:
            name: a folder as transformers saves it, with a tokenizer, or a repository of the hub.
            device: where to compute.
            max_length: the most tokens of a text, those that the tokenizer adds included.
            layer: which hidden states: -1 the last layer's, -2 those before it, 0 the embeddings.
            dtype: what is computed in; by default bfloat16, and on a CPU, which is slower in that,
                float32. Features are rounded to bfloat16 in either case.
            world: the run's processes, which share the hashing; all of them call this together.
            hub: for huggingface_hub: revision, cache_dir, token, ...

        Raises:
            InputError: there is none of that name, it is no text encoder, or it has no such layer
                or length; raised on all processes.
        """
        world = world or World()
        check_length(max_length)
        check_layer(layer)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        folder = Path(name)
        for rank_0 in (True, False):  # the others find what it has fetched
            with world.together():
                if world.is_main == rank_0:
                    folder = encoder_folder(name, **hub)
        sha256 = encoder_sha256(folder, world)
        with world.together(), refusals_told(functools.partial(_told, name)), loading():
            model, tokenizer = _load(folder, dtype)
            return cls(
                model.to(device),
                tokenizer,
                name=str(name),
                sha256=sha256,
                max_length=max_length,
                layer=layer,
                device=device,
            )

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of texts, as many as are encoded.

        Raises:
            InputError: an entry is no text.
        """
        for text in texts:
            _check_text(text)
        blank = [not text.strip() for text in texts]
        written = [text for text, is_blank in zip(texts, blank, strict=True) if not is_blank]
        with self._lock:
            whole = iter(self._ids(written, cut=False))
            result = []
            for text, is_blank in zip(texts, blank, strict=True):
                ids = [] if is_blank else next(whole)
                is_cut = len(ids) > self.max_length
                if is_cut:
                    (ids,) = self._ids([text], cut=True)
                result.append(Tokens(tuple(ids), is_cut))
        return result

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens than are encoded."""
        return sum(each.is_cut for each in self.tokens(texts))

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """The hidden states of texts.

        Returns:
            For each text (n, E) in bfloat16 and host memory, n at most ``max_length`` and 0 for a
            blank one. Equal texts share theirs.

        Raises:
            InputError: an entry is no text, or hidden states are not finite.
        """
        return self.encode_tokens(self.tokens(texts))

    def encode_tokens(self, tokens: Sequence[Tokens]) -> list[Tensor]:
        """The same of texts whose tokens are known already."""
        found: dict[tuple[int, ...], Tensor] = {}
        found[()] = torch.zeros(0, self.identity.width, dtype=torch.bfloat16)
        wanted = dict.fromkeys(each.ids for each in tokens if each.ids)
        highest = max(map(max, wanted), default=0)
        if highest >= self._num_embeddings:
            raise InputError(
                f"the tokenizer of {self.identity.name} has a token {highest}, its model none "
                f"above {self._num_embeddings - 1}: they do not belong together"
            )
        with self._own_stream():
            self._encode_groups(list(wanted), found)
        return [found[each.ids] for each in tokens]

    def _encode_groups(
        self, texts: list[tuple[int, ...]], found: dict[tuple[int, ...], Tensor]
    ) -> None:
        """Add the hidden states of texts that differ to what is found.

        Raises:
            InputError: they are not finite.
        """
        for length, group in self._groups(texts):
            ids, is_text = _padded(group, length, self._pad)
            states = self._states(ids, is_text)[is_text].to(torch.bfloat16)  # (sum of n, E)
            # Where they were computed: a CPU takes longer for that than a GPU does for all else.
            if not bool(states.isfinite().all()):
                raise InputError(
                    f"hidden states of {self.identity.name} are not finite (NaN or infinity): its "
                    "weights are damaged, or its numbers do not fit the dtype it computes in"
                )
            parts = states.cpu().split([len(text) for text in group])
            found |= zip(group, parts, strict=True)

    def _own_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where a thread encodes for the next step of a training: to bring anything to the host, it
        would wait on the training's stream for the whole step that is under way."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _groups(self, texts: list[tuple[int, ...]]) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """Texts that are encoded together, and how many tokens each has with its padding."""
        step = self._length_step
        if step is None:
            yield from ((len(text), [text]) for text in texts)
            return
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for text in texts:
            length = min(-(-len(text) // step) * step, self.max_length)
            by_length.setdefault(length, []).append(text)
        for length, group in sorted(by_length.items()):
            most = max(1, _TOKENS_AT_ONCE // length)
            for start in range(0, len(group), most):
                yield length, group[start : start + most]

    def _sees_padding(self, token: int) -> bool:
        """Whether hidden states depend on what a text is padded with, as where a model mixes
        neighbours in convolutions that know no mask. Those that do not are equal bit by bit: what
        is masked counts exactly nothing, and the shapes are the same."""
        length = min(_LENGTH_STEP, self.max_length)
        one, other = (
            self._states(*_padded([[token]], length, pad))[:, :1]
            for pad in (self._pad, (self._pad + 1) % self._num_embeddings)
        )
        return not torch.equal(one, other)

    @torch.no_grad()
    def _states(self, ids: Tensor, is_text: Tensor, *, every: bool = False) -> Any:
        """The chosen hidden states (B, T, E) of (B, T) tokens, or a list of every layer's."""
        with torch.autocast(self.device.type, enabled=False):
            out = self._model(
                input_ids=ids.to(self.device),
                attention_mask=is_text.to(self.device, ids.dtype),
                output_hidden_states=every or self._layer != -1,
            )
        last = out.last_hidden_state
        # What the last layer gives is shown before the last norm by some, and after it by others.
        states = [*(out.hidden_states or [last])[:-1], last]
        return states if every else states[self._layer]

    def _ids(self, texts: list[str], *, cut: bool) -> list[list[int]]:
        if not texts:
            return []
        length = {"truncation": True, "max_length": self.max_length} if cut else {}
        encoded = self._tokenizer(
            texts,
            **length,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return encoded["input_ids"]

    def _check_length(self, name: str) -> None:
        added = self._tokenizer.num_special_tokens_to_add()
        if self.max_length <= added:
            raise InputError(
                f"text_length {self.max_length} leaves no room for a text: the tokenizer of {name} "
                f"adds {added} tokens to each"
            )
        config = self._model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:  # T5 has none: its texts may be of any length
            return
        most = min(positions, self._tokenizer.model_max_length)
        if self.max_length > most:
            raise InputError(
                f"text_length {self.max_length} is more than the {most} tokens that {name} reads"
            )


def _padded(texts: Sequence[Sequence[int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """The tokens (B, T) of texts with padding behind them, and which ones are the texts'; in host
    memory, where to choose by the latter waits for no device."""
    ids = torch.tensor([[*text, *[pad] * (length - len(text))] for text in texts])
    counts = torch.tensor([len(text) for text in texts])
    return ids, torch.arange(length) < counts[:, None]


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"a text to encode must be a string, got {text!r:.{_SHOWN}}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text to encode is not valid Unicode ({error.reason}): {text!r:.{_SHOWN}}"
        ) from error


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model of a folder, on the CPU and without what decodes, and its tokenizer."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            'text encoders are read by transformers, which is missing: pip install -e ".[text]"'
        ) from error

    # Its threads would be lost in processes that are forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    attention = {}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # Gemma-2's. PyTorch's attention leaves the cap out without a word, and is the default in
        # releases of transformers that allow the model to use it.
        attention["attn_implementation"] = "eager"
    has_encoder = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    kind = transformers.AutoModelForTextEncoding if has_encoder else transformers.AutoModel
    model, report = kind.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        **attention,
        **local,
    )
    if not has_encoder and config.is_encoder_decoder:
        model = model.get_encoder()
    # Poolers make one vector of a text, of which nothing here depends; many weights lack them.
    check_whole(report, folder, unused="pooler")
    model.config.get_text_config().use_cache = False  # no more tokens will come
    return model, tokenizer


def _told(name: str | Path, reason: str) -> str:
    return (
        f"{name} cannot be loaded as a text encoder ({reason}); give one that transformers reads "
        "without code of its own, with safetensors weights and a tokenizer"
    )
