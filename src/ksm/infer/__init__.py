"""Using tasks: many in memory, switching, all on one image, mixed batches, predictions."""
