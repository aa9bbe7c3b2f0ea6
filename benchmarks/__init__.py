"""Side-by-side benchmarks: `python -m benchmarks [names…]`.

One file per benchmark, each with `run(settings: Settings) -> Section`; `__main__` finds them by name.
Contenders take turns, several rounds on the same bytes, so that what counts is the ratio and not the
machine. `corpus` makes the files, `peers` are the other programs, `measure` takes the time.
"""
