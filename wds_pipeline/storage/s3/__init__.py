"""`s3://bucket/prefix`: Amazon S3 and what speaks like it."""

from wds_pipeline.storage.s3.destination import S3Storage

__all__ = ["S3Storage"]
