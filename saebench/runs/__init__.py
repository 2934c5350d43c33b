"""The files of a sweep: who owns each file, its content, how it is written."""
