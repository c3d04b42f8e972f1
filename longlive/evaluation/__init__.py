"""Quality of recipes: rolled out over prompt sets or read from folders, judged, tabled, reported.

See ``docs/evaluation.md``.
"""
