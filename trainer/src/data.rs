//! Text cut into splits and batches.
