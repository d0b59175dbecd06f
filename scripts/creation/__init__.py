"""What the programs that create and edit images share: flags, the pipeline, what they write."""
