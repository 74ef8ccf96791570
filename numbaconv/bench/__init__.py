"""``python -m numbaconv bench``: numbaconv beside other libraries, on the same arrays and in one process, each answer checked."""
