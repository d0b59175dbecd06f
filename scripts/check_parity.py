"""Compare this implementation with numbers that an independent one produced.

python scripts/check_parity.py FILE.safetensors...

Each file holds tensors and, in its metadata, a JSON entry ``meta`` that says what they are: a small
LPD transformer with its logits, losses, gradients and decoded tokens; a small VQ network with its
codes and reconstructions; or images and their crops. What was compared is printed with the largest
differences; beyond tolerance the exit code is 1.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpd import cli
from lpd.data.transforms import center_crop
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, dense_attention, sparse_attention
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.plan import DecodePlan
from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.logits import guide
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import load_strictly

CLEAR_MARGIN = 1e-3  # greedy tokens may differ where the two best logits are closer than this


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Compare this implementation with numbers that an independent one produced."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files with parity vectors."""
    device: str = "cpu"
    """Where to compute; the tolerances are for float32 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One tensor against its expectation."""

    what: str
    absolute: float
    """Largest absolute difference; for tokens, codes and pixels the number that differ."""
    relative: float
    """The same over the largest expected magnitude, or over the number of entries."""
    tolerance: str
    passed: bool


@dataclass(frozen=True)
class ParityFile:
    """The content of a file."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        """The network's weights, as float32."""
        prefix = "model."
        return {
            key.removeprefix(prefix): value.float()
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }


def close(
    what: str, actual: Tensor, expected: Tensor, *, absolute: float = 0.0, relative: float = 0.0
) -> Comparison:
    """Compare real numbers; one of the two tolerances is given."""
    if actual.shape != expected.shape:
        return other_shape(what, actual, expected)
    difference = (actual.detach().cpu().double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    share = difference / largest if largest else float(difference > 0)
    passed = difference <= absolute if absolute else share <= relative
    tolerance = f"{absolute:g} abs" if absolute else f"{relative:g} rel"
    # NaN compares false, and so fails.
    return Comparison(
        what=what, absolute=difference, relative=share, tolerance=tolerance, passed=passed
    )


def equal(what: str, actual: Tensor, expected: Tensor, where: Tensor | None = None) -> Comparison:
    """Compare integers; ``where`` limits the comparison to the entries that count."""
    if actual.shape != expected.shape:
        return other_shape(what, actual, expected)
    differ = actual.cpu() != expected
    count = int((differ if where is None else differ & where).sum())
    return Comparison(
        what=what,
        absolute=int(differ.sum()),
        relative=differ.double().mean().item(),
        tolerance="equal" if where is None else "equal if clear",
        passed=count == 0,
    )


def other_shape(what: str, actual: Tensor, expected: Tensor) -> Comparison:
    """A comparison that fails because there is nothing to compare."""
    return Comparison(
        what=f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}",
        absolute=float("inf"),
        relative=float("inf"),
        tolerance="same shape",
        passed=False,
    )


def compare_lpd(file: ParityFile, device: torch.device) -> Iterator[Comparison]:
    """The transformer: training forward and backward in both attentions, cached decoding."""
    meta, tensors = file.meta, file.tensors
    config = LPDConfig(
        depth=meta["depth"],
        dim=meta["dim"],
        num_heads=meta["heads"],
        img_size=meta["img_size"],
        stride=meta["stride"],
        vocab_size=meta["vocab"],
        num_classes=meta["classes"],
    )
    model = LPD(config)
    load_strictly(model, file.state(), "the parity file")
    model.to(device).eval()
    tokens, labels, orders = (tensors[key].to(device) for key in ("tokens", "labels", "orders"))
    on_cuda = device.type == "cuda"
    for schedule, sizes in meta["group_sizes"].items():
        visibility = Visibility.of_group_sizes(tuple(sizes), device)
        attentions = {
            "dense": dense_attention(visibility),
            "flex": sparse_attention(visibility, compiled=on_cuda),
        }
        for name, attend in attentions.items():
            # FlexAttention has no backward pass on CPU.
            with_gradients = name == "dense" or on_cuda
            model.zero_grad()
            with torch.set_grad_enabled(with_gradients):
                logits = model(tokens, labels, orders, attend)  # (B, N, V)
                targets = tokens.gather(1, orders)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            case = f"{schedule} {name}"
            yield close(f"{case} logits", logits, tensors[f"{schedule}.logits"], absolute=1e-4)
            yield close(f"{case} loss", loss, tensors[f"{schedule}.loss"], absolute=1e-5)
            if not with_gradients:
                continue
            loss.backward()
            prefix = f"{schedule}.grad."
            for key in sorted(key for key in tensors if key.startswith(prefix)):
                parameter = key.removeprefix(prefix)
                gradient = model.get_parameter(parameter).grad
                assert gradient is not None
                what = f"{case} grad {parameter}"
                yield close(what, gradient, tensors[key], relative=1e-3)
    for case in meta["cases"]:
        plan = DecodePlan(orders.cpu().numpy(), tuple(meta["group_sizes"][case["group_sizes"]]))
        yield from compare_decoding(model, labels, plan, case, tensors)


