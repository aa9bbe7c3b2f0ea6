"""The library: raw files to a published version. No Dagster, no torch; one verb a file."""
