"""What the stores behind `GenericStorage` differ in, one file each; `base` is for any fsspec filesystem."""

from __future__ import annotations

from wds_pipeline.config_storage import Place
from wds_pipeline.storage.base import Usage
from wds_pipeline.storage.kinds.base import Found, Kind, Upload

__all__ = ["Found", "Kind", "Upload", "kind_of"]


def kind_of(place: Place, usage: Usage) -> Kind:
    """The store behind a place; nothing is asked of it yet.

    Raises ConfigError for a scheme that is not known, or whose package is not installed.
    """
    cls: type[Kind]
    if place.scheme in ("http", "https"):
        from wds_pipeline.storage.kinds.http import Http as cls
    elif place.scheme in ("gs", "gcs"):
        from wds_pipeline.storage.kinds.google import Google as cls
    elif place.scheme in ("az", "abfs", "abfss"):
        from wds_pipeline.storage.kinds.azure import Azure as cls
    elif place.scheme in ("sftp", "ssh"):
        from wds_pipeline.storage.kinds.sftp import Sftp as cls
    elif place.scheme == "hf":
        from wds_pipeline.storage.kinds.huggingface import HuggingFace as cls
    elif place.scheme == "memory":
        from wds_pipeline.storage.kinds.memory import Memory as cls
    else:
        cls = Kind
    return cls(place, usage)
