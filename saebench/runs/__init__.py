"""What a sweep leaves on disk, file by file: who owns each file, what is in it, how it is written."""
