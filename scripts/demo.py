"""A page to play with: images from classes, pass by pass; editing with a brush; comparisons.

python scripts/demo.py

It shows the quickstart's model, or any other: --model mit-han-lab/lpd_l_256.
"""

import contextlib
from dataclasses import dataclass

from lpd import cli
from lpd.errors import InputError
from scripts.creation.request import ModelRequest
from scripts.demo_page.serving import check_port, free_port, gradio_settings

_MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ModelRequest):
    """A page to play with."""

    port: int = 7860
    """Where the page is; 0 for any port that is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= _MOST_PORT:
            raise InputError(f"port must be from 0 to {_MOST_PORT}, got {self.port}")


def run(config: DemoConfig) -> None:
    """Load the model and serve its page until Ctrl-C."""
    config.check_quickstart()
    if config.port:
        check_port(config.port)
    with gradio_settings():
        from lpd.pipeline import LPDPipeline
        from scripts.demo_page.serving import serve
        from scripts.demo_page.studio import Studio

        pipe = LPDPipeline.from_pretrained(
            config.model,
            config.tokenizer_name,
            device=config.device,
            dtype=config.dtype,
            batch_size=1,
        )
        with contextlib.suppress(KeyboardInterrupt):  # it is how a page is ended
            serve(
                Studio(pipe, config.model),
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
