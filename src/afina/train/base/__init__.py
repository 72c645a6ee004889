"""The frozen model that is trained on: where it comes from, its tokenizer, its storage. It knows a recipe's model
section, but no task and no rows.
"""
