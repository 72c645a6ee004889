"""Rows, from files to token ids: read, renamed, recognised, split, rendered, encoded, packed. It knows a recipe's data
section and a tokenizer, but not what the rows are for: that is for a task to say.
"""
