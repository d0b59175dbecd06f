"""A stand-in for the pipeline of texts that paints what it is asked, for tests."""

import hashlib
from types import SimpleNamespace

import numpy as np
from PIL import Image

SIZE = 4


def picture(prompt, index, negative_prompt=None, seed=0, options=()):
    """An image of all that it is to depend on."""
    named = f"{prompt}|{index}|{negative_prompt}|{seed}|{options}".encode()
    pixels = np.frombuffer(hashlib.shake_256(named).digest(SIZE * SIZE * 3), dtype=np.uint8)
    return Image.fromarray(pixels.reshape(SIZE, SIZE, 3))


class Painter:
    """A pipeline; ``calls`` are the images' indices of each call, of which there may be most."""

    def __init__(self, most_calls=None):
        self.calls = []
        self.most_calls = most_calls

    def __call__(self, prompts, *, negative_prompt, seed, image_indices, **options):
        if len(self.calls) == self.most_calls:
            raise KeyboardInterrupt
        self.calls.append(image_indices.tolist())
        shown = (options["cfg"], options["generation_steps"])
        images = [
            picture(prompt, index, negative_prompt, seed, shown)
            for prompt, index in zip(prompts, image_indices.tolist(), strict=True)
        ]
        return SimpleNamespace(images=images)
