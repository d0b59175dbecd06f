"""Fixtures shared by the tests."""

import dataclasses
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# Where there is no GPU, Triton's interpreter runs the kernels. Triton decides when it decorates a
# function, its own library's among them, so this is before anything that imports it: torchvision
# does, and lpd's modules import that. A variable that is set stays as it is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from lpd.data.code_cache import UNREADABLE, CacheIndex, CacheWriter
from lpd.distributed import World
from lpd.evaluation.features.extractors import Classifier, ClassifierConfig
from lpd.models.lpd import LPD, LPDConfig
from lpd.texts.identity import EncoderIdentity
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written to standard error, as words: without line breaks and tyro's boxes."""

    def said() -> str:
        return " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().err).split())

    return said


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreadWorld(World):
    """A process of a run that is a thread of this one."""

    meeting: threading.Barrier
    board: list[object]

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)

    def gather(self, value: object) -> list[object]:
        self.board[self.rank] = value
        self.barrier()
        values = list(self.board)
        self.barrier()
        return values

    def broadcast(self, value: object) -> object:
        return self.gather(value)[0]


@pytest.fixture(scope="session")
def in_threads() -> Callable[[Callable[[World], object], int], list[object]]:
    """Runs a function in a world of some size, made of threads; gives results by rank."""

    def in_threads(function: Callable[[World], object], size: int) -> list[object]:
        meeting, board = threading.Barrier(size), [None] * size

        results: list[Future[object]] = [Future() for _ in range(size)]

        def run(rank: int) -> None:
            world = ThreadWorld(rank=rank, size=size, meeting=meeting, board=board)
            try:
                results[rank].set_result(function(world))
            except BaseException as error:
                meeting.abort()
                results[rank].set_exception(error)

        # No pool: what is forked by one of a pool's threads fails as it ends, waiting for itself.
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [each.result() for each in results]

    return in_threads


