"""The page: what is on it, and how it looks."""

import html
from pathlib import Path

import gradio as gr

from lpd.files import printable
from scripts.demo_page.compare_tab import build_compare_tab
from scripts.demo_page.edit_tab import build_edit_tab
from scripts.demo_page.generate_tab import build_generate_tab
from scripts.demo_page.prompt_tab import build_prompt_tab
from scripts.demo_page.studio import Studio
from scripts.demo_page.text_studio import TextStudio

TITLE = "LPD: images in few passes"
STYLE = Path(__file__).with_name("style.css")


def build_page(studio: Studio, texts: TextStudio | None = None) -> gr.Blocks:
    """The page of a model of classes, and of one of texts where there is one."""
    pipe = studio.pipe
    rows, columns = pipe.grid
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>{html.escape(printable(studio.name))}: {pipe.img_size} × "
            f"{pipe.img_size} pixels of {rows} × {columns} codes, {pipe.num_classes} classes, on "
            f"{pipe.device}</p>" + ("" if texts is None else _said_of(texts)),
            elem_id="heading",
        )
        with gr.Tab("Generate", id="generate"):
            generated = build_generate_tab(studio)
        with gr.Tab("Edit", id="edit"):
            build_edit_tab(studio, generated.last)
        with gr.Tab("Compare", id="compare"):
            build_compare_tab(studio)
        if texts is not None:
            with gr.Tab("Prompt", id="prompt"):
                build_prompt_tab(texts)
    return page


def _said_of(texts: TextStudio) -> str:
    rows, columns = texts.grid
    return (
        f"<p>{html.escape(printable(texts.name))}: {texts.pipe.img_size} × {texts.pipe.img_size} "
        f"pixels of {rows} × {columns} codes, from prompts</p>"
    )


def theme() -> gr.themes.Base:
    """Colours and fonts; none of these is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
