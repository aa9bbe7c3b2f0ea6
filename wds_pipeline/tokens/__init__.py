"""Samples to tokens: arrays in blocks of rows, one shard after the other, and all of them in one folder.

`tokenize` is the transform, in the order in which data flows: parameters, text and images, layouts, blocks.
`combine` makes one memory-mapped folder of what was published. torch is imported where it is needed only.
"""
