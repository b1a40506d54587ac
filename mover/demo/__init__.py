"""The main job on a simulated pool, from the first full to the last restore, every byte compared."""
