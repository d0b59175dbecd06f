"""Models of texts: images of prompts in the layouts of benchmarks, and what benchmarks say."""
