"""One-off work on WebDataset tars, sample by sample: cat, split, sort, shuffle, map, diff, copy.

A stream of samples goes from tars, or a pipe, into tars, or a pipe. What is held in memory is bounded by
samples, not by shards: a large member stays in its tar, or goes to a temporary file.
"""
