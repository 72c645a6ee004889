"""Which settings are best, found in one pass over one base: candidates that are significantly worse leave on the way.

`space` says what can be searched, `draw` picks candidates (all of them, or as Optuna's sampler does), `contender` is
one of them with what became of it, `halving` says who leaves at a rung, `climb` follows the runs, `search` does it all;
`outcome` is the result in plain values, `told` puts it into words, `tune_page` shows and writes it.
"""
