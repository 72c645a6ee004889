"""The main job: a recipe goes in, a trained adapter with the proof of its worth comes out.

Rooms in the order of the data: `recipe` (typed settings) -> `assets`, `rows`, `encode` (data) -> `model` ->
`trainer` -> `evaluate`, `results`; `run` walks through them. Nothing here prints: a run speaks to a `Reporter`.
"""

from __future__ import annotations
