"""Terminal output of a sweep: the picture drawn from its board, and the views that print it."""
