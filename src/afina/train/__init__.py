"""The main job: a recipe goes in, a trained adapter with the proof of its worth comes out.

Rooms, the ground floor first; each knows only those before it: `report` (what is said and left behind), `recipe` (typed
settings), `base` (the frozen model), `data` (rows to token ids), `answers` (what a model says), `tasks` (what differs
between them), `loop` (the run itself), `use` (what is done with its result). Nothing here prints: a run speaks to a
`Reporter`.
"""
