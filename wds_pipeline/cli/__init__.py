"""The command line, `wds-pipeline …`: one file a command, thin over `wds_pipeline.dataset`."""

from wds_pipeline.cli.main import main

__all__ = ["main"]
