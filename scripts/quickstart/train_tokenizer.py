"""Train a small VQ tokenizer on a folder of images, in about a minute on two CPU cores.

The network class is the one that the published VQ-16 weights load into, a thousand times smaller.
Training goes in two parts. First the encoder and decoder learn without a codebook; then spherical
k-means over the encoder's vectors gives the codes, and all three learn together, while codes that
nobody chooses are moved to vectors that have none near. So nearly every code is in use from the
beginning, which is hard to reach from random codes in so few steps.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lpd import cli
from lpd.data.images import index_images, load_pixels
from lpd.data.transforms import normalize_
from lpd.errors import InputError
from lpd.files import atomic_path, read_json, write_json
from lpd.progress import progress
from lpd.provenance import Origin, missing
from lpd.randomness import Stream, check_seed, generator, torch_seed
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import CONFIG_NAME, WEIGHTS_NAME, save_pretrained

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "training.json"
# Vectors that k-means sees, and its rounds; more of either changes nothing that can be seen.
KMEANS_VECTORS = 16384
KMEANS_ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What to train, on what, for how long."""

    data_path: Path = Path("outputs/quickstart/digits")
    """Folder with train/CLASS/* to learn from and val/CLASS/* to report on."""
    output_dir: Path = Path("outputs/quickstart/tokenizer")
    """Folder for the weights, the configuration and the loss curve."""
    img_size: int = 32
    """Images are center-cropped to squares of this many pixels."""
    network: VQGANConfig = field(
        default_factory=lambda: VQGANConfig(
            ch=16,
            ch_mult=(1, 2, 2),
            num_res_blocks=1,
            z_channels=16,
            codebook_size=256,
            codebook_embed_dim=8,
            norm_groups=4,
        )
    )
    """The network; the default turns 32 x 32 pixels into 8 x 8 codes."""
    num_steps: int = 600
    """Training steps."""
    batch_size: int = 16
    """Images per step."""
    continuous_share: float = 0.2
    """The share of the steps, at the beginning, that go without a codebook."""
    lr: float = 3e-3
    """Highest learning rate; it rises over the first steps and falls along a cosine."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    restart_every: int = 50
    """Steps between two moves of unused codes; the last quarter of training has none."""
    checkpoint_every: int = 100
    """Steps between two checkpoints, from which an interrupted run goes on."""
    contrast_start: bool = False
    """Draw the vectors that codes start from by the contrast of their cells. Of images that are
    mostly plain, plain cells would else take most of the codes, of which no one sees a difference,
    and which a transformer would have to guess."""
    seed: int = 0
    """Names all random numbers of the run."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "restart_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.continuous_share < 1:
            raise InputError(
                f"continuous_share must be at least 0 and below 1, got {self.continuous_share}"
            )
        if self.lr <= 0:
            raise InputError(f"lr must be positive, got {self.lr}")
        if self.img_size < 1 or self.img_size % self.network.stride:
            raise InputError(
                f"img_size {self.img_size} is not a multiple of the network's stride "
                f"{self.network.stride}; choose one that is"
            )
        check_seed(self.seed)

    @property
    def continuous_steps(self) -> int:
        """How many steps go without a codebook."""
        return int(self.continuous_share * self.num_steps)


class Report(NamedTuple):
    """How good a trained tokenizer is on held-out images."""

    psnr: float
    """Of the reconstructions, in dB, over all pixels together."""
    codebook_usage: float
    """Share of the codes that occur among the training images' codes."""
    perplexity: float
    """exp of the entropy of those codes: how many equally frequent codes would be as varied."""


