"""Turn portraits into a data set: find faces, estimate their poses, crop."""