@torch.inference_mode()
def compare_decoding(
    model: LPD, labels: Tensor, plan: DecodePlan, case: dict[str, Any], tensors: dict[str, Tensor]
) -> Iterator[Comparison]:
    """Greedy decoding, and the logits of the cached decoder given the expected tokens."""
    name, cfg, schedule = case["case"], case["cfg"], case["cfg_schedule"]
    orders = torch.from_numpy(plan.orders)
    expected = tensors[f"{name}.greedy_tokens"].gather(1, orders)  # (B, N) in generation order
    labels_of_rows = torch.cat([labels, model.conditioning.null(labels)]) if cfg != 1 else labels
    head = decode_given_tokens(model, expected, orders, labels_of_rows, plan.group_sizes)
    yield close(f"{name} head logits", head, tensors[f"{name}.head_logits"], absolute=1e-4)
    guided_expected = tensors[f"{name}.guided_logits"]
    guided = head.cpu()
    if cfg != 1:
        guided = guide(guided, torch.from_numpy(guidance_scales(cfg, schedule, orders.shape[1])))
    # Guidance by s amplifies the head's differences up to 2 s - 1 times.
    yield close(f"{name} guided logits", guided, guided_expected, absolute=1e-4)
    sampler = Sampler(model, len(plan))
    uniforms = torch.full(orders.shape, 0.5)
    config = SamplingConfig(cfg=cfg, cfg_schedule=schedule, top_k=1)
    codes = sampler(labels.cpu(), plan, uniforms, config).cpu().gather(1, orders)
    best = guided_expected.topk(2).values
    clear = best[..., 0] - best[..., 1] > CLEAR_MARGIN  # (B, N)
    # Once an unclear token differs, what follows it may too.
    before = torch.cumsum((codes != expected) & ~clear, dim=1) > 0
    yield equal(f"{name} greedy tokens", codes, expected, clear & ~before)


def decode_given_tokens(
    model: LPD, tokens: Tensor, orders: Tensor, labels: Tensor, group_sizes: GroupSizes
) -> Tensor:
    """The cached decoder's raw logits, (B or 2B, N, V), given tokens in generation order."""
    device = model.head.weight.device
    repeats = len(labels) // len(tokens)
    tokens, orders = (x.to(device).repeat(repeats, 1) for x in (tokens, orders))
    cache = model.make_cache(len(labels))
    context, start, logits = model.prefix(labels), 0, []
    for size in group_sizes:
        places = slice(start, start + size)
        logits.append(model.decode(context, orders[:, places], cache))
        context = model.token_context(tokens[:, places], orders[:, places])
        start += size
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def compare_vq(file: ParityFile, device: torch.device) -> Iterator[Comparison]:
    """The VQ network: what the quantizer receives, codes, reconstruction."""
    meta, tensors = file.meta, file.tensors
    config = VQGANConfig(
        ch=meta["ch"],
        ch_mult=tuple(meta["ch_mult"]),
        z_channels=meta["z_channels"],
        codebook_size=meta["codebook_size"],
        codebook_embed_dim=meta["codebook_embed_dim"],
    )
    vqgan = VQGAN(config)
    load_strictly(vqgan, file.state(), "the parity file")
    vqgan.to(device).eval()
    images = tensors["images"].to(device)
    grid = (images.shape[2] // config.stride, images.shape[3] // config.stride)
    codes = vqgan.encode(images)
    yield close("pre_quant", vqgan.pre_quant(images), tensors["pre_quant"], absolute=1e-4)
    yield equal("codes", codes, tensors["indices"])
    reconstruction = vqgan.decode(tensors["indices"].to(device), grid)
    yield close("reconstruction", reconstruction, tensors["reconstruction"], absolute=1e-4)


def compare_crops(file: ParityFile, _device: torch.device) -> Iterator[Comparison]:
    """The image preparation."""
    for case in file.meta["cases"]:
        _, image, size = case.split("_")
        cropped = center_crop(Image.fromarray(file.tensors[f"image_{image}"].numpy()), int(size))
        yield equal(case, torch.from_numpy(np.array(cropped)), file.tensors[case])


def read(path: Path) -> ParityFile:
    """Read a file of parity vectors.

    Raises:
        InputError: it is missing, damaged, or has no ``meta``.
    """
    try:
        with safe_open(path, "pt") as content:
            meta = json.loads((content.metadata() or {})["meta"])
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file with parity vectors: {error}") from error
    # Codes, labels and orders may be of any integer type.
    return ParityFile(
        meta,
        {
            k: v if v.is_floating_point() or v.dtype == torch.uint8 else v.long()
            for k, v in tensors.items()
        },
    )


def compare(path: Path, device: torch.device) -> list[Comparison]:
    """Everything that a file has numbers for.

    Raises:
        InputError: the file is none of the known forms.
    """
    file = read(path)
    comparisons: Callable[[ParityFile, torch.device], Iterator[Comparison]]
    if "group_sizes" in file.meta:
        comparisons = compare_lpd
    elif "codebook_size" in file.meta:
        comparisons = compare_vq
    elif "cases" in file.meta:
        comparisons = compare_crops
    else:
        raise InputError(f"{path}: its meta is of no known form: {sorted(file.meta)}")
    try:
        rows = list(comparisons(file, device))
    except KeyError as error:
        raise InputError(f"{path} lacks {error}") from error
    if not rows:
        raise InputError(f"{path} holds nothing to compare: no schedules, cases or images")
    return rows


def run(config: ParityConfig) -> bool:
    """Compare all files and print the tables; whether all passed."""
    if not config.files:
        raise InputError("name one or more files with parity vectors")
    device = pick_device(config.device)
    all_passed = True
    for path in config.files:
        comparisons = compare(path, device)
        print(f"\n{path}")
        print(f"{'':<4} {'max abs':>10} {'max rel':>10}  {'tolerance':<14} compared")
        for row in comparisons:
            verdict = "ok" if row.passed else "FAIL"
            print(
                f"{verdict:<4} {row.absolute:>10.3g} {row.relative:>10.3g}  "
                f"{row.tolerance:<14} {row.what}"
            )
        failed = sum(not row.passed for row in comparisons)
        print(f"{len(comparisons) - failed} of {len(comparisons)} within tolerance")
        all_passed &= failed == 0
    return all_passed


if __name__ == "__main__":
    run_config = cli.parse(ParityConfig, "Compare with an independent implementation's numbers.")
    with cli.command():
        sys.exit(0 if run(run_config) else 1)
