"""An image that can be painted over in a browser.

Gradio's own ImageEditor draws with WebGL: without a graphics card, on two busy cores, each movement
of the mouse took it seconds, and without WebGL it shows nothing.
"""

from pathlib import Path

import gradio as gr

from scripts.demo_page.painting import enlargement

_SCRIPT = Path(__file__).with_name("canvas.js")
_SIZES = (2, 12, 40)  # of the brush: least, first and largest, in hundredths of the image's side


class Canvas:
    """The component, and how the paint on it is sent."""

    def __init__(self, name: str, img_size: int) -> None:
        """Build it.

        Args:
            name: by which it is found in the page.
            img_size: side of the model's images.
        """
        side = img_size * enlargement(img_size)
        least, first, most = _SIZES
        self.component = gr.HTML(
            "",
            html_template=(
                '<div class="canvas">'
                '${value ? `<img src="${value}" alt="the image to edit" draggable="false">` : '
                '"<p>Take the image of the Generate tab, or upload one</p>"}'
                f'<canvas width="{side}" height="{side}" aria-label="paint"></canvas></div>'
                '<div class="tools"><label>Brush <input data-tool="size" type="range" '
                f'min="{least}" max="{most}" value="{first}"></label>'
                '<label><input data-tool="erase" type="checkbox"> Erase</label>'
                '<button data-tool="clear" type="button">Clear</button></div>'
            ),
            js_on_load=_SCRIPT.read_text("utf-8"),
            elem_id=name,
        )
        """Its value is the image, as a data URL; empty for none."""
        self.paint = gr.Textbox(visible=False)
        """The first input of a listener with :attr:`send`: the paint, as a data URL."""
        self.send = (
            f"(_, ...others) => [document.querySelector('#{name} canvas').toDataURL(), ...others]"
        )
        """What a listener does in the browser before it calls."""
