"""The Dagster edge: thin. What a step does is in `wds_pipeline.dataset`; here is how Dagster sees it."""
