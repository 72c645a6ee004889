"""Many methods, many seeds, one task: who is as good as the best, and at what cost.

`runs` hands every run to a process beside this one (`hands`, `worker`), `rate_search` searches learning rates,
`comparison` puts all together, `table` puts it into words, `page` shows it, `report` writes all of it.
"""
