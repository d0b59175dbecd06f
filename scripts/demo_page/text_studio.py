"""The model of texts behind the page: what it can be asked for."""

from typing import Any

from lpd.errors import InputError
from lpd.text_pipeline import LPDTextPipeline
from scripts.demo_page.base_studio import BaseStudio, Drawing, Tell, quickstart_options
from scripts.demo_page.frames import Frame, Unfolding, last_frame
from scripts.demo_page.limits import MOST_PROMPT

_SHOWN = 120  # characters of a prompt under its image


class TextStudio(BaseStudio):
    """A pipeline of prompts with the page's limits."""

    def __init__(self, pipe: LPDTextPipeline, name: str) -> None:
        """Args:
        pipe: the model.
        name: what the page calls it.
        """
        super().__init__(pipe, name, quickstart_options(pipe.grid))
        self.pipe = pipe

    def generate(self, prompt: Any, negative_prompt: Any, drawing: Drawing, tell: Tell) -> Frame:
        """Generate an image; each pass is told.

        Args:
            prompt: what is to be seen; blank for anything.
            negative_prompt: what guidance leads away from; blank for nothing in particular.
            drawing: how.
            tell: called with each pass's frame.

        Raises:
            InputError: a prompt is of no use.
        """
        prompt = _checked(prompt)
        negative_prompt = _checked(negative_prompt)
        if negative_prompt and drawing.cfg == 1:
            raise InputError(
                "nothing is led away from without guidance: choose another than 1, or leave out "
                "what is not to be seen"
            )
        unfolding = Unfolding(self.grid)
        with self._alone():
            result = self.pipe(
                prompt,
                negative_prompt=negative_prompt or None,
                callback=lambda step: tell(unfolding.after(step)),
                **self._options(drawing),
            )
        return last_frame(result, self.grid)

    def said(self, prompt: str) -> str:
        """What the page says under an image of a prompt."""
        if not prompt.strip():
            return "no prompt"
        encoder = self.pipe.text_encoder
        cut = f" (cut to {encoder.max_length} tokens)" if encoder.num_cut([prompt]) else ""
        return (prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}…") + cut


def _checked(prompt: Any) -> str:
    """A prompt from a browser, which may send anything."""
    if not isinstance(prompt, str):
        raise InputError("a prompt is text")
    if len(prompt) > MOST_PROMPT:
        raise InputError(f"a prompt has at most {MOST_PROMPT} characters, got {len(prompt)}")
    return prompt.strip()
