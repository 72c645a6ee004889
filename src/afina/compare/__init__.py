"""Many methods, many seeds, one task: who is as good as the best, and at what cost.

`candidates` says what is compared, `runs` runs every piece in a process of its own (`worker`), `tune` searches learning
rates, `score` does the statistics, `table` puts them into words, `page` and `plots` show them, `report` writes all of
it.
"""
