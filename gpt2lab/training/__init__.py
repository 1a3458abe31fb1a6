"""The main job: from a Config to a run directory."""
