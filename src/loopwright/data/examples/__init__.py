"""Examples and context as of a moment, by the same SQL for training and for serving."""
