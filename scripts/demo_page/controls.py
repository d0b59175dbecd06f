"""The controls that several tabs have."""

import functools
import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lpd.errors import InputError
from scripts.demo_page.base_studio import BaseStudio, Drawing
from scripts.demo_page.classes import chosen_label, offered
from scripts.demo_page.limits import MOST_CLASS_TEXT, Limit
from scripts.demo_page.studio import Studio

MODEL = "model"
"""What all that needs the model queues for: one at a time."""
LISTENER: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
QUEUED: dict[str, Any] = {**LISTENER, "concurrency_id": MODEL, "concurrency_limit": 1}
"""Of listeners that need the model."""
BESIDE: dict[str, Any] = {**LISTENER, "concurrency_limit": None}
"""Of listeners that do not, and may tell what is wrong."""
AT_ONCE: dict[str, Any] = {**LISTENER, "queue": False}
"""Of listeners that do not, and tell nothing: the page shows no message of theirs."""


def refusing(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Have the page show what the user can mend, and nothing of it in the log."""

    @functools.wraps(function)
    def shown(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except InputError as error:
            raise refusal(error) from error

    return shown


def refusal(error: InputError) -> gr.Error:
    """A message as the page shows it."""
    text = html.escape(" ".join(str(error).split()))  # the page would take it as HTML
    return gr.Error(text[:1].upper() + text[1:], title="Not like this", print_exception=False)


def slider(limit: Limit, *, info: str | None = None, name: str | None = None) -> gr.Slider:
    """A slider over a range."""
    return gr.Slider(
        limit.low,
        limit.high,
        limit.start,
        step=limit.step,
        label=limit.name,
        info=info,
        elem_id=name,
        buttons=[],
    )


@dataclass(frozen=True)
class ClassPicker:
    """A search, and the classes it finds."""

    search: gr.Textbox
    choice: gr.Radio

    @property
    def inputs(self) -> list[Any]:
        """What :meth:`label` is called with."""
        return [self.search, self.choice]


def class_picker(studio: Studio, name: str) -> ClassPicker:
    """Build a picker.

    Args:
        studio: the model.
        name: begins the names by which the page's parts are found.
    """
    classes = studio.pipe.classes
    first = offered(classes, "")
    search = gr.Textbox(
        label="Class",
        placeholder="search by name or number",
        max_length=MOST_CLASS_TEXT,
        elem_id=f"{name}-search",
    )
    choice = gr.Radio(
        first,
        value=first[0][1],
        show_label=False,
        container=False,
        elem_id=f"{name}-classes",
        elem_classes="classes",
    )

    def find(text: str) -> Any:
        choices = offered(classes, text)
        return gr.Radio(choices, value=choices[0][1] if choices else None)

    search.change(find, search, choice, trigger_mode="always_last", **AT_ONCE)
    return ClassPicker(search, choice)


def label_of(studio: Studio, text: Any, choice: Any) -> int | None:
    """The class that a picker's values mean.

    Raises:
        InputError: there is none.
    """
    return chosen_label(studio.pipe.classes, text, choice)


@dataclass(frozen=True)
class OrderControls:
    """An order and its number of passes."""

    order: gr.Dropdown
    passes: gr.Slider


def order_controls(studio: BaseStudio, name: str, *, order: str | None = None) -> OrderControls:
    """Build the controls of an order; an order with passes of its own takes no number of them."""
    names = [(shown, each) for each, shown in studio.orders.items()]
    kind = gr.Dropdown(
        names, value=order or names[0][1], label="Order", filterable=False, elem_id=f"{name}-order"
    )
    passes = slider(studio.limits.passes, name=f"{name}-passes")

    def fit(chosen: str) -> Any:
        return gr.Slider(interactive=studio.takes_passes(chosen))

    kind.input(fit, kind, passes, **AT_ONCE)
    return OrderControls(kind, passes)


@dataclass(frozen=True)
class DrawingControls:
    """How tokens are drawn."""

    cfg: gr.Slider
    temperature: gr.Slider
    seed: gr.Number

    @property
    def inputs(self) -> list[Any]:
        """What :meth:`drawing_of` is called with, after an order and its passes."""
        return [self.cfg, self.temperature, self.seed]


def drawing_controls(studio: BaseStudio, name: str) -> DrawingControls:
    """Build the controls of guidance, temperature and seed."""
    limits = studio.limits
    return DrawingControls(
        cfg=slider(limits.cfg, name=f"{name}-cfg"),
        temperature=slider(limits.temperature, name=f"{name}-temperature"),
        # Without limits of its own: those would be told in gradio's words.
        seed=gr.Number(limits.seed.start, label="Seed", precision=0, elem_id=f"{name}-seed"),
    )


def drawing_of(
    studio: BaseStudio, order: Any, passes: Any, cfg: Any, temperature: Any, seed: Any
) -> Drawing:
    """What the controls' values ask for.

    Raises:
        InputError: one is out of range.
    """
    return studio.drawing(order=order, passes=passes, cfg=cfg, temperature=temperature, seed=seed)
