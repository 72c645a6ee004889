"""What a claim about settings rests on: the same rows for all, scores item by item, intervals, plots and pages.

`candidates` says what can be put side by side, `prepare` splits the rows once for all, `items` scores a living model
item by item, `score` does the statistics, `plots` and `html` show them.
"""
