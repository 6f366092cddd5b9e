"""Run a training from launch to end: loop, folder, saving, settings of a new run."""
