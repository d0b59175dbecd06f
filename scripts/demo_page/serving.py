"""Serving the page on this machine alone."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lpd.errors import InputError
from scripts.demo_page.limits import MOST_UPLOADED, MOST_WAITING

if TYPE_CHECKING:
    from scripts.demo_page.studio import Studio
    from scripts.demo_page.text_studio import TextStudio

HOST = "127.0.0.1"
"""The page is for whoever sits at this machine."""


@contextmanager
def gradio_settings() -> Iterator[None]:
    """Around everything that uses gradio, its import too: it asks nobody for anything, and its
    files are gone afterwards.

    Raises:
        InputError: it is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="lpd_demo_") as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": folder,
        }
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise InputError(
                "the page needs gradio: bash environment_setup.sh or pip install gradio"
            ) from error
        yield


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def check_port(port: int) -> None:
    """Raise InputError if a port cannot be listened on."""
    with socket.socket() as asked:
        # As the server does: connections of an earlier one may still be closing.
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}): choose another with --port, or 0 "
                "for any that is free"
            ) from error


@contextmanager
def served(studio: "Studio", port: int, texts: "TextStudio | None" = None) -> Iterator[str]:
    """Serve a model's page in threads; gives its address, which can be opened at once.

    Args:
        studio: the model.
        port: where to listen.
        texts: a model of texts, for a tab of its own.
    """
    from scripts.demo_page.page import STYLE, build_page, theme

    page = build_page(studio, texts).queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=MOST_UPLOADED,
        theme=theme(),
        css_paths=STYLE,
    )
    try:
        yield address
    finally:
        page.close(verbose=False)


def serve(
    studio: "Studio",
    port: int,
    ready: Callable[[str], None],
    texts: "TextStudio | None" = None,
) -> None:
    """Serve a model's page until Ctrl-C.

    Args:
        studio: the model.
        port: where to listen.
        ready: called with the page's address once it can be opened.
        texts: a model of texts, for a tab of its own.
    """
    with served(studio, port, texts) as address:
        ready(address)
        threading.Event().wait()