class Trainer:
    """The network, its optimiser, and how far they are."""

    def __init__(self, config: TokenizerConfig, images: Tensor) -> None:
        self.config = config
        self._images = images  # (n, 3, S, S) uint8
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(Stream.WEIGHTS, config.seed))
            vqgan = VQGAN(config.network)
        # On CPUs convolutions are a quarter faster with the channels innermost.
        self.vqgan = vqgan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.Adam(self.vqgan.parameters(), lr=config.lr, betas=(0.9, 0.99))
        side = config.img_size
        self._batch = torch.empty(
            config.batch_size, 3, side, side, memory_format=torch.channels_last
        )
        # Uses of every code since unused ones were last moved.
        self._uses = torch.zeros(config.network.codebook_size, dtype=torch.long)
        self.step = 0
        self.losses: list[float] = []

    def train_step(self) -> float:
        """Take one step and return the reconstruction loss."""
        config, step = self.config, self.step
        if step == config.continuous_steps:
            self._start_codebook()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        images = self._load_batch()
        quantized = step >= config.continuous_steps
        if quantized:
            output = self.vqgan(images)
            reconstruction, codes = output.reconstruction, output.codes
            extra = output.losses.codebook + config.commitment * output.losses.commitment
        else:
            vectors = F.normalize(self.vqgan.pre_quant(images), dim=1)  # (B, E, h, w)
            reconstruction = self.vqgan.decoder(self.vqgan.post_quant_conv(vectors))
            extra = torch.zeros(())
        loss = F.mse_loss(reconstruction, images)
        self._optimizer.zero_grad(set_to_none=False)
        (loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(self.vqgan.parameters(), 1.0)
        self._optimizer.step()
        if quantized:
            self._uses += codes.flatten().bincount(minlength=len(self._uses))
            since = step + 1 - config.continuous_steps
            if since % config.restart_every == 0:
                if step < 0.75 * config.num_steps:
                    self._move_unused_codes(images)
                self._uses.zero_()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {step}; choose a smaller lr")
        self.losses.append(value)
        return value

    def _load_batch(self) -> Tensor:
        """The step's images, (B, 3, S, S) in [-1, 1]; epochs follow each other without a gap."""
        count, size = len(self._images), self.config.batch_size
        places = np.arange(self.step * size, (self.step + 1) * size)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(places // count):
            order = generator(Stream.EPOCH_SHUFFLE, self.config.seed, int(epoch)).permutation(count)
            inside = places // count == epoch
            rows[inside] = order[places[inside] % count]
        self._batch.copy_(self._images[torch.from_numpy(rows)])
        return normalize_(self._batch)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """Set the codes to the centers of spherical k-means over the encoder's vectors."""
        random = generator(Stream.CODEBOOK, self.config.seed, self.step)
        num_positions = (self.config.img_size // self.config.network.stride) ** 2
        count = min(len(self._images), max(1, KMEANS_VECTORS // num_positions))
        rows = torch.from_numpy(random.permutation(len(self._images))[:count])
        images = normalize_(self._images[rows].float())
        vectors = torch.cat(
            [unit_rows(self.vqgan.pre_quant(part)) for part in images.split(self.config.batch_size)]
        )  # (M, E)
        if self.config.contrast_start:
            shares = contrast_of_cells(images, self.config.network.stride)  # (M,)
            drawn = random.choice(len(vectors), len(vectors), p=shares.numpy())
            vectors = vectors[torch.from_numpy(drawn)]
        codebook = self.vqgan.quantize.embedding.weight
        codebook.copy_(spherical_kmeans(vectors, len(codebook), random))
        self._uses.zero_()

    @torch.no_grad()
    def _move_unused_codes(self, images: Tensor) -> None:
        """Move each code without uses to a random vector of the batch, far ones more often."""
        unused = torch.nonzero(self._uses == 0).flatten()  # (U,)
        if not len(unused):
            return
        vectors = unit_rows(self.vqgan.pre_quant(images))  # (M, E)
        nearest = (vectors @ self.vqgan.quantize.codebook().T).amax(dim=1)  # (M,)
        distance = (1 - nearest).clamp_min(1e-6).double().numpy()
        random = generator(Stream.CODEBOOK, self.config.seed, self.step)
        chosen = random.choice(
            len(vectors), min(len(unused), len(vectors)), replace=False, p=distance / distance.sum()
        )
        rows = unused[: len(chosen)]
        weight = self.vqgan.quantize.embedding.weight
        weight[rows] = vectors[torch.from_numpy(chosen)]
        # The moments of the old codes would push the new ones away from where they were put.
        state = self._optimizer.state[weight]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name][rows] = 0

    def save(self, path: Path) -> None:
        """Write all that a later run needs to go on as if it had not been interrupted."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "config": origin_of(self.config).plain(),
                    "step": self.step,
                    "losses": self.losses,
                    "uses": self._uses,
                    "model": self.vqgan.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                },
                temporary,
            )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is damaged, or from a run with another configuration.
        """
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch.load raises many kinds
            raise InputError(f"{path} is damaged; remove it to start again ({error})") from error
        remedy = f"remove {path.parent} or give another --output_dir"
        origin_of(self.config).check(state["config"], place=path, remedy=remedy)
        self.vqgan.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._uses.copy_(state["uses"])
        self.step, self.losses = state["step"], state["losses"]


def learning_rate(config: TokenizerConfig, step: int) -> float:
    """Linear rise over 5% of the steps, then a cosine down to a twentieth."""
    warmup = max(1, config.num_steps // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.num_steps - warmup)
    return config.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


def unit_rows(z: Tensor) -> Tensor:
    """(B, E, h, w) to unit vectors (B * N, E)."""
    return F.normalize(z.flatten(2).transpose(1, 2).flatten(0, 1), dim=-1)  # (B * N, E)


def contrast_of_cells(images: Tensor, stride: int) -> Tensor:
    """The standard deviation of each cell's pixels, as shares; a plain cell has a thousandth of
    the highest.

    Args:
        images: (B, 3, S, S).
        stride: pixels of a cell's side.

    Returns:
        (B * N,) that sum to 1, in the order of :func:`unit_rows`.
    """
    mean, square = (F.avg_pool2d(each, stride) for each in (images, images.square()))
    deviation = (square - mean.square()).clamp_min(0).mean(dim=1).sqrt().flatten()  # (B * N,)
    weights = deviation.double() + 1e-3 * max(1e-9, deviation.max().item())
    return weights / weights.sum()


def spherical_kmeans(vectors: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """Centers of unit vectors: k-means with the inner product.

    Args:
        vectors: (M, E) of unit length.
        count: how many centers.
        random: draws the first centers among the vectors.

    Returns:
        (count, E) of unit length. Where there are fewer vectors than centers, some are equal.
    """
    rows = random.choice(len(vectors), count, replace=len(vectors) < count)
    centers = vectors[torch.from_numpy(rows)]  # (K, E)
    for _ in range(KMEANS_ROUNDS):
        nearest = (vectors @ centers.T).argmax(dim=1)  # (M,)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)  # (K, E)
        # A center without vectors stays where it is.
        centers = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centers)
    return centers


def origin_of(config: TokenizerConfig) -> Origin:
    """The settings that two halves of one run must share."""
    free = ("data_path", "output_dir", "checkpoint_every")
    values, defaults = (
        {name: value for name, value in asdict(each).items() if name not in free}
        for each in (config, TokenizerConfig())
    )
    return Origin(values=values, defaults=defaults)


@torch.inference_mode()
def evaluate(vqgan: VQGAN, train: Tensor, val: Tensor, batch_size: int) -> Report:
    """Reconstruct the held-out images, and count the training images' codes."""
    vqgan.eval()
    squared_error = 0.0
    for part in val.split(batch_size):
        images = normalize_(part.float())
        output = vqgan(images).reconstruction.clamp(-1, 1)
        squared_error += F.mse_loss(output, images, reduction="sum").item()
    counts = torch.zeros(vqgan.config.codebook_size)
    for part in train.split(batch_size):
        codes = vqgan.encode(normalize_(part.float()))
        counts += codes.flatten().bincount(minlength=len(counts))
    shares = counts / counts.sum()
    return Report(
        # The signal's range is 2, from -1 to 1.
        psnr=10 * math.log10(4 * val.numel() / max(squared_error, 1e-12)),
        codebook_usage=(counts > 0).float().mean().item(),
        perplexity=torch.special.entr(shares).sum().exp().item(),
    )


def train_tokenizer(config: TokenizerConfig) -> None:
    """Train, or go on training, and write the tokenizer's folder; do nothing if it is complete.

    Raises:
        InputError: the folder holds a tokenizer, or a checkpoint, of another configuration; the
            images are not there.
    """
    folder = config.output_dir
    log_path = folder / LOG_NAME
    if not missing((log_path, folder / WEIGHTS_NAME, folder / CONFIG_NAME)):
        remedy = "remove it or give another --output_dir"
        origin_of(config).check(read_json(log_path).get("config"), place=folder, remedy=remedy)
        print(f"tokenizer is complete in {folder}")
        return
    train, val = (
        load_pixels(index_images(config.data_path / part), config.img_size)
        for part in ("train", "val")
    )
    trainer = Trainer(config, train)
    checkpoint = folder / CHECKPOINT_NAME
    if checkpoint.is_file():
        trainer.load(checkpoint)
    started, first_step = time.perf_counter(), trainer.step
    with progress(
        total=config.num_steps, initial=first_step, desc="training tokenizer", unit="step"
    ) as bar:
        # An interrupt may come in the middle of a step: what it leaves is the last checkpoint.
        while trainer.step < config.num_steps:
            loss = trainer.train_step()
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if trainer.step % config.checkpoint_every == 0:
                trainer.save(checkpoint)
    seconds = time.perf_counter() - started
    report = evaluate(trainer.vqgan, train, val, config.batch_size)
    save_pretrained(folder, trainer.vqgan, config.network)
    write_json(
        log_path,
        {
            "config": origin_of(config).plain(),
            "num_parameters": sum(p.numel() for p in trainer.vqgan.parameters()),
            "seconds_per_step": seconds / max(1, config.num_steps - first_step),
            "losses": trainer.losses,
            **report._asdict(),
        },
    )
    checkpoint.unlink(missing_ok=True)
    print(
        f"held-out PSNR {report.psnr:.2f} dB; {report.codebook_usage:.0%} of the codes in use, "
        f"perplexity {report.perplexity:.0f}; saved in {folder}"
    )


def main() -> None:
    """Run the program."""
    config = cli.parse(TokenizerConfig, "Train a small VQ tokenizer on a folder of images.")
    with cli.command():
        train_tokenizer(config)


if __name__ == "__main__":
    main()