@pytest.fixture
def in_two_processes(
    tmp_path: Path,
) -> Callable[..., tuple[list[int | None], list[str]]]:
    """Runs a function in a group of two: forks, which need not import torch again, told who they
    are as torchrun tells them. Gives exit codes and output, by rank."""

    def one_of_two(function: Callable[..., object], rank: int, port: int, output: Path) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with output.open("w", buffering=1) as file:
            sys.stdout = sys.stderr = file
            function()

    def run(
        function: Callable[..., object], *arguments: object
    ) -> tuple[list[int | None], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outputs = [tmp_path / f"output_{rank}.txt" for rank in range(2)]
        context = multiprocessing.get_context("fork")
        call = functools.partial(function, *arguments)
        processes = [
            context.Process(target=one_of_two, args=(call, rank, port, output))
            for rank, output in enumerate(outputs)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()  # where it hangs, so that the test ends
            process.join()
        return [process.exitcode for process in processes], [file.read_text() for file in outputs]

    return run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tokenizer of stride 4 with 24 codes, most of which noise brings up."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = VQGANConfig(
        ch=8,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        z_channels=8,
        codebook_size=24,
        codebook_embed_dim=4,
        norm_groups=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqgan = VQGAN(config)
        with torch.no_grad():  # a random encoder is mostly its own mean: take that away
            mean = vqgan.pre_quant(torch.rand(16, 3, 16, 16) * 2 - 1).mean((0, 2, 3))
            vqgan.quant_conv.bias -= mean
    save_pretrained(folder, vqgan, config)
    return folder


@pytest.fixture(scope="session")
def make_classifier() -> Callable[[], Classifier]:
    """Makes random classifiers of images of 16 pixels into 3 classes."""
    config = ClassifierConfig(
        architecture="resnet10t",
        num_classes=3,
        image_size=16,
        model_args={"channels": [4, 4, 8, 8], "stem_width": 4},
    )
    return functools.partial(Classifier, config)


@pytest.fixture(scope="session")
def tiny_config() -> LPDConfig:
    """A model of 4x4 codes that computes in milliseconds."""
    return LPDConfig(
        depth=2,
        dim=32,
        num_heads=2,
        img_size=16,
        stride=4,
        vocab_size=24,
        num_classes=3,
        proj_dropout=0.0,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: LPDConfig) -> LPD:
    """A random model whose tokens depend strongly on their context and class."""
    torch.manual_seed(0)
    model = LPD(tiny_config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def text_config(tiny_config: LPDConfig) -> LPDConfig:
    """The same shape, conditioned on up to 5 hidden states of 6 numbers."""
    return dataclasses.replace(tiny_config, conditioning="text", text_width=6, text_length=5)


@pytest.fixture(scope="session")
def make_text_model(text_config: LPDConfig) -> Callable[..., LPD]:
    """Makes random models, of some fields, whose tokens depend strongly on their text."""

    def make(**fields: int) -> LPD:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LPD(dataclasses.replace(text_config, **fields))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def text_model(make_text_model: Callable[..., LPD]) -> LPD:
    """One of them."""
    return make_text_model()


class WordEncoder:
    """A text encoder without a network: a row of 6 numbers for each word, whatever its place."""

    def __init__(self, max_length: int = 5, **identity: Any) -> None:
        told = {"name": "words", "sha256": "1" * 64, "layer": -1, "width": 6}
        self.identity = EncoderIdentity(**told | identity)
        self.max_length = max_length
        self.encoded: list[list[str]] = []
        """The texts of each call."""

    def num_cut(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) > self.max_length for text in texts)

    def encode(self, texts: Sequence[str]) -> list[torch.Tensor]:
        self.encoded.append(list(texts))
        rows = [
            [np.random.default_rng(zlib.crc32(word.encode())).standard_normal(6) for word in words]
            for words in (text.split()[: self.max_length] for text in texts)
        ]
        return [torch.from_numpy(np.stack(each)).to(torch.bfloat16) for each in rows]


@pytest.fixture(scope="session")
def make_word_encoder() -> Callable[..., WordEncoder]:
    """Makes text encoders without networks."""
    return WordEncoder


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes caches of 3 classes and 24 codes, 4x4 pixels each, whose values tell the class."""

    def make(
        num_images: int,
        side: int,
        *,
        unreadable: tuple[int, ...] = (),
        tokenizer_sha256: str = "0" * 64,
    ) -> Path:
        path = tmp_path_factory.mktemp("cache")
        labels = np.arange(num_images) % 3
        index = CacheIndex(
            image_size=4 * side,
            vocab_size=24,
            tokenizer_sha256=tokenizer_sha256,
            class_names=("a", "b", "c"),
            files=tuple(f"{'abc'[label]}/{i:02d}.png" for i, label in enumerate(labels)),
            labels=labels,
        )
        random = np.random.default_rng(0)
        codes = random.integers(8, size=(num_images, 2, side**2)) + 8 * labels[:, None, None]
        codes[list(unreadable)] = UNREADABLE
        writer = CacheWriter(path, index)
        writer.write_index()
        writer.write_shard(0, codes.astype(np.uint16))
        return path

    return make


@pytest.fixture(scope="session")
def small_cache(make_cache: Callable[..., Path]) -> Path:
    """A cache of 41 images of 4x4 codes, one of them unreadable."""
    return make_cache(41, 4, unreadable=(7,))


@pytest.fixture
def serve_hub() -> Iterator[Callable[[Mapping[str, Path]], str]]:
    """Serves folders as repositories of a hub, by name; gives its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(repositories: Mapping[str, Path]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                content, headers = self.find()
                self.send_response(404 if content is None else 200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if content is not None and self.command == "GET":
                    self.wfile.write(content)

            do_GET = do_HEAD = answer  # noqa: N815

            def find(self) -> tuple[bytes | None, dict[str, str]]:
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                for name, folder in repositories.items():
                    about = {"Content-Type": "application/json"}
                    files = sorted(
                        file.relative_to(folder).as_posix()
                        for file in folder.rglob("*")
                        if file.is_file()
                    )
                    if path.startswith(f"/api/models/{name}/tree/"):
                        tree = [
                            {
                                "type": "file",
                                "path": file,
                                "size": (folder / file).stat().st_size,
                                "oid": "0",
                            }
                            for file in files
                        ]
                        return json.dumps(tree).encode(), about
                    if path.startswith(f"/api/models/{name}/revision/"):
                        siblings = [{"rfilename": file} for file in files]
                        told = {"id": name, "sha": "0" * 40, "siblings": siblings}
                        return json.dumps(told).encode(), about
                    match = re.fullmatch(rf"/{re.escape(name)}/resolve/[^/]+/(.+)", path)
                    if match is not None and (folder / match[1]).is_file():
                        content = (folder / match[1]).read_bytes()
                        tag = hashlib.sha256(content).hexdigest()
                        return content, {"ETag": f'"{tag}"', "X-Repo-Commit": "0" * 40}
                return None, {}

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def text_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes folders with random text encoders of width 16 and 2 layers, which read bytes: "t5" ends
    a text with a token of its own, "gemma2" begins it with one, "llama" adds none, "bert" adds both
    and reads 40 tokens at most."""

    def make(kind: str) -> Path:
        import transformers

        import tokenizers

        letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        special = ["<pad>", "<s>", "</s>", "<unk>"]
        vocabulary = {token: number for number, token in enumerate([*special, *letters])}
        reader = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
        reader.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        templates = {"t5": "$A </s>", "gemma2": "<s> $A", "llama": "$A", "bert": "<s> $A </s>"}
        reader.post_processor = tokenizers.processors.TemplateProcessing(
            single=templates[kind], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        size = {"vocab_size": len(vocabulary), "num_attention_heads": 2, "hidden_size": 16}
        size |= {"intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if kind == "t5":
                config = transformers.T5Config(
                    vocab_size=len(vocabulary),
                    d_model=16,
                    d_kv=8,
                    d_ff=24,
                    num_layers=2,
                    num_heads=2,
                    decoder_start_token_id=0,
                    **ends,
                )
                model = transformers.T5ForConditionalGeneration(config)
            elif kind == "bert":
                config = transformers.BertConfig(**size, **ends, max_position_embeddings=40)
                model = transformers.BertForMaskedLM(config)
            elif kind == "gemma2":
                config = transformers.Gemma2Config(**size, **ends, num_key_value_heads=1)
                model = transformers.Gemma2ForCausalLM(config)
            else:
                config = transformers.LlamaConfig(**size, **ends)
                model = transformers.LlamaForCausalLM(config)
            for parameter in model.parameters():  # so that every layer and token counts
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=reader, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        ).save_pretrained(folder)
        return folder

    return functools.cache(make)
