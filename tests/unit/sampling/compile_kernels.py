"""Compiles the kernels for an H100, which needs no GPU, and prints a JSON line for each.

A program of its own: in the tests' process Triton interprets.
"""

import json
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lpd.sampling import triton_kernels

H100 = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}
ALIGNED = [["tt.divisibility", 16]]


class Compiled:
    """Stands for a kernel: where it would be launched, it is compiled for what it was given."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, **keywords: Any) -> None:
        options = {k: keywords.pop(k) for k in ("num_warps", "num_stages") if k in keywords}
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | keywords
        signature, constants, attributes = {}, {}, {}
        for parameter in self.kernel.params:
            name, value = parameter.name, values[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[name] = TYPES[value.dtype]
                if not parameter.do_not_specialize_on_alignment:
                    attributes[(parameter.num,)] = ALIGNED
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32"
                if not parameter.do_not_specialize and value % 16 == 0:
                    attributes[(parameter.num,)] = ALIGNED
        source = ASTSource(self.kernel, signature, constants, attributes)
        binary = triton.compile(source, target=H100, options=options)
        result = {
            "kernel": self.kernel.__name__,
            "shared": binary.metadata.shared,
            "tensor_cores": "mma" in binary.asm["ptx"],
        }
        print(json.dumps(result))


def main() -> None:
    """A block of LPD-L in bfloat16, and a draw."""
    for name in ("_norm_qkv", "_attend", "_project", "_norm_mlp_in", "_guided_draw"):
        setattr(triton_kernels, name, Compiled(getattr(triton_kernels, name)))

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    dim, num_heads, float32 = 1024, 16, torch.float32
    x, kv = make(2, 25, dim, dtype=float32), make(2, 2, num_heads, 257, 64)
    norm = (make(dim), make(dim), 1e-6)
    q = triton_kernels.norm_qkv(x, *norm, make(3 * dim, dim), make(3 * dim), kv, 5)
    rows = triton_kernels.attend(q, kv, 5, 12)
    triton_kernels.attend(q, kv, 5, 12, bias=make(2, 1, 1, 272))
    triton_kernels.project(rows, make(dim, dim), make(dim), x)
    triton_kernels.norm_mlp_in(x, *norm, make(4 * dim, dim), make(4 * dim))
    logits, uniforms = make(2, 12, 16384), make(1, 12, dtype=float32)
    triton_kernels.guided_draw(logits, make(12, dtype=float32), 1.0, uniforms)


if __name__ == "__main__":
    main()
