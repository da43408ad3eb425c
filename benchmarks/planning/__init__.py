"""Scenes of the papers that planners come from, with all simple plans beside ours."""
