"""What a sweep shows: the board of its state, the picture drawn from it, and the views that print it."""
