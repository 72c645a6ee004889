"""Many methods, many seeds, one task: who is as good as the best, and at what cost.

`runs` runs every piece in a process of its own (`worker`), `rate_search` searches learning rates, `comparison` puts all
together, `table` puts it into words, `page` shows it, `report` writes all of it.
"""
