"""Which text encoder hidden states are of."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """A text encoder and the hidden layer that is taken. Equal ones give the same hidden states."""

    name: str = field(compare=False)
    """What it was called: a folder or a repository of the hub. For messages."""
    sha256: str
    """Of its weights, its configuration and its tokenizer."""
    layer: int
    """Of its hidden states, counted from the last one, which is -1."""
    width: int
    """E, the width of the hidden states."""

    def __str__(self) -> str:
        return f"{self.name} (SHA-256 {self.sha256}, layer {self.layer}, width {self.width})"
