"""A page to play with: images from classes, pass by pass; editing with a brush; comparisons; and
images from prompts, where there is a model of texts.

python scripts/demo.py

It shows the quickstarts' models, or any others: --model mit-han-lab/lpd_l_256.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from scripts.creation.request import TEXT_MODEL, ModelRequest
from scripts.demo_page.serving import check_port, free_port, gradio_settings

_MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ModelRequest):
    """A page to play with."""

    text_model: str | None = None
    """A model of texts, for a tab of prompts. By default that of the text quickstart, where that
    has been run."""
    text_tokenizer: str | None = None
    """Its tokenizer. By default the one beside it, or that of the published models; with the text
    quickstart's model the quickstart's."""
    text_encoder: str | None = None
    """Its text encoder. By default the one that its configuration names."""
    port: int = 7860
    """Where the page is; 0 for any port that is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= _MOST_PORT:
            raise InputError(f"port must be from 0 to {_MOST_PORT}, got {self.port}")
        for name in ("text_tokenizer", "text_encoder"):
            if getattr(self, name) is not None and self.text_model is None:
                raise InputError(f"--{name} is of a model of texts: name that with --text_model")

    @property
    def texts(self) -> ModelRequest | None:
        """The model of texts that is meant; None for none."""
        name = self.text_model
        if name is None and Path(TEXT_MODEL).is_dir():
            name = TEXT_MODEL
        if name is None:
            return None
        return ModelRequest(
            model=name, tokenizer=self.text_tokenizer, device=self.device, dtype=self.dtype
        )


def run(config: DemoConfig) -> None:
    """Load the model and serve its page until Ctrl-C."""
    config.check_quickstart()
    texts = config.texts
    if texts is not None:
        texts.check_quickstart()
    if config.port:
        check_port(config.port)
    with gradio_settings():
        from scripts.demo_page.loading import load_studios
        from scripts.demo_page.serving import serve

        studio, text_studio = load_studios(config, texts, config.text_encoder)
        with contextlib.suppress(KeyboardInterrupt):  # it is how a page is ended
            serve(
                studio,
                config.port or free_port(),
                lambda address: print(f"open {address}; Ctrl-C ends it", flush=True),
                text_studio,
            )


def main() -> None:
    """The command."""
    config = cli.parse(DemoConfig, "A page to play with.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
