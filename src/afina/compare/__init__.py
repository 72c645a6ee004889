"""Many methods, many seeds, one task: who is as good as the best, and at what cost.

`candidates` says what is compared, `runs` runs every piece in a process of its own (`worker`), `tune` searches learning
rates, `score` does the statistics, `report`, `page` and `plots` show them. `look_model` and `look_adapter` are what
`afina inspect` tells.
"""
