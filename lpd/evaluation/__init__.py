"""Images to numbers: of a model's, of any model's, of a tokenizer's; and what plans cost."""
