"""Train: losses, one step, updates, micro-batches, augmentation and its adaptation."""
