"""What a run says and leaves behind: events, folder, checkpoints, scores, report. The ground floor: it is told plain
values and knows no recipe, no model and no rows.
"""
