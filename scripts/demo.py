"""A page to play with: images from classes, pass by pass; editing with a brush; comparisons.

python scripts/demo.py

It shows the quickstart's model, or any other: --model mit-han-lab/lpd_l_256.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpd import cli
from lpd.errors import InputError
from scripts.demo_page.serving import check_port, free_port, gradio_settings

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "outputs" / "quickstart"
QUICKSTART_MODEL = QUICKSTART / "lpd" / "model"
QUICKSTART_TOKENIZER = QUICKSTART / "tokenizer"
MAKE_IT = "bash scripts/quickstart.sh"
DTYPES = ("float32", "bfloat16", "auto")
_MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A page to play with."""

    model: str | None = None
    """The model: a folder, a weight file, or a repository of the hub such as
    mit-han-lab/lpd_l_256. By default the quickstart's."""
    tokenizer: str | None = None
    """The same of its tokenizer. By default the one beside the model, or that of the published
    models; with the quickstart's model the quickstart's."""
    device: str | None = None
    """cpu, cuda, ...; the GPU where there is one by default."""
    dtype: str = "float32"
    """What to compute in: float32, bfloat16, or auto for the faster of the two."""
    port: int = 7860
    """Where the page is; 0 for any port that is free."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.port <= _MOST_PORT:
            raise InputError(f"port must be from 0 to {_MOST_PORT}, got {self.port}")

    def names(self) -> tuple[str, str | None]:
        """The model and the tokenizer that are meant; None for what the pipeline finds by itself.

        Raises:
            InputError: the quickstart's are meant, and it has not been run.
        """
        if self.model is not None:
            return self.model, self.tokenizer
        for folder in (QUICKSTART_MODEL, QUICKSTART_TOKENIZER):
            if not folder.is_dir():
                raise InputError(
                    f"there is no {os.path.relpath(folder)}: make the quickstart's model first, "
                    f"{MAKE_IT}, or name another with --model"
                )
        tokenizer = self.tokenizer or os.path.relpath(QUICKSTART_TOKENIZER)
        return os.path.relpath(QUICKSTART_MODEL), tokenizer

    def resolved(self) -> dict[str, Any]:
        """The fields, with the model that is meant."""
        model, tokenizer = self.model, self.tokenizer
        if model is None:
            model = os.path.relpath(QUICKSTART_MODEL)
            tokenizer = tokenizer or os.path.relpath(QUICKSTART_TOKENIZER)
        return {**vars(self), "model": model, "tokenizer": tokenizer}


def run(config: DemoConfig) -> None:
    """Load the model and serve its page until Ctrl-C."""
    model, tokenizer = config.names()
    if config.port:
        check_port(config.port)
    with gradio_settings():
        from lpd.pipeline import LPDPipeline
        from scripts.demo_page.serving import serve
        from scripts.demo_page.studio import Studio

        pipe = LPDPipeline.from_pretrained(
            model, tokenizer, device=config.device, dtype=config.dtype, batch_size=1
        )
        with contextlib.suppress(KeyboardInterrupt):  # it is how a page is ended
            serve(
                Studio(pipe, model),
                config.port or free_port(),
                lambda address: print(f"open {address}; Ctrl-C ends it", flush=True),
            )


def main() -> None:
    """The command."""
    config = cli.parse(DemoConfig, "A page to play with.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
