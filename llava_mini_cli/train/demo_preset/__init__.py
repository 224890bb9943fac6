"""The recipe of the demo model: rendered data, a vision tower from nothing, the stages, and the export of a run."""
