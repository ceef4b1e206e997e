//! Model files opened (mapped, checked against the layout) and checkpoints saved (atomic, durable).
