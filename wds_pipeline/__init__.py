"""Raw multimodal files to published, immutable WebDataset versions."""

__version__ = "0.1.0"
